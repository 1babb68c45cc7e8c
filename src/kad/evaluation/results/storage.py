"""The run directory: settings, sessions and finished samples on disk. An interrupted run loses and repeats nothing.

    settings.json    what the run is; a resumed run must bring the same
    sessions.jsonl   one line per start: versions, git revision, hardware, command
    samples.jsonl    one line per finished sample, appended with a single write and flushed to the disk

If the process is killed, the last line may be incomplete. Opening the directory removes such a line, and its sample
runs again. A lock on the file `lock` keeps a second run out. The system releases it when the process ends.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from filelock import FileLock, Timeout

from kad.disk import named, write_atomically
from kad.errors import UsageError
from kad.evaluation.results.settings import SCHEMA, Settings

Record = dict[str, Any]


class SampleKey(NamedTuple):
    """What names a sample within a run."""

    method: str
    task: str
    question: str
    sample: int


def key_of(record: Record) -> SampleKey:
    """Which sample a stored record is."""
    return SampleKey(record["method"], record["task"], record["question"], record["sample"])


def check_place(path: Path) -> None:
    """Raise UsageError if a run directory would lie in a pair or in a model."""
    if (path / "config.json").exists():
        raise UsageError(f"{path} is a pair or a model. Choose another --out.")


class RunDirectory:
    """An open run directory: a context manager that holds the lock.

    Raises:
        UsageError: the directory belongs to a run with other settings, is in use, or holds something else.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = settings
        self._lock = FileLock(path / "lock", timeout=0)
        self._samples: Any = None
        self.done: set[SampleKey] = set()

    def __enter__(self) -> Self:
        check_place(self.path)
        self._is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{self.path} is in use by another run. Wait for it, or choose another --out.") from None
        except OSError as error:
            problem = f"Cannot write the run directory {self.path}: {error.strerror}. Choose another --out."
            raise UsageError(problem) from error
        try:
            self._samples = (self.path / "samples.jsonl").open("a+b", buffering=0)
            self._check_settings()
            cut_torn_line(self._samples)
            self.done = {key_of(record) for record in read_samples(self.path)}
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, error: type[BaseException] | None = None, *_: object) -> None:
        if self._samples is not None:
            self._samples.close()
        self._lock.release()
        if error is not None and self._is_new and not self.done:
            shutil.rmtree(self.path, ignore_errors=True)  # nothing came of it

    def log_session(self, session: Record) -> None:
        """Note where and how this start runs."""
        file = self.path / "sessions.jsonl"
        with named(file), file.open("a", encoding="utf-8", newline="\n") as lines:
            lines.write(json.dumps(session) + "\n")

    def append(self, records: Iterable[Record]) -> None:
        """Put finished samples on disk, all with one write; those already there are left alone."""
        new = [record for record in records if key_of(record) not in self.done]
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in new).encode()
        try:
            while data:  # a write may be short, on a full disk for one
                data = data[self._samples.write(data) :]
            os.fsync(self._samples.fileno())
        except OSError as error:
            raise UsageError(
                f"Cannot write {self.path / 'samples.jsonl'}: {error.strerror}. The finished answers are kept; the "
                "same command goes on from there."
            ) from error
        self.done.update(key_of(record) for record in new)

    def _check_settings(self) -> None:
        file = self.path / "settings.json"
        settings = self._settings.to_dict()
        if self.path.joinpath("samples.jsonl").stat().st_size == 0:
            write_atomically(file, json.dumps(settings, indent=2) + "\n")
            return
        if not file.exists():
            raise UsageError(f"{self.path} holds samples without settings.json. Choose another --out.")
        changes = list(differences(read_settings(self.path), settings))
        if changes:
            raise UsageError(
                f"{self.path} belongs to a run with other settings: {'; '.join(changes)}. "
                "Resume with the same settings, or choose another --out."
            )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ, leaf by leaf: "tasks.0.rows was 8, now 9"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, values in enumerate(zip(old, new, strict=True)):
            yield from differences(*values, f"{path}.{index}")
    elif old != new:
        yield f"{path} was {_short(old)}, now {_short(new)}"


def read_samples(path: Path) -> Iterator[Record]:
    """The finished samples of a run directory, a torn last line left out.

    Raises:
        UsageError: a line that is no sample.
    """
    with (path / "samples.jsonl").open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                if b"\0" in line:
                    raise ValueError("it has NUL bytes, as after a crash of the machine")
                record: Record = json.loads(line)
                hash(key_of(record))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UsageError(
                    f"{file.name}, line {number} is no sample of a run ({error}). Take the line out, and its sample "
                    "runs again."
                ) from None
            yield record


def read_settings(path: Path) -> Record:
    """The settings of a run directory.

    Raises:
        UsageError: it is none, its settings are damaged, or another version of kad made it.
    """
    file = path / "settings.json"
    try:
        settings: Record = {**json.loads(file.read_text("utf-8"))}
    except (FileNotFoundError, NotADirectoryError):
        message = f"{path} is no run directory: it has no settings.json. Give the --out of a kad eval."
        raise UsageError(message) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is damaged ({error}). Choose another --out.") from None
    if settings.get("schema") != SCHEMA:
        raise UsageError(
            f"{path} has the schema {settings.get('schema')!r}, but this version of kad reads {SCHEMA!r}. "
            "Use the kad that made it, or choose another --out."
        )
    lacking = [key for key in ("methods", "samples", "tasks", "models") if key not in settings]
    if lacking:
        raise UsageError(f"{file} is damaged (it lacks {', '.join(lacking)}). Choose another --out.")
    return settings


def read_sessions(path: Path) -> list[Record]:
    """Every start of the run, oldest first."""
    file = path / "sessions.jsonl"
    try:
        return [{**json.loads(line)} for line in file.read_text("utf-8").splitlines() if line.endswith("}")]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is damaged ({error}). Delete it: it only says where the run ran.") from error


def cut_torn_line(file: BinaryIO) -> None:
    """Truncate an append-only file of lines behind its last whole line."""
    size = file.seek(0, os.SEEK_END)
    end, block = size, 1 << 16
    while end > 0:
        start = file.seek(max(0, end - block))
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
