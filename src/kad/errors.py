"""Errors. Every error that a user can cause is a `KadError`. At the command line it gives exit code 2."""

from __future__ import annotations


class KadError(ValueError):
    """The base of all errors of kad. The message says what was given, what is allowed, and what to do."""


class RuleError(KadError):
    """An unknown rule, a parameter out of its range, or a rule that lacks a model it needs."""


class LogitsError(KadError):
    """Logits that are not a distribution: NaN, +inf, a row without a finite entry, or shapes that do not fit."""


class VocabularyError(KadError):
    """Two models with different vocabularies."""


class PairError(KadError):
    """A pair folder, a configuration or the place of a model that cannot be used."""


class MissingTokenizerError(PairError):
    """A folder of bare weights, or a model given as an object: it has no tokenizer."""


class UsageError(KadError):
    """An option, or a combination of options, that cannot be carried out."""


class OptionError(UsageError):
    """A bad value of an option.

    The message has the names of options in backticks, as Python writes them. The command line shows its own names.
    """


class ServerError(KadError):
    """The server of a base model cannot be reached in time, or gives what is no answer.

    Attributes:
        answer: what has come of the answer that was under way (`kad.text.answer.Answer`). None if there was none.
    """

    answer: object = None


class MissingExtraError(KadError):
    """An optional dependency is not installed."""


class HostError(KadError):
    """A version of Transformers, lm-eval or vLLM that kad cannot work with."""


def first_line(error: object) -> str:
    """The first line of an error's message, else the name of its class."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def one_line(error: object) -> str:
    """An error's class and its whole message, on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def missing_extra(extra: str, package: str) -> MissingExtraError:
    """The error for a missing optional dependency. It names `package` and the command that installs `extra`."""
    return MissingExtraError(f'{package} is not installed. Install it with: pip install "kad-align[{extra}]"')
