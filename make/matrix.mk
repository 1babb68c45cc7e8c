# Every supported version of Transformers, in environments of their own: see make/matrix.py. With the packages in uv's
# cache the environments take seconds. UV_TORCH_BACKEND=cpu gets the small build of torch where PyTorch's index is near.
MATRIX ?= .matrix
UV ?= $(or $(shell command -v uv),$(MATRIX)/tool/bin/uv)

RUN_MATRIX = $(PYTHON) make/matrix.py --folder $(abspath $(MATRIX)) --uv $(abspath $(UV)) $(MATRIX_ARGS)

.PHONY: matrix matrix-env

matrix: $(if $(shell command -v uv),,$(MATRIX)/tool/bin/uv)
	$(RUN_MATRIX)

# The environments alone, for `make matrix MATRIX_ARGS="--step test"`.
matrix-env: $(if $(shell command -v uv),,$(MATRIX)/tool/bin/uv)
	$(RUN_MATRIX) --step install

$(MATRIX)/tool/bin/uv:
	$(PYTHON) -m venv $(MATRIX)/tool
	$(MATRIX)/tool/bin/python -m pip install --quiet --disable-pip-version-check uv
