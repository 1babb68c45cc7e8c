# docs/support.md, from the marks of the tests. The vLLM part needs vLLM's environment; without it, it stays as it is.
.PHONY: support

support: $(VENV)/installed-test
	$(BIN)/python make/support.py
	if test -e $(VLLM_VENV)/installed; then $(VLLM) make/support.py --vllm; fi
