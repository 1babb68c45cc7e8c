"""kad's own server under load and under attack: nothing lost, nothing dead, no page of another origin."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from test_foreign_files import EXAMPLES, MANY, bounded, damaged
from test_text import TableEngine
from test_text_prompts import in_the_manner_of_sentencepiece

pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')

from benchmarks.server_clients import everybody, question

from kad.cli.main import app
from kad.errors import UsageError
from kad.server.connections import server_of
from kad.server.desk import AnswerJob, Desk
from kad.server.listening import Listening
from kad.server.playground_app import Playground
from kad.server.refusals import Busy
from kad.text.contexts import Context
from kad.text.conversation import WarmScorers
from server_runs import client, events, running, serving, until

ASKED = {"model": "pair", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 1.0}
CHAT = "/v1/chat/completions"


class Gated(TableEngine):
    """A pair whose answers wait at a gate, so that a test decides when each forward pass happens."""

    def __init__(self) -> None:
        super().__init__("dual:threshold=0.4", vocab=96)
        self.gate = threading.Semaphore(0)
        self.begun: list[str] = []
        self.passes = 0

    def scorers(self, roles: Any) -> Any:
        return {role: _Waiting(self, role) for role in roles}

    def open(self, passes: int = 1_000_000) -> None:
        self.gate.release(passes)


class _Waiting:
    """A scorer that waits, answers with logits of its role, and cannot be kept."""

    reversible = False

    def __init__(self, engine: Gated, role: str) -> None:
        self._engine, self.processed = engine, 0
        self._logits = torch.randn(95, generator=torch.Generator().manual_seed(len(role)))

    def advance(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        if self.processed == 0:
            self._engine.begun.append(self._engine.tokenizer.decode(ids.tolist()))
        self._engine.gate.acquire()
        self._engine.passes += 1
        self.processed += len(ids)
        return self._logits.expand(keep, -1)

    def rollback(self, length: int) -> None:
        self.processed = min(self.processed, length)

    def release(self) -> None:
        pass


@pytest.fixture
def gated() -> Iterator[Gated]:
    engine = Gated()
    yield engine
    engine.open()


@pytest.fixture(scope="module")
def pair() -> kad.KadForCausalLM:
    pair = kad.KadForCausalLM.from_models(make_model(0, hidden=48, layers=3), make_model(1), rule="dual:threshold=0.2")
    pair.tokenizer = make_tokenizer()
    return pair


# ------------------------------------------------------------------------------------------------------------- the line


def _job(model: Any, prompt: str, new_tokens: int = 3) -> AnswerJob:
    ids = model.tokenizer(prompt).input_ids
    sampling = kad.Sampling(max_new_tokens=new_tokens, temperature=1.0, seed=0)
    return AnswerJob(Context.of(ids), model.composition, sampling, num_draft_tokens=0)


async def _all(desk: Desk, job: AnswerJob) -> int:
    async with desk.answering(job) as run:
        return len([piece async for piece in run])


def test_who_comes_first_is_answered_first(gated: Gated) -> None:
    async def ask() -> list[int]:
        desk = Desk(gated)
        tasks = []
        for name in "abcd":
            tasks.append(asyncio.create_task(_all(desk, _job(gated, name))))
            await asyncio.sleep(0)
        gated.open()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [3, 3, 3, 3]
    assert [text for n, text in enumerate(gated.begun) if text not in gated.begun[:n]] == list("abcd")


def test_who_goes_away_is_not_waited_for(gated: Gated) -> None:
    """One leaves while it is answered and ends after its next token, one leaves while it waits and never begins."""

    async def ask() -> None:
        desk = Desk(gated)
        first = asyncio.create_task(_all(desk, _job(gated, "a", 400)))
        second = asyncio.create_task(_all(desk, _job(gated, "b", 400)))
        third = asyncio.create_task(_all(desk, _job(gated, "c")))
        await asyncio.sleep(0.05)
        for task in (first, second):
            task.cancel()
        await asyncio.sleep(0.05)
        gated.open()
        assert await third == 3
        assert first.cancelled()
        assert second.cancelled()

    asyncio.run(ask())
    assert set(gated.begun) == {"a", "c"}
    assert gated.passes < 20


def test_the_line_is_bounded(gated: Gated) -> None:
    desk = Desk(gated, most_requests=2)
    with desk.admitted(), desk.admitted(), pytest.raises(Busy), desk.admitted():
        pass
    with desk.admitted():
        assert desk.requests == 1
    with running(gated, max_requests=1) as address, client(address) as http:
        first = threading.Thread(target=lambda: http.post(CHAT, json=ASKED))
        first.start()
        until(lambda: gated.begun)
        refused = http.post(CHAT, json=ASKED)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "in the line" in refused.json()["error"]["message"]
        assert http.post(CHAT, json={**ASKED, "temperature": -1}).status_code == 400  # a bad one needs no place
        gated.open()
        first.join()
        assert http.post(CHAT, json=ASKED).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(gated: Gated, stream: bool) -> None:
    with running(gated, max_requests=1) as address, client(address) as http:
        with hung(address, {**ASKED, "max_tokens": 400, "stream": stream}) as raw:
            until(lambda: gated.begun)
            gated.open(6)
            if stream:
                assert b"200 OK" in raw.recv(4096)
        until(lambda: http.get("/v1/models/pair").json()["kad"]["waiting"] == 0)
        gated.open()
        assert http.post(CHAT, json=ASKED).status_code == 200
        assert gated.passes < 60


def test_work_before_the_line_is_counted_and_ends_with_its_client(gated: Gated) -> None:
    """Prompts that take long, whose clients hang up: the one under way is finished, the others never begin."""
    template, rendered = gated.tokenizer.apply_chat_template, list[Any]()

    def slow(conversation: Any, **options: Any) -> Any:
        rendered.append(conversation)
        if conversation[0]["content"] == "slow":
            gated.gate.acquire()
        return template(conversation, **options)

    gated.tokenizer.apply_chat_template = slow
    with running(gated, max_requests=5) as address, client(address) as http:

        def waiting() -> int:
            return http.get("/v1/models/pair").json()["kad"]["waiting"]

        lines = [hung(address, ASKED | {"messages": [{"role": "user", "content": "slow"}]}) for _ in range(5)]
        until(lambda: waiting() == 5)
        assert http.post(CHAT, json=ASKED).status_code == 429
        for line in lines:
            line.close()
        until(lambda: waiting() == 0)
        gated.open()
        assert http.post(CHAT, json=ASKED).status_code == 200
    assert [said[0]["content"] for said in rendered] == ["slow", "Hello"]


def hung(address: str, body: dict[str, Any], source: str = "127.0.0.1") -> socket.socket:
    """A connection on which a request was sent, and nothing read."""
    host, port = address.removeprefix("http://").split(":")
    line, text = socket.create_connection((host, int(port)), 30, (source, 0)), json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    line.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return line


def test_a_failing_model_ends_its_request_and_nothing_else(
    pair: kad.KadForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(pair) as address, client(address) as http:
        good = http.post(CHAT, json={**ASKED, "seed": 1}).json()["choices"]
        wrong = pair.base.lm_head.weight.data.clone()
        pair.base.lm_head.weight.data.fill_(torch.nan)
        for stream in (False, True):
            failed = http.post(CHAT, json={**ASKED, "seed": 1, "stream": stream})
            assert failed.status_code == 500
            assert "could not answer" in failed.json()["error"]["message"]
        pair.base.lm_head.weight.data.copy_(wrong)
        assert http.post(CHAT, json={**ASKED, "seed": 1}).json()["choices"] == good


def test_kept_scorers_are_those_that_know_most_of_the_prompt(pair: kad.KadForCausalLM) -> None:
    kept, roles = WarmScorers(most=2), ("base", "aligned")
    for text in ("abcd", "abxy"):
        stream = kad.stream(pair, text, raw=True, sampling=kad.Sampling(temperature=0, max_new_tokens=2))
        stream.finish()
        kept.keep(stream.loop)
    ids = pair.tokenizer("abcdef").input_ids
    taken = kept.take(ids, roles)
    assert {scorer.processed for scorer in taken.values()} == {4}
    assert {scorer.processed for scorer in kept.take(ids, roles).values()} == {2}  # "abxy", as the other is given away
    assert kept.take(ids, roles) == {}
    kept.keep(stream.loop)
    assert kept.take(ids, (*roles, "reference")) == {}


# ------------------------------------------------------------------------------------------------------ the connections


def test_a_connection_that_asks_nothing_is_closed(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a head that never ends keep it open, nor one that comes byte by byte, before or after an answer."""
    for wait in ("ASK", "KEEP"):
        monkeypatch.setattr(f"kad.server.connections._SECONDS_TO_{wait}", 0.5)
    with running(gated) as address:
        host, port = address.removeprefix("http://").split(":")
        health = f"GET /health HTTP/1.1\r\nHost: {host}\r\n".encode()
        for sent in (b"", b"G", health, health + b"\r\n" + health):
            with socket.create_connection((host, int(port)), timeout=20) as line:
                line.sendall(sent)
                begun, answer = time.monotonic(), bytearray()
                with suppress(ConnectionError):
                    while part := line.recv(4096):
                        answer += part
                        line.sendall(b"x" if sent else b"")
                        time.sleep(0.05)
                assert time.monotonic() - begun < 15
                assert answer.count(b"200 OK") == sent.endswith(b"\r\n" + health)
        with hung(address, {**ASKED, "max_tokens": 1}) as line:
            time.sleep(1)  # a request may wait for its answer
            gated.open()
            assert b"200 OK" in line.recv(4096)


