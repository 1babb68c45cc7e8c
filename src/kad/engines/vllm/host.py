"""vLLM: the names that its documentation does not promise, by the process that needs them.

Nothing of vLLM is imported before a check asks for it. Each list is checked where vLLM has imported most of it already.
"""

from __future__ import annotations

from kad import hosts
from kad.hosts import VLLM, needs

# Every process: how a pair's configuration is read, its requests are checked, and a bad row ends its request.
NEEDS = (
    *needs("vllm.transformers_utils.config", "_CONFIG_REGISTRY"),
    *needs(
        "vllm.transformers_utils.model_arch_config_convertor",
        "MODEL_ARCH_CONFIG_CONVERTORS",
        "ModelArchConfigConvertorBase(hf_config, hf_text_config)",
    ),
    *needs("vllm.model_executor.models.config", "MODELS_CONFIG_MAP"),
    *needs("vllm.config.model", "_get_and_verify_dtype(model_id, config, dtype, is_pooling_model, revision)"),
    *needs("vllm.sampling_params:SamplingParams", "verify(model_config)"),
    *needs(
        "vllm.v1.core.sched.scheduler:Scheduler",
        "update_from_output(scheduler_output, model_runner_output)",
        "finish_requests(request_ids, finished_status)",
    ),
    *needs("vllm.v1.request:RequestStatus", "FINISHED_ERROR"),
    *needs("vllm.v1.kv_cache_interface:KVCacheConfig", "needs_kv_cache_zeroing"),
)
# What a pair changes of the first model runner. vLLM's CPU build needs the two of the rejection sampler corrected.
FIRST_RUNNER = (
    *needs(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner",
        "_prepare_inputs(scheduler_output, num_scheduled_tokens)",
        "_sample(logits, spec_decode_metadata)",
        "_bookkeeping_sync(scheduler_output, sampler_output)",
    ),
    *needs(
        "vllm.v1.sample.rejection_sampler",
        "expand_batch_to_tokens(x, cu_num_tokens, num_tokens, replace_from, replace_to)",
        "apply_top_k_top_p(logits, k, p)",
    ),
)
# What a pair takes from the second model runner, which has hooks for models.
SECOND_RUNNER = (
    *needs(
        "vllm.v1.worker.gpu.model_states.default:DefaultModelState",
        "prepare_inputs(input_batch, req_states)",
        "add_request(req_index, new_req_data)",
    ),
    *needs("vllm.v1.worker.gpu.model_states.interface:ModelState", "custom_sampler(sampler)"),
    *needs("vllm.v1.worker.gpu.spec_decode.rejection_sampler", "RejectionSampler(sampler, spec_config, device)"),
)


def is_installed() -> bool:
    """Whether vLLM is here."""
    return hosts.is_installed("vllm")


def check_installed() -> None:
    """Raise MissingExtraError if vLLM is not installed in this environment."""
    hosts.check_installed(VLLM, "vllm")
