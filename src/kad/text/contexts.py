"""What each model reads before an answer, and its scorers made ready for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from kad.engines.nested import PairAsModel
from kad.engines.pair import Pair
from kad.engines.scorers import Endless, Languages, OwnPrompt, Restricted, Translated
from kad.errors import OptionError, RuleError, UsageError
from kad.method.rules import CascadeRule, Rule
from kad.method.scorer import Scorer
from kad.pair.base_prompt import BUILT_IN, ENDS, SAME, BasePrompt
from kad.text.prompts import Message, Prompt, decode, encode, encode_plain, messages
from kad.text.sampling import end_tokens
from kad.tokens.never_kept import Ends, NeverKept
from kad.tokens.token_bytes import token_bytes

if TYPE_CHECKING:
    from kad.method.composition import Composition

AnyBasePrompt = str | Mapping[str, Any] | BasePrompt | Sequence[int]
"""What `base_prompt` may be: see `BasePrompt.parse`, or the base model's own token ids."""


@dataclass(frozen=True)
class Context:
    """What the models read before an answer.

    Attributes:
        ids: the tokens of the aligned (and the reference) model's prompt.
        base_ids: the tokens of the base model's own prompt. None if it reads the same.
        stops: texts that end an answer in the form of the base model's prompt.
        translated: whether the base model has a tokenizer of its own.
        opened: what such a base model writes before the answer begins: the space after "Answer:".
        ends: who may end the answer, see `BasePrompt`. None: an end token is a token like others.
        within: what the models of a pair in a role read, by that role, where they read otherwise than the pair.
    """

    ids: list[int]
    base_ids: list[int] | None = None
    stops: tuple[str, ...] = ()
    translated: bool = False
    opened: str = ""
    ends: str | None = None
    within: Mapping[str, Context] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Context | Sequence[int], pair: Pair | None = None) -> Context:
        """A context, or the one in which all models read these tokens.

        A base model with a tokenizer of its own reads their text.

        Raises:
            UsageError: a token that the models do not have.
        """
        if pair is not None:
            check_tokens(pair, prompt.ids if isinstance(prompt, Context) else prompt)
        if isinstance(prompt, Context):
            return prompt
        if pair is None:
            return cls(list(prompt))
        other = pair.base_tokenizer
        if other is None:
            return cls(list(prompt)).with_parts(pair)
        return _translated(list(prompt), other, decode(pair.tokenizer, prompt, special=True)).with_parts(pair)

    def with_parts(self, pair: Pair, conversation: Sequence[Message] | None = None) -> Context:
        """The same, and what the models of pairs in this pair read: each pair asks its base model in its own way.

        Args:
            pair: the pair.
            conversation: what has been said, the question last. None: it is not known, and all read the same text.
        """
        within = {}
        for role, model in pair.models.items():
            if isinstance(model, PairAsModel):
                ids = self.read_by(role)
                of_pair = _context_of_part(model.pair, ids, conversation if ids is self.ids else None)
                if of_pair.base_ids is not None or of_pair.within:
                    within[role] = of_pair
        return replace(self, within=within) if within else self

    @property
    def longest(self) -> int:
        """The number of tokens of the longer prompt."""
        return max(len(self.ids), len(self.base_ids or ()), *(of_pair.longest for of_pair in self.within.values()))

    def read_by(self, role: str) -> list[int]:
        """The tokens of the prompt that the model of a role reads."""
        return self.base_ids if role == "base" and self.base_ids is not None else self.ids

    def check_rule(self, rule: Rule) -> None:
        """Refuse a product of models that share no tokenizer, or of which one alone is to end an answer.

        Raises:
            RuleError: it is one.
        """
        if self.ends not in (None, ENDS) and not isinstance(rule, CascadeRule):
            raise RuleError(
                f"Rule {rule} multiplies the models' probabilities, so both end an answer, and `ends` of the base "
                f"prompt says {self.ends!r}. Leave it out, or use a rule that keeps or defers."
            )
        if self.translated and not isinstance(rule, CascadeRule):
            raise RuleError(
                f"Rule {rule} needs a probability of the base model for every token, and this one has a "
                "tokenizer of its own. Use a rule that keeps or defers, such as dual:threshold=0.4."
            )

    def scorers(
        self,
        pair: Pair,
        composition: Composition,
        roles: Collection[str],
        kept: Mapping[str, Scorer] | None = None,
    ) -> dict[str, Scorer]:
        """Scorers by role, which all count in the tokens of `ids` and the answer.

        Args:
            pair: the pair.
            composition: how its rows are composed.
            roles: the models to run.
            kept: scorers of the engine that have read a part of their prompts already. New ones by default.

        Raises:
            RuleError: a product of models that share no tokenizer.
        """
        self.check_rule(composition.rule)
        apart = {role: of_pair for role, of_pair in self.within.items() if role in roles}
        scorers = dict(kept or pair.scorers([role for role in roles if role not in apart]))
        scorers |= {role: of_pair._composed(pair, cast("Any", pair.models[role])) for role, of_pair in apart.items()}
        if self.translated:
            assert self.base_ids is not None
            scorers["base"] = Translated(
                scorers["base"], self.base_ids, len(self.ids), self._languages(pair), composition.deferral_temperature,
            )  # fmt: skip
        elif self.base_ids is not None:
            scorers["base"] = OwnPrompt(scorers["base"], self.base_ids, len(self.ids))
        never_kept, temperature = self.never_kept(pair, composition), composition.deferral_temperature
        if never_kept is not None:
            scorers["base"] = Restricted(scorers["base"], never_kept, len(self.ids), temperature)
        if self.never_ends(pair):
            scorers["aligned"] = Endless(scorers["aligned"], self.never_ends(pair), temperature)
        return scorers

    def scorers_within(self, pair: Pair, roles: Collection[str]) -> dict[str, Scorer]:
        """Scorers of the parts of pairs in a pair, by their paths, such as "aligned.base", at every depth.

        They count as those of the pair. A base model that is read through the aligned model's tokens has none.
        """
        found: dict[str, Scorer] = {}
        for role in roles:
            model = pair.models[role]
            own = self.base_ids if role == "base" else None
            if not isinstance(model, PairAsModel) or (own is not None and self.translated):
                continue
            of_pair, inner = self.within.get(role) or Context(self.read_by(role)), model.pair
            its_roles = inner.roles_of(inner.composition)
            parts = of_pair.scorers(inner, inner.composition, its_roles) | of_pair.scorers_within(inner, its_roles)
            for path, scorer in parts.items():
                found[f"{role}.{path}"] = scorer if own is None else OwnPrompt(scorer, own, len(self.ids))
        return found

    def _composed(self, outer: Pair, model: PairAsModel) -> Scorer:
        """The scorer of a pair in another one, whose models read this."""
        pair, composition = model.pair, model.pair.composition
        parts = self.scorers(pair, composition, pair.roles_of(composition))
        return model.composed(parts, outer.rows_of(model), outer.device, own_prompts=True)

    def never_kept(self, pair: Pair, composition: Composition) -> NeverKept | None:
        """The tokens that p never keeps as they are. None if it keeps all."""
        foreign_ids = tuple(pair.config.foreign_ids or ())
        # A translation cares for the ends itself. A product of models defers nothing.
        if self.ends is None or self.translated or not isinstance(composition.rule, CascadeRule):
            return NeverKept(foreign_ids) if foreign_ids else None
        size, own = int(pair.config.vocab_size or 0), end_tokens(pair.models["base"].generation_config)
        ids = {*own, *set(end_tokens(pair.generation_config)).difference(foreign_ids)}
        within = tuple(sorted(token for token in ids if token < size))
        return NeverKept(foreign_ids, _ends_of(within, size, self.stops, pair.tokenizer), self._end(pair))

    def never_ends(self, pair: Pair) -> list[int]:
        """The tokens by which q* would end the answer, where p alone may. Else none."""
        return end_tokens(pair.generation_config) if self.ends == "base" else []

    def _end(self, pair: Pair) -> int | None:
        """The token of q* that has the mass by which p ends the answer. None if p may not, or if q* has none."""
        its, own = end_tokens(pair.generation_config), pair.tokenizer.eos_token_id
        return None if self.ends == "aligned" or not its else own if own in its else its[0]

    def _languages(self, pair: Pair) -> Languages:
        size, stops = int(pair.config.vocab_size or 0), tuple(stop.encode() for stop in self.stops)
        base, aligned = token_bytes(pair.base_tokenizer), token_bytes(pair.tokenizer)
        return Languages(base, aligned, size, self.opened.encode(), stops, self._end(pair))


