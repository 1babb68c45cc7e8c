"""vLLM: the names that its documentation does not promise, by the process that needs them.

Nothing of vLLM is imported before a check asks for it. Each list is checked where vLLM has imported most of it already.
"""

from __future__ import annotations

from kad import hosts
from kad.hosts import VLLM, Need, check

__all__ = [
    "FIRST_RUNNER",
    "PLUGIN",
    "SECOND_RUNNER",
    "check_first_runner",
    "check_installed",
    "check_plugin",
    "check_second_runner",
]

PLUGIN = (
    Need(
        "vllm.transformers_utils.config:_CONFIG_REGISTRY",
        "how vLLM finds the class that reads a pair's config.json",
        "a documented way to register a configuration class",
    ),
    Need(
        "vllm.transformers_utils.model_arch_config_convertor:MODEL_ARCH_CONFIG_CONVERTORS",
        "the numbers that vLLM asks of a model (heads, layers, length), of which a pair has several",
        "a documented way to register a convertor",
    ),
    Need(
        "vllm.transformers_utils.model_arch_config_convertor:ModelArchConfigConvertorBase",
        "the numbers of one part of a pair",
        "the same",
        ("hf_config", "hf_text_config"),
    ),
    Need(
        "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
        "the hook in which a pair settles its dtype and refuses what cannot work",
        "a hook on the model class",
    ),
    Need(
        "vllm.config.model:_get_and_verify_dtype",
        "what `--dtype auto` means for each part",
        "a public function",
        ("model_id", "config", "dtype", "is_pooling_model", "revision"),
    ),
    Need(
        "vllm.sampling_params:SamplingParams.verify",
        "checks a request's rule before the engine sees it",
        "LogitsProcessor.validate_params, once it is told which model is served",
        ("model_config",),
    ),
    Need(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "ends a request whose row is no distribution",
        "vLLM ending requests with NaN in their logits by itself",
        ("scheduler_output", "model_runner_output"),
    ),
    Need(
        "vllm.v1.core.sched.scheduler:Scheduler.finish_requests",
        "the same",
        "the same",
        ("request_ids", "finished_status"),
    ),
    Need("vllm.v1.request:RequestStatus.FINISHED_ERROR", "the same", "the same"),
    Need(
        "vllm.v1.kv_cache_interface:KVCacheConfig.needs_kv_cache_zeroing",
        "keeps what such a request leaves in its blocks from the next one",
        "vLLM zeroing such blocks by itself",
    ),
)
FIRST_RUNNER = (
    Need(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "tells the rows of a step their requests' rules",
        "the second model runner, which asks the model for its own state",
        ("scheduler_output", "num_scheduled_tokens"),
    ),
    Need(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
        "finds rows that are no distribution",
        "the second model runner",
        ("logits", "spec_decode_metadata"),
    ),
    Need(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync",
        "reports their requests to the scheduler",
        "the second model runner",
        ("scheduler_output", "sampler_output"),
    ),
    Need(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        "replaced where vLLM's CPU build is wrong",
        "a corrected CPU build",
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    Need(
        "vllm.v1.sample.rejection_sampler:apply_top_k_top_p",
        "spared steps without a drafted row on CPUs",
        "a corrected CPU build",
        ("logits", "k", "p"),
    ),
)
SECOND_RUNNER = (
    Need(
        "vllm.v1.worker.gpu.model_states.default:DefaultModelState.prepare_inputs",
        "tells the rows of a step their requests' rules",
        "it is the hook for models",
        ("input_batch", "req_states"),
    ),
    Need(
        "vllm.v1.worker.gpu.model_states.default:DefaultModelState.add_request",
        "remembers the rule of a request",
        "it is the hook for models",
        ("req_index", "new_req_data"),
    ),
    Need(
        "vllm.v1.worker.gpu.model_states.interface:ModelState.custom_sampler",
        "has NaN counted by request",
        "it is the hook for models",
        ("sampler",),
    ),
    Need(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler",
        "the same under speculation",
        "vLLM counting NaN by request there, too",
        ("sampler", "spec_config", "device"),
    ),
)


def check_installed() -> None:
    """Raise MissingExtraError if vLLM is not installed in this environment."""
    hosts.check_installed(VLLM, "vllm")


def check_plugin() -> None:
    """Check what every process of vLLM needs. Raises: HostError."""
    check(VLLM, PLUGIN)


def check_first_runner() -> None:
    """Check what a pair changes of vLLM's first model runner. Raises: HostError."""
    check(VLLM, FIRST_RUNNER)


def check_second_runner() -> None:
    """Check what a pair takes from vLLM's second model runner. Raises: HostError."""
    check(VLLM, SECOND_RUNNER)