def test_connections_are_bounded_and_the_others_are_answered(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bound, file descriptors end, and the server does nothing but say so."""
    monkeypatch.setattr("kad.server.connections._MORE", 4)
    with running(gated, max_requests=4) as address, client(address) as http:
        host, port = address.removeprefix("http://").split(":")
        lines = [socket.create_connection((host, int(port)), timeout=5) for _ in range(40)]
        until(lambda: sum(_closed(line) for line in lines) == 32)
        for line in lines:
            line.close()
        assert http.get("/health").status_code == 200


def test_an_answer_does_not_wait_for_the_clients_system(gated: Gated) -> None:
    """Small writes that are held back until the last one is acknowledged come 40 ms late."""
    with running(gated) as address, client(address) as http:
        http.get("/health")
        seconds = []
        for _ in range(20):
            begun = time.perf_counter()
            http.get("/health")
            seconds.append(time.perf_counter() - begun)
    assert min(seconds[2:]) < 0.03


def _closed(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_one_address_cannot_take_all_places(gated: Gated) -> None:
    with running(gated, max_requests=4, host="0.0.0.0") as address, client(address) as http:
        lines = [hung(address, ASKED) for _ in range(2)]
        until(lambda: gated.begun)
        assert http.post(CHAT, json=ASKED).status_code == 429
        for line in lines:
            line.close()
        until(lambda: http.get("/health").status_code == 200)
        with hung(address, ASKED, source="127.0.0.2") as other:
            gated.open()
            assert b"200 OK" in other.recv(4096)


def test_who_closes_half_of_a_connection_gets_the_answer(gated: Gated) -> None:
    with running(gated) as address, hung(address, ASKED) as line:
        line.shutdown(socket.SHUT_WR)
        time.sleep(1.5)
        gated.open()
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    *before, head, body = answer.split(b"\r\n\r\n")
    assert set(before) == {b"HTTP/1.1 100 Continue"}
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(body)["choices"][0]["message"]["content"]


def test_a_server_that_is_stopped_says_so_to_all(gated: Gated) -> None:
    """A stream under way ends with an event, and who waits gets status 503; nobody waits for the models."""
    with running(gated) as address:
        stream = hung(address, {**ASKED, "max_tokens": 400, "stream": True})
        gated.open(8)
        assert b"200 OK" in stream.recv(4096)
        waiting = [hung(address, {**ASKED, "stream": stream}) for stream in (True, False)]
        with client(address) as http:
            until(lambda: http.get("/v1/models/pair").json()["kad"]["waiting"] == 3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.5
    answers = [b"".join(iter(lambda line=line: line.recv(4096), b"")) for line in (stream, *waiting)]
    assert answers[0].rstrip(b"\r\n0").endswith(b'"code":"stopped"}}')
    assert [answer.startswith(b"HTTP/1.1 503 ") for answer in answers] == [False, True, True]


def test_pages_of_the_server_are_neither_guessed_at_nor_framed(pair: kad.KadForCausalLM) -> None:
    with running(pair) as address, client(address) as http:
        for path in ("/health", "/v1/models", "/no"):
            headers = http.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "frame-ancestors 'none'"


# -------------------------------------------------------------------------------------------------------- fifty clients


@pytest.mark.slow
def test_fifty_clients_with_bad_requests_and_disconnects(pair: kad.KadForCausalLM) -> None:
    """Every good request gets the text of its seed, every bad one a 4xx, and what was left unfinished is forgotten."""
    truth = []
    for number in range(50):
        how = kad.Sampling(seed=number, temperature=1.0, max_new_tokens=4)
        truth.append(kad.generate(pair, question(number), sampling=how).text)
    with running(pair, max_requests=200) as address:
        assert asyncio.run(everybody(address, "pair", 50, 4, seed=0)) == truth
        tensors = _tensors()
        assert asyncio.run(everybody(address, "pair", 50, 4, seed=1)) == truth
        # Whatever the last two answers keep may differ in size; 50 answers that stayed would be thousands of tensors.
        assert _tensors() <= tensors + 100
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("kad-")])


def _tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


# ------------------------------------------------------------------------------------------------------------ the guard


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_that_begins_the_answer_is_not_shown(stream: bool) -> None:
    """A tokenizer like SentencePiece does not write the space before the first word of a text."""
    small = {"hidden": 8, "layers": 1, "vocab": 11}
    model = kad.KadForCausalLM.from_models(make_model(0, **small), make_model(1, **small), rule="dual:threshold=0.2")
    model.tokenizer = in_the_manner_of_sentencepiece()
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model.generation_config.suppress_tokens = [*range(7), 9, 10]  # what is left begins with a space
    with running(model) as address, client(address) as http:
        body = {
            "model": "pair",
            "messages": [{"role": "user", "content": "cd"}],
            "temperature": 0,
            "stop": [" a", " b"],
            "stream": stream,
            "max_tokens": 9,
        }
        response = http.post("/v1/chat/completions", json=body)
        if stream:
            choices = [event["choices"][0] for event in events(response)[:-1] if event["choices"]]
            shown, reason = "".join(c["delta"].get("content") or "" for c in choices), choices[-1]["finish_reason"]
        else:
            choice = response.json()["choices"][0]
            shown, reason = choice["message"]["content"], choice["finish_reason"]
    assert (shown, reason) == ("", "stop")


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/pair", "/openapi.json", CHAT])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_a_page_of_another_origin_cannot_use_the_server(gated: Gated, origin: str, path: str) -> None:
    with running(gated) as address, client(address, headers={"Origin": origin}) as http:
        for method in ("GET", "POST", "OPTIONS"):
            # text/plain needs no leave of the server: it is what such a page would send.
            body = {"content": json.dumps(ASKED), "headers": {"Content-Type": "text/plain"}} if method == "POST" else {}
            refused = http.request(method, path, **body)
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers
    assert gated.begun == []


def test_the_servers_own_page_can_use_it(pair: kad.KadForCausalLM) -> None:
    with running(pair) as address, client(address, headers={"Origin": address}) as http:
        assert http.post(CHAT, json=ASKED).status_code == 200


def test_an_allowed_origin_can_use_the_server(pair: kad.KadForCausalLM) -> None:
    with running(pair, cors=("http://ui.example",)) as address, client(address) as http:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        allowed = http.options(CHAT, headers={"Origin": "http://ui.example", **ask})
        assert allowed.headers["access-control-allow-origin"] == "http://ui.example"
        answered = http.post(CHAT, json=ASKED, headers={"Origin": "http://ui.example"})
        assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (200, "http://ui.example")
        refused = http.post(CHAT, json=ASKED, headers={"Origin": "http://evil.example"})
        assert refused.status_code == 403


def test_a_name_that_points_here_is_not_answered(pair: kad.KadForCausalLM) -> None:
    """DNS rebinding: the name of another page with the address of this machine."""
    with running(pair) as address, client(address) as http:
        port = address.rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", "", "localhost.evil.example"):
            assert http.get("/v1/models", headers={"Host": host}).status_code in (400, 403)
        for host in ("localhost", f"LOCALHOST:{port}", f"[::1]:{port}", f"127.0.0.1:{port}"):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_the_key(pair: kad.KadForCausalLM) -> None:
    with running(pair, api_key="kéy") as address, client(address) as http:
        key = "kéy".encode()
        for value in (None, b"", b"Bearer", b"Bearer key", b"Basic " + key, b"Bearer " + key + b"x", key):
            headers = {} if value is None else {b"Authorization": value}
            for path in ("/v1/models", "/v1/models/pair", "/openapi.json", "/no", "/"):
                assert http.get(path, headers=headers).status_code == 401
        assert http.get("/v1/models", headers={b"Authorization": b"Bearer " + key}).status_code == 200
        assert http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("command", [("serve", "tiny"), ("serve", "tiny", "--dry-run"), ("playground",)])
def test_an_empty_key_is_an_error(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes --api-key "$KEY" wants one."""
    monkeypatch.setattr("uvicorn.Server.run", lambda *arguments, **options: None)
    done = CliRunner().invoke(app, [*command, "--api-key", ""])
    assert (done.exit_code, "--api-key is empty. Give a key" in done.stderr) == (2, True)
    monkeypatch.setenv("KAD_API_KEY", " ")
    done = CliRunner().invoke(app, [*command])
    assert (done.exit_code, "KAD_API_KEY is empty. Give a key" in done.stderr) == (2, True)


def test_a_code_gets_the_key_once() -> None:
    """Neither a wrong code, nor another page, nor a second try gets it."""

    def make() -> Any:
        raise UsageError("nothing is asked of the models")

    playground = Playground(make, lambda error: None, Listening(api_key="sésame"), "tiny", "c0de")
    with serving(server_of(playground)) as address, httpx.Client(base_url=address, trust_env=False) as http:
        assert http.get("/key").status_code == 403
        for code, origin in (("", address), ("c0d", address), ("c\u00f6de", address), ("c0de", "http://evil.example")):
            refused = http.post("/key", content=code.encode(), headers={"Origin": origin})
            assert (refused.status_code, "sésame" in refused.text) == (403, False)
        taken = http.post("/key", content="c0de", headers={"Origin": address})
        assert (taken.json(), taken.headers["cache-control"]) == ({"key": "sésame"}, "no-store")
        assert http.post("/key", content="c0de").status_code == 403


@pytest.mark.parametrize("browser", ["--browser", "--no-browser"])
def test_the_key_is_on_no_command_line_of_a_browser(browser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, codes = list[str](), list[str]()
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("kad.server.playground_app.run", lambda *arguments: codes.append(arguments[-1]))
    monkeypatch.setenv("KAD_API_KEY", "sesame")
    done = CliRunner().invoke(app, ["playground", browser, "--port", "0"])
    assert done.exit_code == 0, done.stderr
    assert "sesame" not in done.output + "".join(opened)
    assert len(codes[0]) > 20
    (address,) = opened or [done.stderr.split(" is at ")[1].split()[0]]
    assert address.endswith(f"/#code={codes[0]}")


def test_a_body_that_is_too_large_is_not_read(pair: kad.KadForCausalLM) -> None:
    with running(pair) as address, client(address) as http:
        text = "x" * (5 << 20)
        assert http.post(CHAT, content=text).status_code == 413
        assert http.post(CHAT, content=iter([text[: 1 << 20].encode()] * 5)).status_code == 413
        assert http.get("/health").status_code == 200


# ----------------------------------------------------------------------------------------------------------------- fuzz


LIKE_OPENAI = {
    "model": "pair", "max_tokens": 2, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "n": 2,
    "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"5": 3.0},
    "stop": ["x", "yz"], "rule": {"rule": "dual", "threshold": 0.3}, "deferral_temperature": 1.5, "num_draft_tokens": 2,
    "base_prompt": {"template": "{system}Q: {question}\nA:", "stops": ["\nQ:"], "ends": "rule",
                    "examples": [{"question": "a", "answer": "b"}]},
    "user": "me",
}  # fmt: skip
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
SHAPE = {"type": "object", "properties": {"a": {"enum": ["x", 1]}}, "required": ["a"], "additionalProperties": False}
GOOD = {
    "chat": (CHAT, {**LIKE_OPENAI, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
    "schema": (
        CHAT,
        {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE}}},
    ),
    "stream": (
        CHAT,
        {**LIKE_OPENAI, **STREAM, "messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": True}},
    ),
    "kad": (CHAT, {**ASKED, **STREAM, "kad": {"of": "composed", "continuation": [5, 6]}}),
    "text": ("/v1/completions", {**LIKE_OPENAI, "prompt": ["Hi", "Ho"], "logprobs": 2}),
    "ids": ("/v1/completions", {**ASKED, "messages": None, "prompt": [5, 6], "vllm_xargs": {"rule": "base_only"}}),
}


@pytest.fixture(scope="module")
def attacked(tiny: kad.KadForCausalLM) -> Iterator[str]:
    with running(tiny) as address:
        yield address


def _damaged_requests(address: str, kind: str, data: st.DataObject) -> None:
    """An answer or a refusal, in bounded time and memory; and the next one is answered."""
    path, good = GOOD[kind]
    text = data.draw(damaged(json.dumps(good)))
    with bounded(), client(address, headers={"Content-Type": "application/json"}) as http:
        got = http.post(path, content=text.encode("utf-8", "surrogatepass"))
        assert got.status_code in (200, 400, 404), (text[:500], got.text)
        assert len(got.content) < 1 << 20
        if got.headers["content-type"].startswith("text/event-stream"):
            assert not [part for part in events(got) if "error" in part]
        elif got.status_code != 200:
            assert set(got.json()["error"]) == {"message", "type", "param", "code"}
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_request_is_answered(attacked: str, kind: str) -> None:
    path, good = GOOD[kind]
    with client(attacked) as http:
        answer = http.post(path, json={key: value for key, value in good.items() if value is not None})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", GOOD)
@MANY
@given(data=st.data())
def test_a_damaged_request(attacked: str, kind: str, data: st.DataObject) -> None:
    _damaged_requests(attacked, kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GOOD)
@settings(MANY, max_examples=20 * EXAMPLES)
@given(data=st.data())
def test_many_damaged_requests(attacked: str, kind: str, data: st.DataObject) -> None:
    _damaged_requests(attacked, kind, data)