@dataclass(frozen=True)
class Asking:
    """What a pair is asked, and in which form each model reads it.

    Attributes:
        prompt: what the user says, the messages of a conversation, or token ids.
        system: a system message before the prompt.
        thinking: for chat templates with a thinking switch. None leaves it to the template.
        raw: use the text without the chat template.
        base_prompt: how the base model is asked: "qa", "chat", "plain", "few-shot:FILE", a template with `{question}`
            or `{messages}`, a file, token ids, or "same" (the aligned model's prompt). None: as the pair says.
    """

    prompt: Prompt
    system: str | None = None
    thinking: bool | None = None
    raw: bool = False
    base_prompt: AnyBasePrompt | None = None

    def context(self, pair: Pair) -> Context:
        """What the models of a pair read before the answer.

        Raises:
            UsageError: a base prompt that needs the text of the prompt, which has token ids only; a token that the
                models do not have; or as `kad.text.prompts.encode`.
        """
        prompt, base_prompt = self.prompt, self.base_prompt
        ids = encode(pair.tokenizer, prompt, system=self.system, thinking=self.thinking, raw=self.raw)
        check_tokens(pair, ids)
        if base_prompt is not None and not isinstance(base_prompt, str | Mapping | BasePrompt):
            other = pair.base_tokenizer is not None
            context = Context(ids, list(base_prompt), translated=other, ends=ENDS if other else None)
            return context.with_parts(pair, self._said)
        own = pair.base_prompt if base_prompt is None else BasePrompt.parse(base_prompt)
        if base_prompt != SAME and self._said is not None:
            own = own or default_base_prompt(pair)
        if own is None:
            return Context.of(ids, pair).with_parts(pair, self._said)
        if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
            raise OptionError(
                "The base model has a prompt of its own, which is made from a text or messages, but the prompt is "
                'token ids. Give the text, or `base_prompt` as token ids, or `base_prompt="same"`.'
            )
        return own_context(pair, ids, own, messages(cast("Any", prompt), self.system))

    @property
    def _said(self) -> Sequence[Message] | None:
        """What has been said, as messages. None if it is given otherwise."""
        only_ids = not isinstance(self.prompt, str) and all(isinstance(item, int) for item in self.prompt)
        return None if self.raw or only_ids else messages(cast("Any", self.prompt), self.system)


