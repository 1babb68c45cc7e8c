"""The door of vLLM: its entry point `vllm.general_plugins` names `kad.vllm:register`."""

from kad.engines.vllm.plugin import register

__all__ = ["register"]
