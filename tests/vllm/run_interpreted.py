"""run_engine.py with vLLM's second model runner on a machine without a GPU: its kernels run in Triton's interpreter.

vLLM refuses that runner where Triton has no backend for the machine. Here the interpreter stands in for one. The
runner, its sampler and its verification of drafts are vLLM's own. Usage: as run_engine.py.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any


def main() -> None:
    # Before vLLM is imported: it looks once.
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from triton.backends import backends

    backends.clear()
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))

    import run_engine
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder
    from vllm.v1.worker.gpu.sample import sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler, rejection_sampler_utils

    # In place of two calls to a library for GPUs.
    sampler.get_num_nans = rejection_sampler.get_num_nans = _count_nans
    rejection_sampler_utils.tldevice = SimpleNamespace(log1p=lambda x: tl.log(1.0 + x))
    InterpreterBuilder.create_masked_load = _with_boolean_mask(InterpreterBuilder.create_masked_load, place=1)
    InterpreterBuilder.create_masked_store = _with_boolean_mask(InterpreterBuilder.create_masked_store, place=2)
    run_engine.main()


def _with_boolean_mask(access: Any, place: int) -> Any:
    """The compiler takes a mask of integers; the interpreter wants booleans."""

    def accessing(self: Any, *args: Any) -> Any:
        args[place].data = args[place].data.astype(bool)
        return access(self, *args)

    return accessing


def _count_nans(logits: Any) -> Any:
    return logits.isnan().sum(dim=-1).int()


if __name__ == "__main__":
    main()
