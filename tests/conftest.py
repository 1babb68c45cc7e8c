"""Tiny random models for every test: float32, CPU, no download."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

# Triton decides at its import whether it interprets its kernels, which is all that it can do without a GPU; and
# Transformers imports it. (vLLM's tests arrange that for themselves.)
if not torch.cuda.is_available() and not any("vllm" in argument for argument in sys.argv):
    os.environ["TRITON_INTERPRET"] = "1"
    with suppress(ImportError):
        import_module("triton.language")
    del os.environ["TRITON_INTERPRET"]

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kad
import needs
from kad.method.rules import rule as rule_module

# The tests are about the rules of kad, whatever packages with rules of their own are installed here.
rule_module._PLUGINS._loaded = True

# A shell that starts a job in the background makes it deaf to Ctrl-C, and its children too; tests of Ctrl-C listen.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that what fails, fails again. KAD_EXAMPLES=1000 looks for new ones.
with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("kad", derandomize="KAD_EXAMPLES" not in os.environ)
    settings.load_profile("kad")

# Tests of tiny models on two cores shared by two workers: threads would only wait for each other.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was left out, and the command that brings it."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    lines = [f"{count} skipped: {reason}" for reason, count in sorted(reasons.items())]
    if config.option.markexpr == "not slow":
        lines.append("the slow tests were left out: make slow")
    if lines:
        terminalreporter.section("not run")
        terminalreporter.write("".join(f"{line}\n" for line in lines))


VOCAB = 96
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_model(
    seed: int, *, hidden: int = 32, layers: int = 2, vocab: int = VOCAB, sharpness: float = 6.0, **config: Any
):
    """A random Llama whose distributions are sharp enough that thresholds bite."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | config))).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness / model.lm_head.weight.std() / hidden**0.5)
    return model


def make_close_pair(rule: str = "dual:threshold=0.2") -> kad.KadForCausalLM:
    """A pair whose drafts are often accepted: the aligned model is the base model with a little noise. No end token."""
    base, aligned = (make_model(0, layers=1, sharpness=4.0) for _ in range(2))
    generator = torch.Generator().manual_seed(10)
    with torch.no_grad():
        for weight in aligned.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    pair = kad.KadForCausalLM.from_models(base, aligned, rule=rule)
    pair.generation_config.eos_token_id, pair.generation_config.pad_token_id = None, 2
    return pair


def make_tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """Printable characters as tokens after three special ones."""
    tokens = ["<s>", "</s>", "<pad>", *(chr(32 + i) for i in range(vocab - 4)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def models_() -> dict[str, Any]:
    """Base, aligned and reference model, random and different."""
    return {"base": make_model(0, hidden=48, layers=3), "aligned": make_model(1), "reference": make_model(2)}


@pytest.fixture
def model(models_: dict[str, Any]) -> kad.KadForCausalLM:
    """The composition of the three under the dual rule."""
    return kad.KadForCausalLM.from_models(**models_, rule="dual:threshold=0.2")


@pytest.fixture(scope="session")
def tiny() -> kad.KadForCausalLM:
    """The embedded pair in float32: in bfloat16 favorites tie, and a row depends on how many are read at once."""
    return kad.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def folders(models_: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three models as folders with tokenizer and chat template."""
    root = tmp_path_factory.mktemp("models")
    for role, part in models_.items():
        part.save_pretrained(root / role)
        make_tokenizer().save_pretrained(root / role)
        part.config._name_or_path = ""  # the fixture's models stay objects without a path
    return {role: root / role for role in models_}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, which asks for nothing by itself."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=needs.CHROMIUM, headless=True, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def prompt() -> Callable[..., torch.Tensor]:
    """prompt(n, seed=0, batch=1): random ids (batch, n) without special tokens."""

    def make(length: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
        return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make
