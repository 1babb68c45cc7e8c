"""`kad chat`: lines piped in, a real terminal, Ctrl-C."""

from __future__ import annotations

import codecs
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

import kad
from conftest import make_tokenizer
from kad.cli.chat import Chat, stoppable
from kad.cli.main import app
from kad.cli.wrapping import Wrapper
from kad.errors import RuleError, UsageError
from kad.text.conversation import Conversation
from kad.text.sampling import Sampling

ANN = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"
BEN = "Ben has 40 coins. He spends 13. How many coins are left?"


def chat(*lines: str, options: tuple[str, ...] = (), code: int = 0) -> Any:
    """The chat with these lines piped in, on the embedded pair."""
    result = CliRunner().invoke(app, ["chat", "--draft-tokens", "0", *options], input="\n".join(lines) + "\n")
    assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
    return result


@pytest.fixture
def talk(models_: dict[str, Any], folders: dict[str, Path]) -> Chat:
    """A conversation with the random models."""
    model = kad.KadForCausalLM.from_models(**{role: str(path) for role, path in folders.items()}, rule="base_only")
    model.tokenizer = make_tokenizer()
    return Chat(Conversation(model, sampling=Sampling(max_new_tokens=8, temperature=0), num_draft_tokens=0))


@pytest.mark.core
def test_piped_lines_are_turns_of_one_conversation() -> None:
    both = chat(ANN, BEN).stdout
    first, second = both.split("\n\n")[:2]
    assert first.startswith("First, 5 + 8 = 13.")
    assert second == chat(ANN, BEN, "/clear", ANN).stdout.split("\n\n")[1]
    assert chat("", ANN, "  ").stdout == first + "\n\n"


@pytest.mark.core
def test_the_rule_switches_in_the_middle() -> None:
    result = chat(ANN, "/rule aligned_only", "/clear", ANN, "/rule")
    composed, aligned = result.stdout.split("\n\n")[:2]
    assert composed != aligned
    assert aligned == chat(ANN, options=("--rule", "aligned_only")).stdout.split("\n\n")[0]
    assert result.stderr.count("rule: aligned_only") == 2


def test_quit_ends_it_and_nothing_after_is_read() -> None:
    assert chat("/quit", ANN).stdout == ""


