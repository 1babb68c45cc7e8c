"""What SECURITY.md promises, seen: code and pickles that come with a model do not run, and a pair carries no secret."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.errors import PairError

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
SOURCE = Path(kad.__file__).parent


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists once foreign code has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def remote(folders: dict[str, Path], tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose configuration asks for the Python code that lies in it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "remote"
    shutil.copytree(folders["base"], folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    return folder


@pytest.fixture
def traps(remote: Path, folders: dict[str, Path], tmp_path: Path, marker: Path) -> dict[str, Path]:
    """Pairs of somebody else: the code lies in the base model, in the aligned model's tokenizer, or in the pair's."""

    def pair(name: str, base: Path, aligned: Path) -> Path:
        folder = tmp_path / name
        shutil.copytree(kad.tiny.path("pair"), folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"base": {"model": str(base)}, "aligned": {"model": str(aligned)}, "reference": None}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    def with_code(folder: Path) -> Path:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "own.py").write_text(TOKENIZER.format(marker=str(marker)), encoding="utf-8")
        return folder

    big, small = kad.tiny.path("big-base"), kad.tiny.path("small-aligned")
    read = pair("read", big, with_code(shutil.copytree(small, tmp_path / "small")))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (read / file).unlink()
    return {"base": pair("base", remote, folders["aligned"]), "read": read, "own": with_code(pair("own", big, small))}


HI = "Ann has 5 pens. She buys 8 more. How many?"
DOORS = {
    "info": ("info", "PAIR"),
    "info --probe": ("info", "PAIR", "--probe"),
    "generate": ("generate", "--pair", "PAIR", "-n", "2", HI),
    "chat": ("chat", "PAIR"),
    "score": ("score", "--pair", "PAIR"),
    "trace": ("trace", "--pair", "PAIR", "-n", "2", HI),
    "pack": ("pack", "--base", "BASE", "--aligned", "ALIGNED", "-o", "OUT"),
    "eval": ("eval", "--pair", "PAIR", "--tasks", "kad_tiny", "--limit", "1", "-n", "2", "-o", "OUT"),
    "analyze": ("analyze", "--pair", "PAIR", "--limit", "1", "-n", "2"),
    "serve with vLLM": ("serve", "PAIR", "--engine", "vllm", "--dry-run"),
    "serve": ("serve", "PAIR", "--engine", "transformers", "--port", "0"),
}


@pytest.mark.parametrize("door", DOORS)
def test_nobody_can_let_code_in_by_standard_input(
    door: str, traps: dict[str, Path], tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would ask there, where kad reads prompts. Each door of kad, with three traps behind it."""
    monkeypatch.setattr("uvicorn.Server.run", lambda *arguments, **options: None)
    for trap, pair in traps.items():
        parts = json.loads((pair / "config.json").read_text(encoding="utf-8"))
        names = {"PAIR": pair, "OUT": tmp_path / f"out-{trap}"}
        names |= {"BASE": parts["base"]["model"], "ALIGNED": parts["aligned"]["model"]}
        arguments = [str(names.get(word, word)) for word in DOORS[door]]
        done = CliRunner().invoke(app, arguments, input="y\n" * 9)
        assert not marker.exists(), trap
        assert isinstance(done.exception, SystemExit | None), (trap, done.exception)
        assert done.exit_code == 0 or "custom code" in done.stderr, (trap, done.stderr)
        assert "[y/N]" not in done.output