def check_tokens(pair: Pair, ids: Sequence[int], where: str = "prompt") -> None:
    """Refuse a token that one of a pair's models has no row for, such as the one of an image for a model of text.

    Raises:
        UsageError: there is one.
    """
    size = pair.config.vocab_size
    beyond = next((token for token in ids if size is not None and not 0 <= token < size), None)
    if beyond is not None:
        known = 0 <= beyond < len(pair.tokenizer)
        name = f"{decode(pair.tokenizer, [beyond], special=True)!r} ({beyond})" if known else str(beyond)
        raise UsageError(
            f"The {where} has the token {name}, and one of the models does not: they share the tokens below {size}. "
            "Leave it out."
        )


def default_base_prompt(pair: Pair) -> BasePrompt | None:
    """How the base model is asked where nobody says: "qa" if it has a tokenizer of its own. Else None."""
    return None if pair.base_tokenizer is None else BUILT_IN["qa"]


def own_context(pair: Pair, ids: Sequence[int], base_prompt: BasePrompt, conversation: Sequence[Message]) -> Context:
    """What the models read where the base model is asked in a way of its own.

    Args:
        pair: the pair.
        ids: the tokens of the aligned model's prompt.
        base_prompt: how the base model is asked.
        conversation: what has been said, the question last.
    """
    other = pair.base_tokenizer
    if other is not None:
        text = base_prompt.render(conversation)
        context = _translated(list(ids), other, text, base_prompt.stops, base_prompt.ends)
    else:
        text = base_prompt.line_break_for_space().render(conversation)
        context = Context(list(ids), encode_plain(pair.tokenizer, text), base_prompt.stops, ends=base_prompt.ends)
    return context.with_parts(pair, conversation)


def _context_of_part(pair: Pair, ids: list[int], conversation: Sequence[Message] | None) -> Context:
    """What the models of a pair in a pair read, where the pair reads `ids`."""
    own = pair.base_prompt or default_base_prompt(pair)
    if conversation is None or own is None:
        return Context.of(ids, pair).with_parts(pair, conversation)
    return own_context(pair, ids, own, conversation)


def _translated(
    ids: list[int], base_tokenizer: Any, text: str, stops: tuple[str, ...] = (), ends: str = ENDS
) -> Context:
    """The context of a base model with a tokenizer of its own: it writes the spaces at the end of its prompt itself."""
    bare = text.rstrip(" ")
    return Context(ids, encode_plain(base_tokenizer, bare), stops, True, text[len(bare) :], ends)


@lru_cache(maxsize=8)
def _ends_of(ids: tuple[int, ...], size: int, stops: tuple[str, ...], tokenizer: Any) -> Ends:
    return Ends(ids, size, [stop.encode() for stop in stops], token_bytes(tokenizer) if stops else None)
