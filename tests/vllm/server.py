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

    def __init__(
        self, pair: str, log: Path, environment: dict[str, str], *options: str, port: int | None = None
    ) -> None:
        self.port = free_port() if port is None else port
        self.log = log
        self._command = [str(Path(sys.executable).parent / "kad"), "serve", pair, "--port", str(self.port), *options]
        self._environment = os.environ | environment

    def __enter__(self) -> Server:
        self.start()
        self.wait_until_it_serves()
        return self

    def start(self) -> None:
        # The log's file is the process's from here on.
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"The server did not start:\n{self.log.read_text()[-8000:]}")
            time.sleep(0.5)

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

    def metric(self, name: str, rule: str | None = None) -> float:
        """The sum over a metric's labels, or over those with this rule."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        label = "" if rule is None else f'rule="{rule}"'
        found = [line for line in lines if line.startswith((f"{name}{{", f"{name} ")) and label in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def family(self) -> list[psutil.Process]:
        """The server's processes: the front end, the engine, its workers."""
        return family(self.process.pid)

    def memory(self) -> int:
        return memory(self.process.pid)

    def engine(self) -> psutil.Process:
        """The process that runs the models."""
        engine = self.named("EngineCore")
        assert engine is not None
        return engine

    def named(self, name: str) -> psutil.Process | None:
        """Of its processes the one with this in its name ("EngineCore", "Worker"); None while there is none yet."""
        found = (process for process in self.family() if name in " ".join([process.name(), *process.cmdline()]))
        return next(found, None)


def family(server: int) -> list[psutil.Process]:
    """A process, by its number, and those that it has started."""
    front = psutil.Process(server)
    return [front, *front.children(recursive=True)]


def memory(server: int) -> int:
    """Bytes of memory of a process and of those that it has started; shared pages count for each."""
    return sum(process.memory_info().rss for process in family(server))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
