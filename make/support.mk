# docs/support.md, from the marks of the tests. A part whose environment is not there stays as it is.
.PHONY: support

support: $(VENV)/installed-test
	$(BIN)/python make/support.py architectures
	if test -e $(LAPTOP_VENV)/installed; then $(LAPTOP) make/support.py laptop; fi
	if test -e $(VLLM_VENV)/installed; then $(VLLM) make/support.py vllm; fi
