"""An engine of vLLM ends with the server that started it, from its first moment on. It needs no vLLM to show that."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

# The server's main module is that of `python -m kad.engines.vllm.launch`; the engine is a process that only sleeps.
SERVER = """
import importlib.util, multiprocessing, sys, time
sys.modules["__main__"].__spec__ = importlib.util.find_spec("kad.engines.vllm.launch")
engine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(120,), name="EngineCore")
engine.start()
print(engine.pid, flush=True)
engine.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux")
def test_an_engine_that_is_only_starting_ends_with_its_server() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        time.sleep(1)
        server.kill()
    for _ in range(200):
        if not lives(engine):
            return
        time.sleep(0.1)
    pytest.fail("the engine is left behind")


def lives(process: int) -> bool:
    """Whether a process runs. One that ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
