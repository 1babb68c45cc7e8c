"""Models that an engine runs otherwise than Transformers: the same numbers, a shorter context, or a sentence."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from mlx_lm.utils import MODEL_REMAPPING
from recipes.tiny.export import to_gguf
from transformers import AutoModelForCausalLM

import kad
from architectures import ARCHITECTURES, VOCABULARY, sharpened, small_config
from kad import tiny
from kad.engines.llama_cpp.model import LlamaCppModel, LlamaCppOptions
from kad.engines.mlx.host import OTHERWISE
from kad.engines.mlx.model import MlxModel
from kad.errors import KadError, PairError, UsageError
from kad.pair.sources import Source

# With the spread of a row as unit: rounding, and where MLX takes another formula of GELU, or another epsilon.
ROUNDING, FORMULA = 1e-4, 2e-3
APPROXIMATE = ("gemma", "glm4_moe_lite", "starcoder2")
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "intermediate_size": 64, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 2,
}  # fmt: skip
WINDOW, SHORT = 8, 16
LONGROPE = {
    "original_max_position_embeddings": SHORT,
    "max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope", "short_factor": [1.1] * 8, "long_factor": [4.0] * 8, "rope_theta": 1000.0,
        "original_max_position_embeddings": SHORT,
    },
}  # fmt: skip
STRANGE = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SHORT, "rope_theta": 500.0}


def read(model: Any, folder: Path) -> MlxModel:
    model.save_pretrained(folder)
    return MlxModel(Source(str(folder)), device="cpu")


def farthest(model: Any, ours: MlxModel, longest: int = 60) -> float:
    """How far the two are apart after random walks over a text, and back, of at most `longest` tokens."""
    scorer, choose, text, far = ours.scorer(VOCABULARY, torch.device("cpu")), random.Random(0), torch.zeros(0).long(), 0
    for _ in range(14):
        count = min(choose.choice([1, 1, 2, 5, 14]), longest - len(text))
        text = torch.cat(
            (text, torch.tensor([choose.randrange(3, VOCABULARY) for _ in range(count)], dtype=torch.long))
        )
        if count:
            rows = scorer.advance(text[scorer.processed :], count)
            with torch.no_grad():
                truth = model(text.unsqueeze(0), use_cache=False).logits[0, -count:, :VOCABULARY]
            far = max(far, float((rows - truth).abs().max() / truth.std()))
        text = text[: max(1, len(text) - choose.choice([0, 1, 2, count]))]
        scorer.rollback(len(text))
    return far


@pytest.mark.parametrize(
    ("kind", "shape", "longest"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, None),
        ("Llama", {"rope_parameters": YARN}, None),
        ("Phi3", LONGROPE, SHORT),
        ("Mistral", {"sliding_window": WINDOW}, WINDOW),
        ("Gemma2", {"sliding_window": WINDOW, "head_dim": 16}, WINDOW),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, WINDOW),
        ("Gemma3Text", {"sliding_window": WINDOW, "head_dim": 16, "num_hidden_layers": 7}, None),
        ("Cohere2", {"sliding_window": WINDOW, "num_hidden_layers": 5}, None),
    ],
)
def test_a_folder_of_transformers_is_the_same_model_in_mlx(
    kind: str, shape: dict[str, Any], longest: int | None, tmp_path: Path
) -> None:
    """Up to its length in MLX, which may be shorter: sliding windows and long factors are left out there."""
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**SIZES | shape)
    model = sharpened(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    ours = read(model, tmp_path)
    if longest is not None:
        assert ours.facts.context_length == longest
    assert farthest(model, ours, longest or 60) < ROUNDING


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("Llama", {"hidden_act": "gelu"}, "which has hidden_act gelu"),
        ("Llama", {"rope_parameters": YARN | {"attention_factor": 1.5}}, "which has attention_factor"),
        ("Cohere2", {"layer_types": STRANGE, "num_hidden_layers": 5}, "which layers have sliding windows"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "MLX cannot load .*'block_dim'"),
        ("Glm", {}, "turns all dimensions of a head"),
    ],
)
def test_what_mlx_runs_otherwise_is_refused(kind: str, shape: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(getattr(hf, f"{kind}Config")(**SIZES | shape))
    with pytest.raises(PairError, match=reason):
        read(model, tmp_path)


def test_a_text_beyond_the_window_is_a_sentence(files: Any, tmp_path: Path) -> None:
    place = files("small-aligned", "mlx")
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pair = kad.load(base=str(tmp_path), aligned=str(tmp_path), engine="mlx")
    pair.generation_config.eos_token_id = None
    endless = kad.Sampling(temperature=0, max_new_tokens=500)
    assert kad.generate(pair, [5] * 20, sampling=endless, num_draft_tokens=2).finish_reason == "context"
    for ask in (lambda: kad.generate(pair, [5] * 31), lambda: kad.score(pair, [5] * 20, [5] * 20)):
        with pytest.raises(UsageError, match="context holds 30"):
            ask()


@pytest.mark.slow
def test_every_architecture_that_both_have_is_exact_or_refused(tmp_path: Path) -> None:
    """By their own lists, with rotary frequencies that are nobody's default."""
    both = [name for name in ARCHITECTURES if find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")]
    exact, wrong = [], {}
    for name in both:
        try:
            config = small_config(name)
            rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
            for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
                part |= {"rope_theta": part["rope_theta"] * 7} if "rope_theta" in part else {}
            torch.manual_seed(0)
            model = sharpened(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
        except Exception:  # noqa: BLE001  (what Transformers cannot make small)
            continue
        try:
            ours = read(model, tmp_path / name)
        except KadError:
            continue
        far = farthest(model, ours, ours.facts.context_length or 60)
        exact.append(name)
        if far > (FORMULA if name in APPROXIMATE else ROUNDING):
            wrong[name] = far
    assert not wrong
    assert len(exact) >= 35
    assert set(both) >= OTHERWISE.keys()


def gguf(folder: Path, **values: Any) -> Path:
    """The tiny aligned model as a GGUF file, with more values in its header."""
    from gguf import GGUFWriter

    class Writer(GGUFWriter):
        def write_header_to_file(self, *args: Any, **kwargs: Any) -> None:
            for name, value in values.items():
                key = name.replace("__", ".")
                self.add_bool(key, value) if isinstance(value, bool) else self.add_uint32(key, value)
            super().write_header_to_file(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf.GGUFWriter", Writer)
        return to_gguf(Path(tiny.path("small-aligned")), folder / "model.gguf")


@pytest.mark.parametrize("key", ["llama__attention__sliding_window", "llama__rope__scaling__original_context_length"])
def test_a_window_or_factors_that_llama_cpp_leaves_out_end_the_context(key: str, tmp_path: Path) -> None:
    """Shown wrong beyond it for random Mistral, Phi-3 and StarCoder2 models; up to it they are exact."""
    model = LlamaCppModel(gguf(tmp_path, **{key: 30}), LlamaCppOptions(context=200))
    assert (model.context_length, model.facts.grows) == (30, False)


def test_a_model_that_reads_from_both_sides_is_refused_by_llama_cpp(tmp_path: Path) -> None:
    """As those of embeddings do, which have no output layer either."""
    with pytest.raises(PairError, match="what it says of a token depends on later ones"):
        LlamaCppModel(gguf(tmp_path, llama__attention__causal=False))
