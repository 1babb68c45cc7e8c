"""kad as a researcher uses it, in Python and at the command line: losses, perplexities, adapters, own rules."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from kad.cli.main import app
from kad.errors import LogitsError, PairError, RuleError, UsageError


def call(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_a_rule_is_a_string_and_arrays_are_refused_in_a_sentence() -> None:
    p, q = torch.tensor([0.7, 0.3]).log(), torch.tensor([0.2, 0.8]).log()
    assert kad.compose("dual:threshold=0.4", p, q).exp().tolist() == pytest.approx([0.76, 0.24])
    assert float(kad.deferred_mass("dual", p, q)) == pytest.approx(0.3)
    for wrong in (np.log([0.7, 0.3]), [0.1, 0.2]):
        with pytest.raises(LogitsError, match=r"base_logits must be a torch.Tensor, but is .* torch.as_tensor"):
            kad.compose("dual:threshold=0.4", wrong, q)  # type: ignore[arg-type]
    with pytest.raises(LogitsError, match=r"aligned_logits must be .* numpy.ndarray"):
        kad.compose("dual:threshold=0.4", p, np.log([0.2, 0.8]))


def test_keep_probabilities_outside_of_0_and_1_are_an_error() -> None:
    class Eager(kad.rules.CascadeRule):
        name, summary, source = "eager", "keeps too much", "this test"

        def keep(self, log_p: torch.Tensor, log_aligned: torch.Tensor) -> torch.Tensor:
            return torch.full_like(log_p, 1.5)

    p = torch.tensor([0.7, 0.3]).log()
    for quantity in (kad.compose, kad.deferred_mass, kad.acceptance, kad.origin_shares):
        with pytest.raises(RuleError, match=r"must lie in \[0, 1\], but lie between 1.5 and 1.5"):
            quantity(Eager(), p, p)


def test_labels_give_the_loss_under_log_pi(model: kad.KadForCausalLM, prompt: Any) -> None:
    ids = prompt(12, batch=2)
    labels = ids.clone()
    labels[0, :5] = -100
    with torch.no_grad():
        found = model(ids, labels=labels)
        p, q = (part(ids).logits.double() for part in (model.base, model.aligned))
    log_pi = kad.compose(model.rule, p, q)
    chosen = [float(log_pi[row, i - 1, ids[row, i]]) for row in (0, 1) for i in range(1, 12) if labels[row, i] != -100]
    assert float(found.loss) == pytest.approx(-sum(chosen) / len(chosen), abs=1e-4)
    assert model(ids).loss is None
    with pytest.raises(UsageError, match=r"labels must have the shape .* Leave logits_to_keep at 0"):
        model(ids, labels=labels, logits_to_keep=1)


@pytest.mark.core
def test_the_perplexity_of_a_text_is_that_of_the_definition(folders: dict[str, Path], tmp_path: Path) -> None:
    """Token by token, in parts that meet; the command says the same of a file."""
    two = {role: str(folders[role]) for role in ("base", "aligned")}
    model = kad.load(**two, rule="dual:threshold=0.2")
    text = "A text of some words, read in three parts."
    ids = [0, *make_tokenizer()(text, add_special_tokens=False).input_ids]
    found = kad.perplexity(model, text, part_length=16)
    log_pi, log_p = 0.0, 0.0
    with torch.no_grad():
        for first in range(1, len(ids), 16):
            part = ids[first : first + 16]
            read = torch.tensor([[ids[first - 1], *part[:-1]]])
            p, q = (side(read).logits[0].double() for side in (model.base, model.aligned))
            at = torch.tensor(part).unsqueeze(-1)
            log_pi += float(kad.compose(model.rule, p, q).gather(-1, at).sum())
            log_p += float(p.log_softmax(-1).gather(-1, at).sum())
    assert found.composed == pytest.approx(log_pi, abs=1e-3)
    assert found.base == pytest.approx(log_p, abs=1e-3)
    assert found.of("composed", "words") == pytest.approx(np.exp(-log_pi / 9), rel=1e-4)
    (tmp_path / "text.txt").write_text(text)
    options = ["--base", two["base"], "--aligned", two["aligned"], "--rule", "dual:threshold=0.2", "--part-length", 16]
    said = json.loads(call("score", tmp_path / "text.txt", *options, "--json").stdout)
    assert said["perplexity"]["composed"]["words"] == pytest.approx(found.of("composed", "words"))
    assert "per word" in call("score", tmp_path / "text.txt", *options).stdout
    assert "--part-length must be from 1" in call("score", tmp_path / "text.txt", *options[:-1], 4096, code=2).stderr


def test_one_switch_for_the_loading_bars(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    two = {role: str(folders[role]) for role in ("base", "aligned")}
    kad.loading_bars(True)
    kad.load(**two)
    assert "Loading weights" in capfd.readouterr().err
    kad.loading_bars(False)
    kad.load(**two)
    assert capfd.readouterr().err == ""


OWN_RULE = '''
from dataclasses import dataclass
import torch
import kad
from kad.method.rules.threshold import probability

@kad.register
@dataclass(frozen=True)
class HalfTest(kad.rules.CascadeRule):
    """Keeps a share of all tokens."""
    name, summary, source = "half_test", "keeps a share", "a test"
    share: float = probability(0.5)

    def keep(self, log_p, log_aligned):
        return torch.full_like(log_p, self.share)
'''


def test_a_rule_of_a_module_is_found_again(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the current folder, in a pair, and for one call."""
    from kad.method.rules import rule as rule_module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_rules.py").write_text(OWN_RULE)
    models = ["--base", folders["base"], "--aligned", folders["aligned"]]
    try:
        assert "Unknown rule 'half_test'" in call("pack", *models, "--rule", "half_test", "-o", "pair", code=2).stderr
        call("pack", *models, "--rule", "half_test:share=0.3", "--import", "my_rules", "-o", "pair")
        rule_module._REGISTRY.pop("half_test")  # as in a new process
        sys.modules.pop("my_rules")
        assert "Unknown rule 'half_test'" in call("generate", "Hi", "--pair", "pair", "-n", 2, code=2).stderr
        call("generate", "Hi", "--pair", "pair", "-n", 2, "--import", "my_rules")
        assert "half_test:share=0.3" in call("info", "pair", "--import", "my_rules").stdout
    finally:
        rule_module._REGISTRY.pop("half_test", None)
        sys.modules.pop("my_rules", None)
    assert "Cannot import no_such_module" in call("info", "pair", "--import", "no_such_module", code=2).stderr


