"""An engine of vLLM ends with the API server that started it.

Nothing of vLLM is imported here, so that the watch begins before an engine has loaded anything.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time

# Below vLLM's logger: it has the handlers.
logger = logging.getLogger(f"vllm.{__name__}")

_PARENT_CHECK_SECONDS = 1.0
_NAME = "end with parent"


def end_with_parent() -> None:
    """Have this process end soon after the one that started it, if it is an engine that vLLM started as a process."""
    if not multiprocessing.current_process().name.startswith("EngineCore"):
        return
    known = multiprocessing.parent_process()  # None while the file of the parent's program is read
    parent = os.getppid() if known is None else known.pid
    if any(thread.name == _NAME for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        logger.error("The API server (process %s) is gone; its engine ends.", parent)
        # No orderly end: nobody is left to answer, and the engine may be in the middle of a step.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=_NAME, daemon=True).start()
