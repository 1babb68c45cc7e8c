"""Where a text ends: at an end token, at a stop string, at a deadline. A stop string may reach over several tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kad.text.prompts import Detokenizer
from kad.text.sampling import end_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig


class Ending:
    """Says of each token of an answer whether the answer ends with it. It is a stop rule of the loop, too.

    Args:
        config: settings with the end tokens, the stop strings and the time limit.
        tokenizer: the tokenizer of the answer.
        before: the tokens before the answer. They decide whether its text begins with a space.
        full: the reason if nothing else ends the answer.

    Attributes:
        reason: why the answer ends: "stop" (an end token), "stop_string", or `full`.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: Any, before: Sequence[int] = (), full: str = "length"
    ) -> None:
        self.reason = full
        stops = config.stop_strings or ()
        self._tokens = frozenset(end_tokens(config))
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._text, self._tail = Detokenizer(tokenizer, before, special=True), ""
        self._deadline = time.perf_counter() + (config.max_time or math.inf)

    def __call__(self, committed: Tensor, new: list[int]) -> tuple[int, bool]:
        """See `kad.method.speculation.loop.StopRule`."""
        for count, token in enumerate(new, start=1):
            if self.push(token):
                return count, True
        return len(new), time.perf_counter() > self._deadline

    def push(self, token: int) -> bool:
        """Whether the answer ends with this token. The deadline does not count here."""
        if token in self._tokens:
            self.reason = "stop"
        elif self._stops and self._completes_a_stop(token):
            self.reason = "stop_string"
        else:
            return False
        return True

    def _completes_a_stop(self, token: int) -> bool:
        text = self._tail + self._text.push(token)
        self._tail = text[max(len(text) - self._longest + 1, 0) :]
        return any(stop in text for stop in self._stops)


def before_stop(text: str, stops: Sequence[str], ended: bool = False) -> str:
    """A finished text up to its first stop string.

    Args:
        text: the text.
        stops: the stop strings.
        ended: whether one of them ended it. It may begin with the space of the first word, which some tokenizers
            (SentencePiece) do not show at the beginning of a text.
    """
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if ended and not places and text.startswith(_after_a_space(stops)):
        return ""
    return text[: min(places, default=len(text))]


def _after_a_space(stops: Sequence[str]) -> tuple[str, ...]:
    return tuple(stop[1:] for stop in stops if stop.startswith(" ") and len(stop) > 1)


class UntilStop:
    """A text that is shown as it comes, up to its first stop string. What may begin a stop waits.

    Args:
        stops: the stop strings. They are not shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._waiting, self._ended = stops, "", False
        self._first = _after_a_space(stops)  # what may be a stop at the beginning of the text

    def push(self, text: str) -> str:
        """What can be shown after this much more text."""
        if self._ended:
            return ""
        # A stop at the beginning ends the text with its last token: what goes on was none.
        self._first = tuple(stop for stop in self._first if not self._waiting.startswith(stop))
        text = self._waiting + text
        if any(stop.startswith(text) or text.startswith(stop) for stop in self._first):
            self._waiting = text
            return ""
        self._first = ()
        shown = before_stop(text, self._stops)
        self._ended = len(shown) < len(text)
        if not self._ended:
            shown = text[: len(text) - max((_begun(stop, text) for stop in self._stops), default=0)]
        self._waiting = text[len(shown) :]
        return shown

    def finish(self, ended: bool = False) -> str:
        """What has waited, if no stop came. `ended`: see `before_stop`."""
        return "" if self._ended else before_stop(self._waiting, self._stops, ended)


def _begun(stop: str, text: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
