"""A real server, started as a user starts one: `kad serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from openai import OpenAI

# A start takes half a minute on an idle machine; a busy one may need many times as long.
_READY_SECONDS = 1800


class Server:
    """`with Server(pair, "--option", ...) as server:` serves until the block is left."""

    def __init__(self, pair: str, log: Path, environment: dict[str, str], *options: str) -> None:
        self.port = _free_port()
        self.log = log
        self._command = [str(Path(sys.executable).parent / "kad"), "serve", pair, "--port", str(self.port), *options]
        self._environment = os.environ | environment

    def __enter__(self) -> Server:
        # The log's file is the process's from here on.
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"The server did not start:\n{self.log.read_text()[-8000:]}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        family = self.family() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for left in family:
            if left.is_running():
                left.kill()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=120, **options)

    def metric(self, name: str) -> float:
        """The sum over a metric's labels."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def family(self) -> list[psutil.Process]:
        """The server's processes: the front end, the engine, its workers."""
        front = psutil.Process(self.process.pid)
        return [front, *front.children(recursive=True)]

    def memory(self) -> int:
        """Bytes of memory of all its processes; shared pages count for each."""
        return sum(process.memory_info().rss for process in self.family())

    def engine(self) -> psutil.Process:
        """The process that runs the models."""
        return next(
            process for process in self.family() if "EngineCore" in " ".join([process.name(), *process.cmdline()])
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
