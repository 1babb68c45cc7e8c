"""What a pair changes of vLLM in the process of its scheduler: how a request fails alone, and how an engine ends.

1. The models of a pair can give a row without a distribution: NaN or infinity, from an overflow or a damaged file. The
   runner reports its request (see `plugin.runner`). vLLM only counts such requests, and their text goes on with
   meaningless tokens; here the request ends with the finish reason "error".
2. What such a request leaves in its blocks of the KV cache would spoil the next request that gets them, for attention
   multiplies what it does not look at by zero, and NaN times zero is NaN. So blocks are zeroed before use.
3. When the API server is killed, vLLM leaves its engine behind, with all its memory. Here the engine ends, too.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, cast

from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import RequestStatus

from kad.engines.vllm.launch import end_with_parent
from kad.engines.vllm.plugin.view import PairView

logger = init_logger(f"vllm.{__name__}")

_NO_DISTRIBUTION = (
    "The pair's models gave logits that are NaN or infinite, or the rule composed no distribution from them. "
    "Other requests go on."
)


def patch_scheduler() -> None:
    """Apply these changes once per process; they look at the model and leave those alone that are not pairs."""
    if not getattr(Scheduler.update_from_output, "fails_bad_rows", False):
        Scheduler.__init__ = _ending_with_parent(Scheduler.__init__)
        Scheduler.update_from_output = _failing_bad_rows(Scheduler.update_from_output)


def _failing_bad_rows(update_from_output: Any) -> Any:
    @wraps(update_from_output)
    def update(self: Scheduler, scheduler_output: Any, runner_output: Any) -> dict[int, EngineCoreOutputs]:
        counts = runner_output.num_nans_in_logits
        if not counts or not _serves_pair(self.vllm_config):
            return cast("dict[int, EngineCoreOutputs]", update_from_output(self, scheduler_output, runner_output))
        failed = [request_id for request_id, count in counts.items() if count > 0]
        for request_id in failed:
            # What was drawn from a bad row, and after it, is no token of pi. Those before it are: a request that they
            # finish does not fail. Without any token vLLM hands on no log-probabilities of a prompt.
            tokens = runner_output.sampled_token_ids[runner_output.req_id_to_index[request_id]]
            del tokens[max(0, len(tokens) - counts[request_id]) :]
            if not tokens:
                runner_output.prompt_logprobs_dict.pop(request_id, None)
                runner_output.prompt_token_id_logprobs_dict.pop(request_id, None)
        outputs: dict[int, EngineCoreOutputs] = update_from_output(self, scheduler_output, runner_output)
        for request in self.finish_requests(failed, RequestStatus.FINISHED_ERROR):
            logger.error("Request %s ends with an error. %s", request.request_id, _NO_DISTRIBUTION)
            outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                    **_reason(),
                )
            )
        return outputs

    update.fails_bad_rows = True  # type: ignore[attr-defined]
    return update


def _reason() -> dict[str, Any]:
    """The sentence for the client, from vLLM 0.33 on; 0.32 has no place for it and answers "Internal server error"."""
    if "error" not in EngineCoreOutput.__struct_fields__:
        return {}
    from vllm.outputs import RequestError

    return {"error": RequestError(code="no_distribution", message=_NO_DISTRIBUTION)}


def _ending_with_parent(initialize: Any) -> Any:
    @wraps(initialize)
    def init(self: Scheduler, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if _serves_pair(vllm_config):
            zero_new_blocks()
        initialize(self, vllm_config, *args, **kwargs)
        if _serves_pair(vllm_config):
            end_with_parent()

    return init


def zero_new_blocks() -> None:
    """Have vLLM zero the blocks of its KV cache before a request gets them, as it does for other kinds of caches."""
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda self: True)


def _serves_pair(vllm_config: Any) -> bool:
    return vllm_config.model_config is not None and isinstance(vllm_config.model_config.hf_config, PairView)