@pytest.mark.parametrize("trap", ["base", "read", "own"])
def test_the_user_lets_the_code_of_a_pair_in_for_all_its_parts(
    trap: str, traps: dict[str, Path], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    with pytest.raises(PairError, match="contains custom code"):
        kad.load(str(traps[trap])).tokenizer  # noqa: B018
    assert not marker.exists()
    pair = kad.load(str(traps[trap]), trust_remote_code=True)
    assert pair.tokenizer is not None
    assert marker.exists(), "else the other tests prove nothing"


def test_every_door_to_a_loader_of_code_says_whether_it_may_run() -> None:
    """`kad.pair.model_files.from_host` says it for all; another call must say it itself."""
    without_code = {"GenerationConfig", "PeftModel", "KadForCausalLM", "KadConfig", "super()"}
    for file in SOURCE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                says = {keyword.arg for keyword in call.keywords} | {
                    key.value
                    for keyword in call.keywords
                    if isinstance(keyword.value, ast.Dict)
                    for key in keyword.value.keys
                    if isinstance(key, ast.Constant)
                }
                name, loads = ast.unparse(call.func.value), call.func.attr in ("from_pretrained", "from_config")
                loads = loads or name == "self._lib.utils"  # mlx_lm.utils.load_model
                assert not loads or name in without_code or "trust_remote_code" in says, f"{file}:{call.lineno}"


def test_code_of_a_model_runs_only_when_asked_for(remote: Path, folders: dict[str, Path], marker: Path) -> None:
    with pytest.raises(PairError, match="contains custom code"):
        kad.KadForCausalLM.from_models(remote, folders["aligned"])
    assert not marker.exists()
    kad.KadForCausalLM.from_models(remote, folders["aligned"], trust_remote_code=True)
    assert marker.exists(), "else this test proves nothing"


def test_a_pair_keeps_neither_permissions_nor_tokens(remote: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    secret = {"trust_remote_code": True, "token": "hf_secret"}
    model = kad.KadForCausalLM.from_models(remote, folders["aligned"], base_kwargs=secret | {"dtype": "float32"})
    model.save_pretrained(tmp_path / "pair")
    text = (tmp_path / "pair" / "config.json").read_text(encoding="utf-8")
    assert json.loads(text)["base"]["kwargs"] == {"dtype": "float32"}
    assert "hf_secret" not in text


def test_a_pair_of_somebody_else_cannot_allow_its_own_code(
    remote: Path, folders: dict[str, Path], tmp_path: Path, marker: Path
) -> None:
    shutil.copytree(kad.tiny.path("pair"), tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text(encoding="utf-8"))
    config["base"] = {"model": str(remote), "kwargs": {"trust_remote_code": True}}
    config["aligned"] = {"model": str(folders["aligned"])}
    (tmp_path / "pair" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = f"The pair carries trust_remote_code for {remote}, which a pair may not."
    with pytest.raises(PairError, match=message):
        kad.KadForCausalLM.from_pretrained(tmp_path / "pair")
    for command in (["info", str(tmp_path / "pair")], ["generate", "--pair", str(tmp_path / "pair"), "Hi"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert message in done.stderr
    assert not marker.exists()


BASE = "tiny:big-base"
KERNEL = "kernels-community/flash-attn2"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"base": {"model": BASE, "kwargs": {"cache_dir": "here"}}}, "The pair carries cache_dir"),
        ({"base": {"model": BASE, "kwargs": {"offload_folder": "here"}}}, "The pair carries offload_folder"),
        ({"base": {"model": BASE, "kwargs": {"token": "x"}}}, "The pair carries token"),
        ({"base": {"model": BASE, "kwargs": {"device_map": {"": "disk"}}}}, "not the disk"),
        ({"base": {"model": BASE, "kwargs": {"max_memory": {"disk": "1TB"}}}}, "not the disk"),
        ({"base": {"model": BASE, "kwargs": {"attn_implementation": KERNEL}}}, "A pair may say eager, sdpa"),
        ({"base": {"model": BASE, "kwargs": {"gguf_file": "../../x.gguf"}}}, "a name inside the model's folder"),
        ({"base": {"model": BASE, "kwargs": {"subfolder": "/etc"}}}, "a name inside the model's folder"),
        ({"base": {"model": BASE, "kwargs": {"dtype": "__import__"}}}, "A pair may say auto, float64"),
        ({"base_prompt": "/etc/passwd"}, "is no file, but an object, a template or a name; got '/etc/passwd'."),
        ({"base_prompt": "few-shot:/etc/passwd"}, "is no file, but an object, a template or a name"),
        ({"base_prompt": {"template": "{question}", "stops": ["x" * 1000]}}, "at most 16 stops of 200 characters"),
        ({"base_prompt": {"template": "{question}" * 200_000}}, "at most 1,000,000 characters"),
        ({"vocab_size": 10**18}, "at most 16,777,216, but is 1000000000000000000"),
        ({"vocab_size": 768, "foreign_ids": [768]}, "foreign_ids are a list of tokens below its vocab_size"),
        ({"vocab_size": 768, "foreign_ids": [5] * 2000}, "foreign_ids are a list of tokens below its vocab_size"),
        ({"deferral_temperature": 1e-9}, "must be a number from 0.01 to 1000"),
        ({"base": {"model": "PAIR"}}, "is a part of itself: "),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_pair_says_less_than_its_user(said: dict[str, object], message: str, tmp_path: Path) -> None:
    """Neither where to write, nor what to read beside the models, nor what to download and run, nor any size."""
    pair = tmp_path / "pair"
    shutil.copytree(kad.tiny.path("pair"), pair)
    config = json.loads((pair / "config.json").read_text(encoding="utf-8")) | {"reference": None}
    config |= {"base": {"model": BASE}, "aligned": {"model": "tiny:small-aligned"}}
    text = json.dumps(config | said).replace('"PAIR"', json.dumps(str(pair)))
    (pair / "config.json").write_text(text, encoding="utf-8")
    for command in (["info", str(pair)], ["generate", "--pair", str(pair), "-n", "1", HI]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2, done.exception
        assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_model_cannot_ask_for_code_of_the_hub(key: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["base"], folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: "somebody/kernel"}), encoding="utf-8")
    with pytest.raises(PairError, match="asks for code of the hub: .*somebody/kernel"):
        kad.load(base=str(folder), aligned=str(folders["aligned"]))


class _Payload:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_weights_in_a_pickle_are_not_read(folders: dict[str, Path], tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["base"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(marker)))
    with pytest.raises(PairError, match="Cannot load"):
        kad.KadForCausalLM.from_models(folder, folders["aligned"])
    assert not marker.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert marker.exists(), "else this test proves nothing"


def test_the_tests_that_the_page_names_exist() -> None:
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 3
    assert named <= globals().keys()