def test_commands_that_show_something() -> None:
    result = chat(ANN, "/stats", "/color", "/help")
    assert "tokens/s" in result.stderr
    assert "base model" in result.stderr
    first, again = result.stdout.split("\n\n")[:2]
    assert again.strip("\n") == first.strip("\n")
    for command in ("/rule", "/system", "/clear", "/stats", "/color", "/help", "/quit"):
        assert command in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/ruel always", "Unknown command /ruel. Did you mean /rule?"),
        ("/xyzzy", "Unknown command /xyzzy. /help lists the commands."),
        ("/rule dul", "Unknown rule 'dul'. Choose from: dual,"),
        ("/stats", "There is no answer yet."),
        ("word " * 3000, "the models' context holds 2048"),
    ],
)
def test_wrong_lines_end_a_piped_chat_with_exit_code_2(line: str, message: str) -> None:
    result = chat(line, code=2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_wrong_line_changes_nothing(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.take("Hi")
    turns = list(talk.conversation.turns)
    with pytest.raises(RuleError):
        talk.take("/rule dual:threshold=7")
    with pytest.raises(UsageError, match="context"):
        talk.take("x" * 600)
    assert talk.conversation.turns == turns
    assert str(talk.model.rule) == "base_only"


def test_turns_and_system_message_go_through_the_template(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk.take("/system Be kind")
    talk.take("Hi")
    first = capsys.readouterr().out[:-2]
    assert talk.last is not None
    assert decoded(talk) == "[system]Be kind\n[user]Hi\n[assistant]"
    talk.take("And?")
    assert decoded(talk) == f"[system]Be kind\n[user]Hi\n[assistant]{first}\n[user]And?\n[assistant]"
    talk.take("/system")
    assert talk.conversation.turns == []
    talk.take("Hi")
    assert decoded(talk) == "[user]Hi\n[assistant]"


def test_answers_are_taken_back_and_given_again(talk: Chat, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """/undo and /retry leave the conversation as if the answer had never been; /save writes what is left."""
    talk.take("/system Be kind")
    talk.take("Hi")
    first = list(talk.conversation.turns)
    talk.take("And\nthen?")
    second = list(talk.conversation.turns)
    talk.take("/retry")
    assert talk.conversation.turns == second
    talk.take("/undo")
    assert talk.conversation.turns == first
    assert "Taken back: And\n" in capsys.readouterr().err
    talk.take(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == {"messages": [{"role": "system", "content": "Be kind"}, *first]}
    talk.take("/undo")
    assert talk.conversation.turns == []
    for line, problem in (("/undo", "no answer to take back"), ("/retry", "no answer"), ("/save", "name of a file")):
        with pytest.raises(UsageError, match=problem):
            talk.take(line)
    with pytest.raises(UsageError, match="Cannot write"):
        talk.take(f"/save {tmp_path / 'nowhere' / 'talk.json'}")


def test_the_temperature_changes_between_answers(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.take("/temperature 0.7")
    assert talk.conversation.sampling.temperature == 0.7
    talk.take("/temperature 0")
    talk.take("/temperature")
    assert capsys.readouterr().err.endswith("temperature: 0\n\n")
    for line in ("/temperature hot", "/temperature -1"):
        with pytest.raises(UsageError, match="temperature"):
            talk.take(line)
    assert talk.conversation.sampling.temperature == 0


def decoded(talk: Chat) -> str:
    assert talk.last is not None
    text = talk.model.tokenizer.decode(talk.last.prompt_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


PLANS = pytest.mark.parametrize("drafts", [0, 3], ids=["plain", "speculative"])


@pytest.mark.core
@PLANS
def test_a_turn_reads_only_what_is_new(talk: Chat, drafts: int, capsys: pytest.CaptureFixture[str]) -> None:
    talk.conversation.num_draft_tokens = drafts
    read: dict[str, list[int]] = {"base": [], "aligned": []}
    for role, lengths in read.items():
        talk.model.parts[role].register_forward_pre_hook(lambda _, args, seen=lengths: seen.append(args[0].shape[-1]))
    before: list[int] = []
    asked = 0
    for line in ("Hi", "And now?", "So?"):
        talk.take(line)
        assert talk.last is not None
        prompt, answer = talk.last.prompt_ids, talk.last.token_ids
        # The answer is read anew from where its text has other tokens than were drawn.
        known = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
        assert known >= asked
        # Speculation: the base model checks the first drafts in the pass that reads the prompt.
        assert read["aligned"][0] == len(prompt) - known
        assert read["base"][0] == len(prompt) - known + drafts
        before, asked = (prompt + answer)[:-1], len(prompt)
        for lengths in read.values():
            lengths.clear()


@pytest.mark.core
@PLANS
def test_what_the_models_have_read_changes_no_answer(
    talk: Chat, drafts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through rules that need the reference model and rules that do not, and through a new conversation."""
    talk.conversation.num_draft_tokens = drafts
    lines = [
        "/rule dual:threshold=0.2",
        "Hi",
        "And?",
        "/rule implicit_reward",
        "So?",
        "Why?",
        "/rule dual:threshold=0.2",
    ]

    def answers(*, remember: bool) -> list[list[int]]:
        talk.take("/clear")
        found = []
        for line in [*lines, "How?", "/system Be kind", "Hi", "Ho"]:
            if not remember:
                talk.conversation.forget()
            talk.take(line)
            if not line.startswith("/"):
                assert talk.last is not None
                found.append(talk.last.token_ids)
        talk.take("/system")
        return found

    assert answers(remember=True) == answers(remember=False)


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(talk: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.conversation.sampling = Sampling(max_new_tokens=200, temperature=0)

    shown: list[str] = []

    def write(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("kad.cli.stdio.write", write)
    answer = talk.say("Hi")
    assert answer.finish_reason == "interrupted"
    assert 3 <= len(answer.token_ids) <= 5
    assert "".join(shown).strip() == answer.text.strip()
    assert talk.conversation.turns[-1] == {"role": "assistant", "content": answer.text}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves(talk: Chat) -> None:
    answering = talk.conversation.say("Hi")
    with stoppable(answering):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        assert answering.stopped
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_lines_end_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    """However the text is cut into pieces: no line is too long, and nothing but spaces became ends of lines."""
    text = "The quick brown fox jumps over a lazy dog, \u65e5\u672c\u8a9e\u306e\u6587 and\n\n  so on. " * 4
    shown = []
    for size in (1, 3, 7, len(text)):
        written: list[str] = []
        wrapper = Wrapper(written.append, lambda: 20)
        for start in range(0, len(text), size):
            wrapper.push(text[start : start + size])
            assert "".join(written).count("fox") == text[: start + size].count("fox ")  # no word before its end
        wrapper.finish()
        shown.append("".join(written))
    assert len(set(shown)) == 1
    assert max(cell_len(line.rstrip(" ")) for line in shown[0].split("\n")) == 20
    assert shown[0].replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert [word for word in shown[0].split() if word.isascii()] == [word for word in text.split() if word.isascii()]


def test_in_a_terminal(tmp_path: Path) -> None:
    """A prompt, an answer, a pasted text, a typing error that does not end the chat, Ctrl-C twice."""
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from kad.cli.main import main; main()", "chat", "--draft-tokens", "0"],
        stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=own_terminal,
        env=os.environ | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(side)
    screen = Screen(terminal)
    try:
        greeting = screen.until("› ")
        assert screen.brackets, "a terminal marks pasted text only where it is asked to"
        assert "Ctrl-D leaves" in greeting
        assert "knows word problems" in greeting
        os.write(terminal, (ANN + "\n").encode())
        assert "5 + 8 = 13" in screen.until("\n› ")
        os.write(terminal, b"\x1b[200~" + ANN.replace(". ", ".\n").encode() + b"\x1b[201~\n")
        assert "5 + 8 = 13" in screen.until("\n› ")
        os.write(terminal, b"/save " + bytes(tmp_path / "talk.json") + b"\n")
        assert "Wrote 4 messages" in screen.until("\n› ")
        said = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert said[2] == {"role": "user", "content": ANN.replace(". ", ".\n")}
        os.write(terminal, b"/rlue\n")
        assert "Did you mean /rule?" in screen.until("\n› ")
        screen.interrupt()
        assert "Ctrl-C once more, or Ctrl-D, leaves." in screen.until("leaves.\n› ")
        screen.interrupt()
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        os.close(terminal)


def own_terminal() -> None:
    """Make the pseudo-terminal the child's own, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """What a terminal shows, read mark by mark; what stands behind a mark is kept for the next one."""

    def __init__(self, terminal: int) -> None:
        self.terminal, self.unread, self.brackets = terminal, "", False
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a read may end inside a character

    def interrupt(self) -> None:
        """Ctrl-C, a moment after the prompt: until it waits for keys, readline keeps an interrupt for the next key."""
        time.sleep(1.0)
        os.write(self.terminal, b"\x03")

    def until(self, mark: str, seconds: float = 120) -> str:
        """The text up to and with `mark`."""
        deadline = time.monotonic() + seconds
        while mark not in self.unread:
            assert time.monotonic() < deadline, f"waited for {mark!r}, got {self.unread!r}"
            if select.select([self.terminal], [], [], 1.0)[0]:
                text = self.decode(os.read(self.terminal, 4096))
                self.brackets |= "\x1b[?2004h" in self.unread + text
                self.unread = (self.unread + text).replace("\r\n", "\n").replace("\x1b[?2004h", "")
        text, found, self.unread = self.unread.partition(mark)
        return text + found