# ---------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapter(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small LoRA on the reference model, trained for some steps: its folder, and the unmerged `PeftModel`."""
    peft = pytest.importorskip("peft", reason='PEFT is not here: pip install -e ".[peft]"')
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    start = AutoModelForCausalLM.from_pretrained(folders["reference"])
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(start, config)
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=0.05)
    ids = torch.arange(10, 60).reshape(2, 25)
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    folder = tmp_path_factory.mktemp("adapter")
    model.eval().save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("role", ["base", "aligned", "reference"])
def test_an_adapter_stands_for_a_model_in_every_role(
    role: str, adapter: tuple[Path, Any], folders: dict[str, Path], prompt: Any
) -> None:
    """The folder and the unmerged object give what composing their own logits gives."""
    folder, object_ = adapter
    ids = prompt(9)
    places = {name: str(place) for name, place in folders.items()}
    rule = "implicit_reward" if role == "reference" else "dual:threshold=0.2"
    with torch.no_grad():
        plain = kad.KadForCausalLM.from_models(**places, rule=rule)
        logits = {name: part(ids).logits for name, part in plain.parts.items()} | {role: object_(ids).logits}
        expected = kad.compose(rule, logits["base"], logits["aligned"], logits["reference"])
        for given in (str(folder), object_):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # of PEFT: nothing that a user could do
                composed = kad.KadForCausalLM.from_models(**(places | {role: given}), rule=rule)
            found = composed(ids).logits
            assert torch.allclose(found.exp(), expected.exp(), atol=1e-5)
            assert not torch.allclose(found.exp(), plain(ids).logits.exp(), atol=1e-2)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_an_adapter_of_one_end_leaves_the_other_end_as_it_was(
    targets: list[str], folders: dict[str, Path], tmp_path: Path, prompt: Any
) -> None:
    """Where a model's embeddings and its output layer are one tensor, merging must not change both."""
    peft = pytest.importorskip("peft", reason='PEFT is not here: pip install -e ".[peft]"')
    start = make_model(7, tie_word_embeddings=True)
    start.save_pretrained(tmp_path / "tied")
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    start.name_or_path = str(tmp_path / "tied")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights
        trained = peft.get_peft_model(start, config).eval()
        trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    pair = kad.KadForCausalLM.from_models(str(folders["base"]), str(tmp_path / "adapter"), rule="aligned_only")
    with torch.no_grad():
        assert torch.allclose(pair(prompt(9)).logits, trained(prompt(9)).logits.log_softmax(dim=-1), atol=1e-4)


