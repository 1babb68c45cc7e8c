"""The pair as one vLLM model: `forward` runs its parts side by side, `compute_logits` returns log pi."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import ModelConfig, VllmConfig, replace
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.model_loader.weight_tying import maybe_retie_word_embeddings

from kad.engines.vllm.host import SECOND_RUNNER
from kad.engines.vllm.plugin.metrics import DeferredMass
from kad.engines.vllm.plugin.runner import patch_worker
from kad.engines.vllm.plugin.scheduler import zero_new_blocks
from kad.engines.vllm.plugin.step_rules import RULE_COLUMNS, StepRules
from kad.engines.vllm.plugin.view import PairView, part_model_config, window_of_all_layers
from kad.hosts import VLLM, check
from kad.method.composition import Composition, compose, composed
from kad.method.distribution import Rows, move_to_rest
from kad.tokens.never_kept import foreign_tokens
from kad.tokens.vocabulary import common_size, trim

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors

    from kad.engines.vllm.plugin.state import PairState
    from kad.method.rules import Rule

# Rows are composed in blocks of about this many logits, so that the float32 buffers stay small beside a long prompt's.
_BLOCK_ELEMENTS = 1 << 26


class PairModel(nn.Module):
    """Base, aligned and, if the pair has one, reference model under one roof, with a KV cache each.

    The hidden states it hands to vLLM are those of its parts side by side, and two columns with the number of the
    token's rule: (tokens, sum of hidden sizes + 2). Weights, dtype and quantization are each part's own business.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        zero_new_blocks()
        if not vllm_config.use_v2_model_runner:
            patch_worker()
        view: PairView = vllm_config.model_config.hf_config
        self.config = view
        self.load_config = vllm_config.load_config
        self.part_configs = {
            role: part_model_config(vllm_config.model_config, part) for role, part in view.model_sources().items()
        }
        for role, model_config in self.part_configs.items():
            self.add_module(role, _initialize_part(vllm_config, model_config, f"{prefix}.{role}" if prefix else role))
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.sizes = [config.get_vocab_size() for config in self.part_configs.values()]
        self.common_size = view.vocab_size or common_size(dict(zip(self.part_configs, self.sizes, strict=True)))
        self.widths = [config.get_hidden_size() for config in self.part_configs.values()]
        self.step_rules = StepRules(
            view.parsed_rule,
            vllm_config.scheduler_config.max_num_batched_tokens,
            vllm_config.model_config.dtype,
            vllm_config.device_config.device,
            DeferredMass.if_wanted(vllm_config.device_config.device) if get_tensor_model_parallel_rank() == 0 else None,
        )

    @staticmethod
    def get_model_state_cls() -> type[PairState]:
        """What vLLM's second model runner keeps of a pair's requests."""
        check(VLLM, SECOND_RUNNER)
        from kad.engines.vllm.plugin.state import PairState

        return PairState

    def parts(self) -> Iterator[Any]:
        """The models, in the order base, aligned, reference."""
        return (self.get_submodule(role) for role in self.part_configs)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load each part from its own folder or hub repository; a pair has no weights, so `weights` stays unread."""
        for role, model_config in self.part_configs.items():
            part = self.get_submodule(role)
            get_model_loader(self.load_config).load_weights(part, model_config)
            maybe_retie_word_embeddings(part, model_config)

    def process_weights_after_loading(self) -> None:
        """Pass vLLM's hook on to the parts that have it."""
        for part in self.parts():
            if hasattr(part, "process_weights_after_loading"):
                part.process_weights_after_loading()

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The base model's token embeddings. Asked for by vLLM's interface; a pair embeds in its parts."""
        return cast("Tensor", next(self.parts()).embed_input_ids(input_ids))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """All parts over the same tokens: (tokens,) -> (tokens, sum of hidden sizes + 2)."""
        # A draft model may propose a row of its padding, which another part has no embedding for. Pi excludes it, so
        # that position and those after it are rejected whatever is computed there.
        hidden = [
            part(input_ids=input_ids.clamp(max=size - 1) if size < self.vocab_size else input_ids, positions=positions)
            for part, size in zip(self.parts(), self.sizes, strict=True)
        ]
        return torch.cat((*hidden, self.step_rules.columns(len(input_ids))), dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """log pi of each row, float32: (rows, hidden) -> (rows, vocab); None on ranks that vLLM keeps out of it."""
        *hidden, columns = torch.split(hidden_states, [*self.widths, RULE_COLUMNS], dim=-1)
        logits = [part.compute_logits(states.contiguous()) for part, states in zip(self.parts(), hidden, strict=True)]
        if any(part_logits is None for part_logits in logits):
            return None
        return self._compose(logits, columns)

    def _compose(self, logits: list[Tensor], columns: Tensor) -> Tensor:
        common = self.common_size
        # vLLM's draft model is the aligned one and must have as many tokens: where its padding is wider, -inf fills up.
        log_pi = logits[0].new_full((len(columns), self.vocab_size), -torch.inf, dtype=torch.float32)
        block = max(1, _BLOCK_ELEMENTS // common)
        for start in range(0, len(columns), block):
            rows = slice(start, start + block)
            base, *others = (trim(part_logits[rows], common) for part_logits in logits)
            p: Rows = base
            if self.config.foreign_ids:
                foreign = foreign_tokens(self.config.foreign_ids, common, base.device)
                p = move_to_rest(base, foreign, self.config.deferral_temperature)
            by_rule = partial(self._by_rule, p, others)
            log_pi[rows, :common] = self.step_rules.log_pi(columns[rows], by_rule)
        return log_pi

    def _by_rule(self, base: Rows, others: list[Tensor], rule: Rule, with_alpha: bool) -> tuple[Tensor, Tensor | None]:
        """log pi of rows, and the log of their deferred mass if it is counted.

        A row without a distribution is NaN, so that only its request fails (see `kad.engines.vllm.plugin.scheduler`).
        """
        composition = Composition(rule, self.config.deferral_temperature)
        if with_alpha:
            return composed(composition, base, *others).log_pi_and_alpha()
        return compose(composition, base, *others, check=False), None


def _initialize_part(vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> nn.Module:
    cache = replace(vllm_config.cache_config, sliding_window=window_of_all_layers(model_config))
    config = replace(vllm_config, model_config=model_config, cache_config=cache, quant_config=None)
    # The tag keeps the parts' compiled graphs apart: base and aligned are often of one class.
    with set_model_tag(prefix):
        return cast("nn.Module", initialize_model(vllm_config=config, model_config=model_config, prefix=prefix))
