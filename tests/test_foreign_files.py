"""Files of somebody else, damaged: each reader reads them or says what is wrong, in bounded time and memory.

Pair, trace, run folder, header of a GGUF file, task file. Nothing but a `KadError` may come out.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import kad
from kad.engines.llama_cpp.header import read_header
from kad.engines.transformers.loading import load_model
from kad.errors import KadError, PairError
from kad.pair.folder import generation_config, resolve
from kad.pair.gguf import check_gguf
from kad.pair.model_files import load_config, load_tokenizer, tokenizer_of
from kad.pair.sources import Source
from kad.text.ends import Ending
from kad.text.prompts import render
from kad.text.sampling import Sampling, processors
from kad.tracing.schema import Trace

ROOM, SECONDS = 3 << 29, 20
# More of them: KAD_EXAMPLES=1000 python -m pytest tests/test_foreign_files.py
EXAMPLES = int(os.environ.get("KAD_EXAMPLES", "8"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# What stands where something else is expected.
NASTY = [
    None, True, -1, 0, 2**70, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x1b]0;t\x07", "../..",
    "/etc/passwd", "a\0b", "{question}", [], [[]], {}, {"": {}}, {"a": [1]}, ["x"] * 40, [10**12], "[" * 3000,
    "x" * 300_000,
]  # fmt: skip


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Little more memory than there is in use, little time, and no error but a sentence."""

    def too_long(*_: object) -> None:
        raise TimeoutError("a reader hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    old = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.suppress(KadError):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A JSON text of which something is replaced, left out or added; or its bytes are."""
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        return (
            text[:start] + draw(st.sampled_from(["", "[", "}", '"', "\0", "NaN", "9" * 5000, "[" * 9000])) + text[end:]
        )
    value = copy.deepcopy(json.loads(text))
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(value)) or [(value, None)]))
        if key is None:
            break
        if draw(st.booleans()):
            container[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        elif isinstance(container, dict):
            container.pop(key)
            container[draw(st.sampled_from(["x", "kwargs", "rule"]))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        else:
            container.insert(key, copy.deepcopy(draw(st.sampled_from(NASTY))))
    return json.dumps(draw(st.sampled_from([value, value, [value]])))


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "pair"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kad.tiny.path("pair"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    models = {role: {"model": f"tiny:{name}"} for role, name in (("base", "big-base"), ("aligned", "small-aligned"))}
    more = {"vocab_size": 768, "foreign_ids": [5], "base_prompt": {"template": "{question}", "stops": ["x"]}}
    models["base"]["kwargs"] = {"dtype": "float32", "device_map": {"": "cpu"}, "attn_implementation": "eager"}  # type: ignore[assignment]
    (folder / "config.json").write_text(json.dumps(config | models | more | {"reference": None}), encoding="utf-8")
    settings_of = {"eos_token_id": [1], "stop_strings": ["x"], "do_sample": True, "temperature": 0.5, "max_time": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(settings_of), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
)
@MANY
@given(data=st.data())
def test_a_pair(file: str, tmp_path: Path, data: st.DataObject) -> None:
    folder = folder_of(tmp_path)
    path = folder / file
    if file.endswith(".jinja"):
        path.write_text(data.draw(st.text(alphabet="{}%# ifor in()'x.", max_size=40)), encoding="utf-8")
    else:
        path.write_text(data.draw(damaged(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with bounded():
        config = resolve(str(folder))
        config.model_sources()
        tokenizer = tokenizer_of(config)
        own = Sampling().apply(generation_config(config, kad.load().generation_config), 8)
        Ending(own, tokenizer).push(5)
        processors(own, 3)
        render(tokenizer, [{"role": "user", "content": "Hi"}])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trace() -> str:
    made = kad.trace(kad.load(), "Ann has 5 pens.", "She has 5.")
    return made.to_json()


@MANY
@given(data=st.data())
def test_a_trace(trace: str, data: st.DataObject) -> None:
    text = data.draw(damaged(trace))
    with bounded():
        read = Trace.from_json(text)
        Console(file=open("/dev/null", "w"), width=100).print(read.in_terminal(True))  # noqa: SIM115
        read.to_html()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval")
    from kad.evaluation.evaluate import Plan, evaluate
    from kad.evaluation.methods import parse_methods
    from kad.pair.sources import Source

    models = {"base": Source.parse("tiny:big-base"), "aligned": Source.parse("tiny:small-aligned")}
    folder = tmp_path_factory.mktemp("run") / "run"
    evaluate(Plan(models=models, methods=tuple(parse_methods("aligned;dual")), tasks=("kad_tiny",), limit=2), folder)
    return folder


@pytest.mark.parametrize("file", ["settings.json", "samples.jsonl", "sessions.jsonl"])
@MANY
@given(data=st.data())
def test_a_run(file: str, run: Path, tmp_path: Path, data: st.DataObject) -> None:
    from kad.evaluation.results.tables import build_report, markdown, terminal_table

    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    lines = (folder / file).read_text(encoding="utf-8").splitlines() if file.endswith("l") else []
    if lines:
        lines[0] = data.draw(damaged(lines[0]))
        (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        (folder / file).write_text(data.draw(damaged((folder / file).read_text(encoding="utf-8"))), encoding="utf-8")
    with bounded():
        report = build_report([folder])
        Console(file=open("/dev/null", "w"), width=100).print(terminal_table(report.rows, 100))  # noqa: SIM115
        markdown(report.rows)
        json.dumps(report.to_dict())


def gguf(fields: dict[str, tuple[int, bytes]], tensors: int = 0) -> bytes:
    """A header: the type and the value of each field."""
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields))
    for name, (kind, value) in fields.items():
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value
    return head


def texts(*words: str) -> bytes:
    return struct.pack("<IQ", 8, len(words)) + b"".join(struct.pack("<Q", len(word)) + word.encode() for word in words)


FIELDS = {
    "general.architecture": (8, struct.pack("<Q", 5) + b"llama"),
    "llama.block_count": (4, struct.pack("<I", 2)),
    "llama.embedding_length": (4, struct.pack("<I", 8)),
    "llama.attention.head_count": (4, struct.pack("<I", 2)),
    "llama.context_length": (4, struct.pack("<I", 64)),
    "general.file_type": (4, struct.pack("<I", 0)),
    "tokenizer.ggml.tokens": (9, texts("a", "b", "c")),
}


@settings(MANY, max_examples=4 * EXAMPLES)
@given(data=st.data())
def test_a_header_of_gguf(tmp_path: Path, data: st.DataObject) -> None:
    pytest.importorskip("gguf")
    whole = bytearray(gguf(FIELDS) + bytes(64))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, len(whole) - 9))
        whole[place : place + 8] = data.draw(
            st.sampled_from([b"\xff" * 8, bytes(8), struct.pack("<Q", 2**60), struct.pack("<Q", 2**31), b"\x09" * 8])
        )[: data.draw(st.integers(1, 8))]
    path = tmp_path / "x.gguf"
    path.write_bytes(
        bytes(whole[: data.draw(st.integers(4, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    )
    with bounded():
        read_header(path)


@pytest.mark.parametrize(
    "field",
    [
        struct.pack("<IQ", 4, 2**60),  # a list of 2^60 numbers
        struct.pack("<IQ", 8, 2**60),  # of texts
        struct.pack("<IQ", 9, 2**60),  # of lists
        struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2**60),  # a text of 2^60 bytes
        struct.pack("<IQ", 77, 2),  # of nothing that is known
    ],
)
def test_a_header_that_promises_more_than_the_file_holds(field: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(FIELDS))
    check_gguf(path)
    path.write_bytes(gguf({**FIELDS, "tokenizer.ggml.scores": (9, field)}) + bytes(100))
    for read in (check_gguf, read_header, lambda place: kad.load(base=str(place), aligned=str(place))):
        with pytest.raises(PairError, match="x.gguf"):
            read(path)


def test_a_header_of_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers downloads such a file itself, and reads it then."""
    home = tmp_path / "models--a--b"
    place = home / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    (place / "x.gguf").write_bytes(gguf({**FIELDS, "a": (9, struct.pack("<IQ", 4, 1 << 60))}) + bytes(100))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = Source("a/b", None, {"gguf_file": "x.gguf", "cache_dir": str(tmp_path)})
    for read in (load_model, load_tokenizer, load_config):
        with pytest.raises(PairError, match=r"x\.gguf is damaged: it has a list of 1152921504606846976 entries"):
            read(source)


TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["x"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@MANY
@given(data=st.data())
def test_a_task(tmp_path: Path, data: st.DataObject) -> None:
    pytest.importorskip("lm_eval")
    from kad.evaluation.tasks.task import chat_renderer, load_tasks

    folder = tmp_path / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n', encoding="utf-8")
    start = data.draw(st.integers(12, len(TASK)))
    piece = data.draw(
        st.sampled_from(["", "{{", "{% if", "[", "}", "*", "&a", "!x", "\t", ": ", "{{x}}", "{{1/0}}", "null"])
    )
    text = TASK[:start] + piece + TASK[start + data.draw(st.integers(0, 12)) :]
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    # A damaged path may name the working folder, in which Datasets then looks for files.
    with contextlib.chdir(folder), bounded():
        (task,) = load_tasks(["own"], include_path=folder)
        (question,) = task.questions(chat_renderer(tokenizer_of(resolve("tiny"))))
        task.mark(question.document, ["2"])