def test_an_adapter_and_its_model_keep_one_copy_of_the_weights_they_share(
    adapter: tuple[Path, Any], folders: dict[str, Path], prompt: Any
) -> None:
    """The weights that the adapter changes stay apart, and so do the two models' logits."""
    folder, object_ = adapter
    places = {name: str(place) for name, place in folders.items()} | {"aligned": str(folder)}
    pair = kad.KadForCausalLM.from_models(**places, rule="implicit_reward")
    ours, theirs = (dict(part.named_parameters()) for part in (pair.aligned, pair.reference))
    apart = {name for name, weight in ours.items() if weight.data_ptr() != theirs[name].data_ptr()}
    assert {name.split(".")[-2] for name in apart} == {"q_proj", "v_proj"}
    assert len(apart) == 2 * pair.aligned.config.num_hidden_layers
    with torch.no_grad():
        assert torch.allclose(pair.aligned(prompt(9)).logits, object_(prompt(9)).logits, atol=1e-4)
        with object_.disable_adapter():
            assert torch.allclose(pair.reference(prompt(9)).logits, object_(prompt(9)).logits, atol=1e-4)
    with pytest.raises(UsageError, match="The reference model is the object in which the adapter of the aligned model"):
        kad.KadForCausalLM.from_models(str(folders["base"]), object_, reference=object_.get_base_model())


def test_an_adapter_in_a_pair(adapter: tuple[Path, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """Packed, loaded, described and used at the command line, with the tokenizer of the model underneath."""
    folder, object_ = adapter
    pair = tmp_path / "pair"
    call("pack", "--base", folders["base"], "--aligned", folder, "-o", pair)
    assert (pair / "tokenizer.json").is_file()
    assert "LlamaForCausalLM" in call("info", pair).stdout
    call("generate", "Hi", "--pair", pair, "-n", 2)
    model = kad.load(str(pair))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(model.aligned(ids).logits, object_(ids).logits, atol=1e-4)
    unnamed = kad.load(base=folders["base"], aligned=object_, rule=model.rule)
    assert kad.generate(unnamed, "Hi").token_ids == kad.generate(model, "Hi").token_ids
    with pytest.raises(PairError, match="aligned model was given as an object without a path"):
        unnamed.save_pretrained(tmp_path / "other")


def test_an_adapter_whose_model_is_gone_says_so(
    adapter: tuple[Path, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    lost = Path(shutil.copytree(adapter[0], tmp_path / "lost"))
    settings = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "./gone"}))
    stderr = call("generate", "Hi", "--base", folders["base"], "--aligned", lost, code=2).stderr
    assert "changes the model ./gone, which is not there" in " ".join(stderr.split())
    make_model(3, hidden=64).save_pretrained(tmp_path / "wide")
    (lost / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "wide")})
    )
    make_tokenizer().save_pretrained(tmp_path / "wide")
    stderr = call("generate", "Hi", "--base", folders["base"], "--aligned", lost, code=2).stderr
    assert f"Cannot merge the adapter {lost}" in " ".join(stderr.split())
