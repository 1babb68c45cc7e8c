"""Former names: found for one more release, with a warning that says the new one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import kad
from kad import renamed
from kad.evaluation.results.fingerprint import fingerprint
from kad.sources import Source
from kad.tracing.tracer import trace_tokens


def forget(name: str) -> None:
    """Make the next import of a module a first one."""
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]


@pytest.mark.parametrize("former", renamed.MODULES)
def test_a_module_is_found_under_its_former_name(former: str) -> None:
    forget(former)
    today = renamed.MODULES[former]
    with pytest.warns(DeprecationWarning, match=rf"{former} is called {today} now".replace(".", r"\.")):
        module = importlib.import_module(former)
    real = importlib.import_module(today)
    public = next((name for name in vars(real) if name[0].isupper() and not name.isupper()), "__name__")
    assert public == "__name__" or getattr(module, public) is getattr(real, public)
    with pytest.raises(AttributeError):
        module.nothing_of_this_name  # noqa: B018


def test_names_that_changed_inside_a_module() -> None:
    for former in ("kad.references", "kad.report", "kad.report.record", "kad.evaluation.identity"):
        forget(former)
    with pytest.warns(DeprecationWarning, match="ModelReference is Source there"):
        from kad.references import ModelReference
    with pytest.warns(DeprecationWarning, match="trace is trace_tokens there"):
        from kad.report.record import trace
    with pytest.warns(DeprecationWarning, match="identity is fingerprint there"):
        from kad.evaluation.identity import identity
    assert (ModelReference, trace, identity) == (Source, trace_tokens, fingerprint)


def test_the_warning_points_at_the_line_that_imports() -> None:
    forget("kad.references")
    with pytest.warns(DeprecationWarning, match="kad.sources") as caught:
        import kad.references  # noqa: F401
    assert caught[0].filename == __file__


def test_kad_itself_uses_no_former_name_and_unknown_modules_stay_unknown() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error', DeprecationWarning)\nimport kad, kad.cli.main, kad.rules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ModuleNotFoundError, match=r"kad\.nothing"):
        importlib.import_module("kad.nothing")
    renamed.install()
    assert sum(isinstance(finder, renamed.Finder) for finder in sys.meta_path) == 1
    assert kad.__version__
