"""What kad relies on in Transformers is there; where it is not, one sentence says so; both names of the cache work."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import make_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel

import kad
from kad import hosts
from kad.engines.transformers import host as transformers
from kad.engines.transformers.forward import run_part
from kad.errors import HostError, UsageError
from kad.evaluation import host as lm_eval
from kad.hosts import HOSTS, LM_EVAL, TRANSFORMERS, Need, check, installed, missing, moved

NEEDED = [*transformers.NEEDS, *lm_eval.NEEDS, *lm_eval.MODEL_NEEDS]
HOST_OF = {"transformers": TRANSFORMERS, "lm_eval": LM_EVAL}
SOURCES = Path(kad.__file__).parent
pytestmark = pytest.mark.core


def owner_of(need: Need) -> tuple[Any, str]:
    place, _, path = need.name.partition(":")
    owner = import_module(place)
    *classes, name = path.split(".")
    for step in classes:
        owner = getattr(owner, step)
    return owner, name


def test_a_host_whose_own_imports_fail_is_not_blamed_for_a_name() -> None:
    lazy = ModuleNotFoundError("Could not import module 'GenerationMixin'. Are this object's requirements defined?")
    lazy.__cause__ = ImportError("libtorch.so: cannot open shared object file")
    assert str(moved(TRANSFORMERS, lazy)) == (
        f"Transformers {installed('transformers')} cannot be imported: "
        "ImportError: libtorch.so: cannot open shared object file"
    )


@pytest.mark.parametrize("need", NEEDED, ids=lambda need: need.name)
def test_the_installed_host_has_what_kad_needs(need: Need) -> None:
    assert missing(need) is None


@pytest.mark.parametrize("need", NEEDED, ids=lambda need: need.name)
def test_a_name_that_is_gone_is_one_sentence(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = owner_of(need)
    for place in owner.__mro__ if isinstance(owner, type) else [owner]:
        if name in vars(place):
            monkeypatch.delattr(place, name)
    host = HOST_OF[need.name.split(".")[0].split(":")[0]]
    with pytest.raises(HostError) as raised:
        check(host, NEEDED)
    assert str(raised.value) == (
        f"kad needs {need.name.replace(':', '.')}, which {host.name} {installed(host.package)} does not have. "
        f"Install a tested version ({host.tested}): "
        f'pip install "{host.package}>={host.oldest},<={host.newest}"'
    )


@pytest.mark.parametrize("need", [n for n in NEEDED if n.parameters], ids=lambda need: need.name)
def test_a_parameter_that_is_gone_is_one_sentence(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = owner_of(need)
    monkeypatch.setattr(owner, name, lambda self: None)
    host = HOST_OF[need.name.split(".")[0].split(":")[0]]
    with pytest.raises(HostError, match=f"kad needs parameter '{need.parameters[0]}' of {need.name.split(':')[0]}"):
        check(host, [need])


def test_at_the_command_line_it_is_one_line_and_exit_code_2_and_the_environment_is_shown() -> None:
    program = """
import sys, transformers
del transformers.GenerationMixin._prepare_cache_for_generation
from kad.cli.main import app
app(["info", "--environment", "--json"], standalone_mode=False)
app(["generate", "hello", "--pair", "tiny"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lost = "kad needs transformers.GenerationMixin._prepare_cache_for_generation, which"
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {lost}")
    assert json.loads(done.stdout)["problem"].startswith(lost)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("from transformers.cache_utils import NoSuchCache", "transformers.cache_utils.NoSuchCache"),
        ("import transformers.no_such_module", "the module transformers.no_such_module"),
    ],
)
def test_an_import_that_fails_is_one_sentence(statement: str, what: str) -> None:
    with pytest.raises(ImportError) as raised:
        exec(statement)
    assert str(moved(TRANSFORMERS, raised.value)).startswith(f"kad needs {what}, which Transformers")


def test_a_host_that_is_too_old_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "version", lambda package: "4.57.6")
    with pytest.raises(HostError) as raised:
        check(TRANSFORMERS, ())
    assert str(raised.value) == (
        f"kad needs Transformers {TRANSFORMERS.oldest} or newer, but 4.57.6 is installed. "
        f'Install a newer one: pip install "transformers>={TRANSFORMERS.oldest}"'
    )


def test_the_next_rename_of_the_cache_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "CausalLMOutputWithPast", make_dataclass("Output", ["logits", "kv_store"]))
    with pytest.raises(HostError, match="kad needs a cache named cache or past_key_values in CausalLMOutputWithPast"):
        transformers._cache_name_of_outputs()


