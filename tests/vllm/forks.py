"""Functions run in processes of their own. Each is a fork of one that has imported vLLM and done nothing else.

So no engine inherits another's state, and the imports, more than half of the time that a small engine needs, are paid
once.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "kad.engines.vllm.plugin.model",
        "vllm.entrypoints.llm",
        "vllm.model_executor.models.llama",
        "vllm.v1.engine.core",
        "vllm.v1.worker.cpu_model_runner",
        "vllm.v1.worker.cpu_worker",
    ]
)


def engine_environment() -> dict[str, str]:
    """One thread, on any core (bound, engines would share one); little KV cache; the engine in the asking process."""
    return {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run_apart(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None, timeout: int = 900
) -> Any:
    """The result of a function of some module, called in a fork; an AssertionError with its output if it fails."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_call, args=(theirs, log, environment or {}, function, arguments))
        # The first fork starts the process that all are forks of, with these variables: libraries look once.
        with patch.dict(os.environ, engine_environment()):
            process.start()
        theirs.close()
        try:
            ended = ours.poll(timeout)
            result = ours.recv() if ended else None
        except EOFError:
            ended = False
        process.join(30 if ended else 0)
        process.kill()
        process.join()
        assert ended, log.read_text(errors="replace")[-12_000:]
        return result


def _call(
    pipe: Connection, log: Path, environment: Mapping[str, str], function: Callable[..., Any], arguments: Any
) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(engine_environment() | dict(environment))
    try:
        pipe.send(function(*arguments))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise
    finally:
        pipe.close()
