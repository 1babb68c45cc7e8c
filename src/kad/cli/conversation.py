"""The state of a chat: messages, the model and rule in force, and the commands that begin with a slash."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kad.cli import display, origins, stdio
from kad.cli.drafting import Plan
from kad.cli.past import Past
from kad.cli.prompts import encode_chat
from kad.cli.running import Answer, Interrupt, generate
from kad.cli.sampling import Sampling
from kad.errors import UsageError

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

    from kad.modeling import KadForCausalLM


class Conversation:
    """A conversation of several turns. Each goes through the chat template as a whole; the models read what is new."""

    def __init__(
        self,
        model: KadForCausalLM,
        tokenizer: Any,
        sampling: Sampling,
        plan: Plan,
        *,
        system: str | None = None,
        thinking: bool | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.plan = plan
        self.system = system
        self.thinking = thinking
        self.turns: list[dict[str, str]] = []
        self.last: tuple[Tensor, Answer] | None = None
        self.past = Past()

    def describe(self) -> str:
        """The models and the rule, in one line."""
        parts = self.model.config.model_references()
        return f"{stdio.shown(parts['base'])} aligned by {stdio.shown(parts['aligned'])}, {self.model.rule}"

    def take(self, line: str) -> bool:
        """A line that was typed: a message, or a command. False when it asks to leave.

        Raises:
            KadError: an unknown command, a bad rule, a conversation longer than the context; the state is as before.
        """
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self.say(line)
            return True
        name, _, argument = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        _command(name)(self, argument.strip())
        return True

    def say(self, text: str) -> Answer:
        """Send a message and stream the answer to standard output; Ctrl-C ends the answer, not the conversation."""
        turns = [*self.turns, {"role": "user", "content": text}]
        prompt_ids = encode_chat(self.tokenizer, self._with_system(turns), self.thinking)
        with stoppable() as interrupt:
            answer = generate(
                self.model, self.tokenizer, prompt_ids, self.sampling, self.plan,
                write=display.write, interrupt=interrupt, past=self.past,
            )  # fmt: skip
        display.write("\n\n")
        display.remark(answer)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        self.last = (prompt_ids, answer)
        return answer

    def _with_system(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        return turns if self.system is None else [{"role": "system", "content": self.system}, *turns]

    # ------------------------------------------------------------------ commands

    def set_rule(self, rule: str) -> None:
        """/rule [RULE]     switch to this rule from the next answer on, or show the one in force"""
        if rule:
            self.model.rule = rule
        stdio.message(f"rule: {self.model.rule}\n")

    def set_system(self, text: str) -> None:
        """/system [TEXT]   set the system message (none: drop it) and start a new conversation"""
        self.system = text or None
        self.clear("")

    def clear(self, _: str) -> None:
        """/clear           start a new conversation"""
        self.turns, self.last = [], None
        stdio.message("A new conversation.\n")

    def show_statistics(self, _: str) -> None:
        """/stats           speed and speculation of the last answer"""
        display.show_statistics(self.model, *self._last())

    def show_origins(self, _: str) -> None:
        """/color           the last answer, each token in the colour of the model it came from (rule in force)"""
        prompt_ids, answer = self._last()
        origins.require(self.model)
        display.print_origins(self.model, self.tokenizer, prompt_ids, answer)

    def show_help(self, _: str) -> None:
        """/help            this list"""
        lines = [(command.__doc__ or "").strip() for command in _COMMANDS.values()]
        stdio.message("\n".join([*lines, "/quit            leave (also Ctrl-D)", ""]))

    def _last(self) -> tuple[Tensor, Answer]:
        if self.last is None:
            raise UsageError("There is no answer yet.")
        return self.last


_COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "rule": Conversation.set_rule,
    "system": Conversation.set_system,
    "clear": Conversation.clear,
    "stats": Conversation.show_statistics,
    "color": Conversation.show_origins,
    "help": Conversation.show_help,
}


def _command(name: str) -> Callable[[Conversation, str], None]:
    if name in _COMMANDS:
        return _COMMANDS[name]
    close = difflib.get_close_matches(name, [*_COMMANDS, "quit"], n=1)
    hint = f"Did you mean /{close[0]}?" if close else "/help lists the commands."
    raise UsageError(f"Unknown command /{name}. {hint}")


@contextmanager
def stoppable() -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C only sets the `Interrupt`; the second one is a KeyboardInterrupt."""
    interrupt = Interrupt()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
