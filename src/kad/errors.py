"""What can go wrong, in words: every error a user can cause is a `KadError`; at the command line, exit code 2."""

from __future__ import annotations


class KadError(ValueError):
    """Base of every error that kad raises on purpose; the message says what was got, what is allowed, what to do."""


class RuleError(KadError):
    """An unknown rule, a parameter out of its range, or a rule that lacks a model it needs."""


class LogitsError(KadError):
    """Logits that are no distribution: NaN, +inf, a row without any finite entry, shapes that do not fit."""


class VocabularyError(KadError):
    """Two models that do not speak the same tokens."""


class PairError(KadError):
    """A pair folder, a configuration or a model reference that cannot be used."""


class UsageError(KadError):
    """An option, or a combination of options, that cannot be carried out."""


class OptionError(UsageError):
    """A bad value of an option. The message puts the names of options in backticks, as Python spells them; the command
    line shows them as it spells them."""


class MissingExtraError(KadError):
    """An optional dependency is not installed."""


class HostError(KadError):
    """A version of Transformers, lm-eval or vLLM that kad cannot work with."""


def missing_extra(extra: str, package: str) -> MissingExtraError:
    """The one-line error for a missing optional dependency: names `package` and the command that installs `extra`."""
    return MissingExtraError(f'{package} is not installed. Install it with: pip install "kad-align[{extra}]"')
