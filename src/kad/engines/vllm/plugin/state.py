"""A pair in vLLM's second model runner, which asks the model for the state it keeps of each request.

Nothing of that runner is changed: it finds this class through `PairModel.get_model_state_cls`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from kad.engines.vllm.plugin.requests import rule_of
from kad.engines.vllm.plugin.step_rules import bad_tokens

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.output import SamplerOutput
    from vllm.v1.worker.gpu.states import RequestState

    from kad.engines.vllm.plugin.step_rules import StepRules
    from kad.method.rules import Rule


class PairState(DefaultModelState):
    """The rule of each request by its place in the runner, told to the rows of each step."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.step_rules: StepRules = model.step_rules
        # A request that is gone leaves its rule until the next one takes its place; no step names that place meanwhile.
        self._rules: list[Rule] = [self.step_rules.default] * self.max_num_reqs

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Remember the rule of a request that enters the runner, or enters it again after it was put back."""
        super().add_request(req_index, new_req_data)
        self._rules[req_index] = rule_of(new_req_data.sampling_params) or self.step_rules.default

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Tell the step's rows their rules; the model gets no further input."""
        count = input_batch.num_reqs
        rules = [self._rules[place] for place in input_batch.idx_mapping_np[:count].tolist()]
        self.step_rules.assign(rules, input_batch.num_scheduled_tokens[:count].tolist())
        return cast("dict[str, Any]", super().prepare_inputs(input_batch, req_states))

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """A run without requests goes by the pair's own rule."""
        self.step_rules.assign([self.step_rules.default], [num_tokens], dummy=True)
        return cast("dict[str, Any]", super().prepare_dummy_inputs(num_reqs, num_tokens))

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any] | None:
        """vLLM's own samplers, told to count NaN: `plugin.scheduler` fails the requests that have any."""
        sampler.compute_nans = True
        speculative = self.vllm_config.speculative_config
        if speculative is None:
            return None
        return sampler, CountingRejectionSampler(sampler, speculative, self.device)


class CountingRejectionSampler(RejectionSampler):
    """vLLM's verification of drafts. It counts tokens drawn from rows of NaN by request; vLLM counts NaN by row."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch, *args: Any, **kwargs: Any) -> SamplerOutput:
        output: SamplerOutput = super().__call__(logits, input_batch, *args, **kwargs)
        if output.num_nans is not None:
            ends = input_batch.cu_num_logits_np[: input_batch.num_reqs + 1]
            output.num_nans = bad_tokens(output.num_nans > 0, (ends[1:] - ends[:-1]).tolist(), output.num_sampled)
        return output
