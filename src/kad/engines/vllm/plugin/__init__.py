"""The pair in vLLM: the plugin that vLLM finds through the entry point `vllm.general_plugins`.

vLLM calls `register` in each of its processes before it reads a model's configuration. Nothing of vLLM is imported
before that call, and nothing of vLLM is changed for models that are not pairs.
"""

from __future__ import annotations

ARCHITECTURE = "KadForCausalLM"
MODEL_TYPE = "kad"


def register() -> None:
    """Tell vLLM how to read a pair's configuration, which class runs it, and what cannot work with it.

    Raises:
        HostError: a name of vLLM that kad needs is gone; one sentence says which, and what to install.
    """
    from kad.engines.vllm.host import NEEDS
    from kad.hosts import VLLM, check

    check(VLLM, NEEDS)
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from kad.engines.vllm.plugin.requests import check_at_the_door
    from kad.engines.vllm.plugin.scheduler import patch_scheduler
    from kad.engines.vllm.plugin.view import PairArchitecture, PairSupport, PairView
    from kad.method.rules import registry

    ModelRegistry.register_model(ARCHITECTURE, "kad.engines.vllm.plugin.model:PairModel")
    _CONFIG_REGISTRY[MODEL_TYPE] = PairView
    MODEL_ARCH_CONFIG_CONVERTORS[MODEL_TYPE] = PairArchitecture
    MODELS_CONFIG_MAP[ARCHITECTURE] = PairSupport
    registry()  # the rules of other packages, now and not in the middle of a request
    check_at_the_door()
    patch_scheduler()
