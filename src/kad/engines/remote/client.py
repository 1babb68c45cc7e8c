"""Requests to one server: JSON over HTTP, with a limit of time and of size. What fails is asked again.

No request changes anything on the server, so asking again is safe. A redirection is not followed and no proxy is asked:
the key goes to the server that the user named, and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kad.errors import OptionError, ServerError, first_line

KEY = "KAD_BASE_API_KEY"
SECONDS = "KAD_BASE_SECONDS"
"""The environment variables with the server's key, and with the longest time that one request may take."""
_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts; each is twice as long as the one before
_SMALLEST_LIMIT = 1 << 20  # bytes of an answer that is always read
_BUSY = (408, 425, 429)


class Refused(Exception):
    """The server answered that it does not do what it was asked.

    Attributes:
        status: the status of HTTP.
        text: what it says, in one line.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


@dataclass
class Traffic:
    """What went over the network: requests, and bytes of their bodies in both directions."""

    requests: int = 0
    sent: int = 0
    received: int = 0


class Client:
    """Asks one server. Several threads may ask at once: each has a connection of its own, which stays open.

    Args:
        url: the address that the user named.
        seconds: the longest time that one request may take, with all its attempts. None: KAD_BASE_SECONDS, else 60.

    Attributes:
        traffic: what went over the network.

    Raises:
        OptionError: KAD_BASE_SECONDS is no number of seconds.
    """

    def __init__(self, url: str, seconds: float | None = None) -> None:
        parts = urlsplit(url)
        self.host, self._path = parts.netloc, parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._idle: list[http.client.HTTPConnection] = []
        self._seconds = _seconds() if seconds is None else seconds
        key = os.environ.get(KEY)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.traffic = Traffic()

    def ask(self, path: str, body: Any = None, *, limit: int = _SMALLEST_LIMIT, patient: bool = True) -> Any:
        """The JSON that the server answers with.

        Args:
            path: below the address; "/../x" is beside its last part.
            body: what to send. None asks with GET.
            limit: the most bytes to read.
            patient: whether to ask again when something fails.

        Raises:
            ServerError: no answer in time, or none that is JSON.
            Refused: the server says no.
        """
        sent = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        place = f"{self._path.rpartition('/')[0]}{path.removeprefix('/..')}" if path.startswith("/../") else None
        deadline, pause = time.monotonic() + self._seconds, _FIRST_PAUSE
        while True:
            try:
                return self._once(place or self._path + path, sent, max(limit, _SMALLEST_LIMIT), deadline)
            except _Again as error:
                wait = max(pause, error.wait)
                if not patient or time.monotonic() + wait >= deadline:
                    raise ServerError(f"The base model's server {self.host} {error}. Is it running?") from error
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, path: str, sent: bytes | None, limit: int, deadline: float) -> Any:
        left = deadline - time.monotonic()
        with suppress(IndexError):  # another thread may take the last one
            return self._answer(self._idle.pop(), path, sent, limit, left, kept=True)
        return self._answer(self._kind(self.host, timeout=left), path, sent, limit, left)

    def _answer(
        self, connection: Any, path: str, sent: bytes | None, limit: int, left: float, kept: bool = False
    ) -> Any:
        """One attempt. A connection that the server has closed meanwhile is replaced."""
        watch = _Watch(connection, left)
        try:
            connection.request("GET" if sent is None else "POST", path, sent, self._headers)
            response = connection.getresponse()
            raw = response.read(limit + 1)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            connection.close()
            if kept and not watch.over:
                return self._answer(self._kind(self.host, timeout=left), path, sent, limit, left)
            if watch.over or isinstance(error, TimeoutError):
                raise _Again(f"gave no answer in {self._seconds:g} seconds") from error
            raise _Again(f"cannot be asked: {first_line(error)}") from error
        finally:
            watch.end()
        self.traffic.requests += 1
        self.traffic.sent += len(sent or b"")
        self.traffic.received += len(raw)
        if len(raw) > limit:
            connection.close()
            raise ServerError(f"The server {self.host} sends more than {limit:,} bytes for one answer.")
        if response.isclosed() and not response.will_close:
            self._idle.append(connection)
        else:
            connection.close()
        return _checked(response, raw)


def _checked(response: http.client.HTTPResponse, raw: bytes) -> Any:
    """The JSON of an answer.

    Raises:
        Refused: the server says no.
        _Again: it says to come again, or the JSON is not whole.
    """
    if response.status in _BUSY or response.status >= 500:
        raise _Again(f"answers {response.status}: {_said(raw)}", _retry_after(response))
    if response.status != 200:
        raise Refused(response.status, _said(raw))
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Again(f"answers with what is no JSON: {first_line(error)}") from error


class _Again(Exception):
    """An attempt that failed, and may be repeated after so many seconds."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


@dataclass
class _Watch:
    """Ends a connection after so many seconds, whatever it is at. A server that drips would else never be late."""

    connection: Any
    seconds: float
    over: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._timer = threading.Timer(self.seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        self.over = True
        socket = self.connection.sock
        with suppress(OSError, AttributeError):
            socket.shutdown(2)

    def end(self) -> None:
        self._timer.cancel()


def _seconds() -> float:
    text = os.environ.get(SECONDS)
    try:
        value = _SECONDS if not text else float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 86_400.0:
        raise OptionError(f"{SECONDS} is a number of seconds, at most a day, but is {text!r}.")
    return value


def _said(raw: bytes) -> str:
    """What a server says of its refusal, short and in one line."""
    text = raw[:2000].decode(errors="replace")
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        plain = json.loads(raw)
        error = plain.get("error", plain)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(text.split())[:300] or "nothing"


def _retry_after(response: http.client.HTTPResponse) -> float:
    with suppress(TypeError, ValueError):
        return min(max(float(response.headers.get("Retry-After", "")), 0.0), _LONGEST_PAUSE)
    return 0.0
