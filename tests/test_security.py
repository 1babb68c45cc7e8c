"""What SECURITY.md promises, seen: code and pickles that come with a model do not run, and a pair carries no secret."""

from __future__ import annotations

import json
import pickle
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