def test_versions_are_compared_by_their_numbers() -> None:
    assert hosts.release("5.9.1") < hosts.release("5.19.0") < hosts.release("5.24.0.dev0")
    assert hosts.release("2.13.0+cpu") == hosts.release("2.13.0")
    assert all(hosts.release(host.oldest) <= hosts.release(host.newest) for host in HOSTS)


# ------------------------------------------------------------------ both names of the cache


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_forward_and_generate_take_the_cache_under_both_names(
    name: str, model: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor]
) -> None:
    ids = prompt(9)
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:], **{name: transformers.cache_of(first)})
    torch.testing.assert_close(second.logits, model(ids).logits[:, 5:], rtol=1e-4, atol=1e-4)
    cache = model.make_cache()
    answer = model.generate(ids, max_new_tokens=6, do_sample=False, **{name: cache})
    assert torch.equal(answer, model.generate(ids, max_new_tokens=6, do_sample=False))
    assert cache.get_seq_length() == answer.shape[1] - 1


def test_a_cache_under_two_names_is_refused(model: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(UsageError, match="A cache was given twice, as cache and as past_key_values"):
        model(prompt(4), cache=model.make_cache(), past_key_values=model.make_cache())
    with pytest.raises(UsageError, match="A cache was given twice"):
        model.generate(prompt(4), cache=model.make_cache(), past_key_values=model.make_cache())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"custom_generate": kad.speculative, "num_draft_tokens": 3},
    ],
    ids=["greedy", "beams", "sampling", "static", "speculative"],
)
def test_transformers_has_nothing_to_warn_of(
    options: dict[str, Any], model: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor], caplog: Any
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            output = model.generate(prompt(5), max_new_tokens=5, return_dict_in_generate=True, **options)
            assert transformers.cache_of(output) is not None
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not [record.message for record in caplog.records if "deprecat" in record.message.lower()]
    assert kad.KadForCausalLM.can_generate()


class NewName(torch.nn.Module):
    """A model whose cache has the name that it has since Transformers 5.24."""

    device, config = torch.device("cpu"), PreTrainedConfig()

    def forward(self, input_ids: torch.Tensor, cache: Any = None, **options: Any) -> Any:
        return SimpleNamespace(logits=torch.full((1, 3, 4), float(cache is not None)))


class OldName(torch.nn.Module):
    """A model whose cache has the old name: of somebody else's code, maybe, with a new Transformers."""

    device, config = torch.device("cpu"), PreTrainedConfig()

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **options: Any) -> Any:
        return SimpleNamespace(logits=torch.full((1, 3, 4), float(past_key_values is not None)))


@pytest.mark.parametrize("kind", [NewName, OldName])
def test_every_model_gets_its_cache_under_its_own_name(kind: Any) -> None:
    assert run_part(kind(), torch.zeros(1, 3, dtype=torch.long), DynamicCache()).all()


# ------------------------------------------------------------------ private names live in host.py alone


def private_names() -> set[str]:
    classes = (GenerationMixin, PreTrainedModel, Cache, PreTrainedConfig, GenerationConfig)
    return {name for cls in classes for name in dir(cls) if name.startswith("_") and not name.endswith("__")}


def uses(source: str, private: set[str]) -> set[str]:
    """What a module uses of a host that is not documented: private names, deep modules, and anything of lm-eval."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in private:
            found.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            found |= {part.name for part in node.body if isinstance(part, ast.FunctionDef) and part.name in private}
        elif isinstance(node, ast.Constant) and node.value in private:
            found.add(node.value)
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name) and t.id in private}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("transformers.", "lm_eval")):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("lm_eval")}
    return found - {"transformers.utils"}  # its `logging` is documented


def test_only_the_host_modules_use_private_names_of_transformers() -> None:
    private = private_names()
    outside = {
        str(file.relative_to(SOURCES)): found
        for file in sorted(SOURCES.rglob("*.py"))
        if file.name != "host.py"
        and "vllm" not in file.parts
        and (found := uses(file.read_text(encoding="utf-8"), private))
    }
    assert outside == {}
    assert uses((SOURCES / "engines" / "transformers" / "host.py").read_text(encoding="utf-8"), private)


def test_hosts_are_named_once() -> None:
    assert len({host.package for host in HOSTS}) == len(HOSTS)
    assert TRANSFORMERS in HOSTS
    assert LM_EVAL in HOSTS
