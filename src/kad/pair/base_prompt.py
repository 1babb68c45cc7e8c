"""A prompt of its own for the base model: how a conversation is written for it, and what ends an answer there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kad.errors import OptionError
from kad.words import half_character

SAME = "same"
"""The name that means: the base model reads the aligned model's prompt."""

ENDS, WHO_ENDS = "rule", ("rule", "aligned", "base")
"""Who ends an answer: the default, and all values; see `BasePrompt`."""

_PLACE = re.compile(r"\{(question|system|messages)\}")
_ANY_PLACE = re.compile(r"\{[a-z_]+\}")
_SPEAKERS = {"user": "User", "assistant": "Assistant"}
_FEW_SHOT = "few-shot:"
# Every beginning of a stop is looked for in every token.
_MOST_STOPS, _LONGEST_STOP, _LONGEST = 16, 200, 1_000_000


@dataclass(frozen=True)
class BasePrompt:
    r"""How the base model is asked. The answer follows the text directly.

    Attributes:
        template: the text before the answer. `{question}` is what the user said last. `{system}` is the system message
            and an empty line, or nothing. `{messages}` is the whole conversation, a line "User: ..." or
            "Assistant: ..." for each message. Without `{messages}`, earlier questions are written with the same
            template, each with its answer.
        stops: texts by which this form ends an answer ("\nQuestion:"). The base model never writes them.
        examples: questions and answers that stand before the conversation.
        ends: who may end an answer. "rule": both models, as the rule says: what the base model gives to its own end (a
            stop, or its own end token) counts as its probability of the aligned model's end token. "aligned": the
            aligned model alone. "base": the base model alone.

    Raises:
        OptionError: a template without a place for the question, an unknown place, an empty stop, or nobody that
            `ends`.
    """

    template: str
    stops: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    ends: str = ENDS

    def __post_init__(self) -> None:
        unknown = sorted(set(_ANY_PLACE.findall(self.template)) - {"{question}", "{system}", "{messages}"})
        if unknown or not re.search(r"\{(question|messages)\}", self.template):
            problem = f"has {unknown[0]}" if unknown else "has no place for the question"
            raise OptionError(
                f"The template {self.template[:80]!r} {problem}. It takes {{question}} or {{messages}}, and {{system}}."
            )
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise OptionError(f"A stop of a base prompt is a text, not {str(self.stops)[:80]}.")
        if len(self.stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in self.stops):
            raise OptionError(f"A base prompt has at most {_MOST_STOPS} stops of {_LONGEST_STOP} characters.")
        if len(self.template) + sum(len(text) for example in self.examples for text in example) > _LONGEST:
            raise OptionError(f"A base prompt has at most {_LONGEST:,} characters, its examples included.")
        for text in (self.template, *self.stops, *(text for example in self.examples for text in example)):
            if (half := half_character(text)) is not None:
                raise OptionError(f"The base prompt has {half}, which no tokenizer reads. Take it out.")
        if self.ends not in WHO_ENDS:
            raise OptionError(f"`ends` of a base prompt is one of {', '.join(WHO_ENDS)}, not {str(self.ends)[:80]!r}.")

    @classmethod
    def parse(cls, name: str | Path | Mapping[str, Any] | BasePrompt | None) -> BasePrompt | None:
        r"""A base prompt from what names one. None (or "same") means that both models read one prompt.

        Args:
            name: "qa", "chat", "plain", "few-shot:FILE" (lines of JSON with a question and an answer), "same", a text
                with `{question}` or `{messages}`, a file, or the dict of `to_dict`. A .json file holds such a dict,
                any other file is a template. ":ends=aligned" after any text says who ends an answer. The stops of a
                template are taken from the line of its question: from "Question: {question}\nAnswer:" come
                "\n\nQuestion:" and "\nQuestion:".

        Raises:
            OptionError: nothing of these, or a file that cannot be read.
        """
        if isinstance(name, BasePrompt):
            return name
        if name is None or name == SAME:
            return None
        if isinstance(name, Mapping):
            return cls._of(name)
        text, ends = who_ends(str(name))
        if ends is not None:
            form = cls.parse(text)
            if form is None:
                raise OptionError(f'"{SAME}" is no form of its own, so it has no `ends`. Leave ":ends={ends}" out.')
            return replace(form, ends=ends)
        if text in BUILT_IN:
            return BUILT_IN[text]
        if text.startswith(_FEW_SHOT):
            return replace(BUILT_IN["qa"], examples=_examples(text.removeprefix(_FEW_SHOT)))
        if "{question}" in text or "{messages}" in text:
            return cls._of({"template": text if "\n" in text else text.replace("\\n", "\n")})
        return cls._read(text)

    @classmethod
    def written(cls, prompt: Any) -> BasePrompt | None:
        """As `parse`, for what stands in a pair. It may come from somebody else, so it names no file.

        Raises:
            OptionError: neither a dict, nor a name, nor a template.
        """
        if isinstance(prompt, str) and prompt not in (SAME, *BUILT_IN) and not _PLACE.search(prompt):
            raise OptionError(
                f"A pair's base_prompt is no file, but an object, a template or a name; got {prompt[:80]!r}."
            )
        return cls.parse(prompt)

    @classmethod
    def _read(cls, name: str) -> BasePrompt:
        if not Path(name).is_file():
            raise OptionError(
                f"Unknown base prompt {name!r}. Choose from: {', '.join(BUILT_IN)}, {_FEW_SHOT}FILE, {SAME}, a "
                "template with {question} or {messages}, or a file that holds one."
            )
        text = _text_of(name)
        return cls._of(_json(text, name) if name.endswith(".json") else {"template": text.removesuffix("\n")})

    @classmethod
    def _of(cls, values: Any) -> BasePrompt:
        if not isinstance(values, Mapping) or not isinstance(values.get("template"), str):
            raise OptionError(f"A base prompt has at least a template, but got {str(values)[:80]}.")
        unknown = sorted(set(values) - {"template", "stops", "examples", "ends"})
        if unknown:
            raise OptionError(f"A base prompt has no {unknown[0]!r}. It has template, stops, examples and ends.")
        template, stops, given = values["template"], values.get("stops"), values.get("examples", ())
        if not isinstance(stops, list | tuple | None) or not isinstance(given, list | tuple):
            raise OptionError("The stops and the examples of a base prompt are lists.")
        examples = tuple(_example(example, "a base prompt") for example in given)
        return cls(template, _stops_of(template) if stops is None else tuple(stops), examples, values.get("ends", ENDS))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `parse` reads them back."""
        examples = [{"question": question, "answer": answer} for question, answer in self.examples]
        return {"template": self.template, "stops": list(self.stops), "examples": examples, "ends": self.ends}

    @classmethod
    def named(cls, name: Any) -> str | None:
        """A string that `parse` accepts: a name or a template. None if it has examples."""
        if name == SAME:
            return SAME
        prompt = cls.parse(name) if name is None or isinstance(name, str | Path | Mapping | BasePrompt) else None
        if prompt is None:
            return None
        names = [*BUILT_IN, prompt.template]
        names += [f"{form}:ends={prompt.ends}" for form in names]
        return next((form for form in names if cls.parse(form) == prompt), None)

    def line_break_for_space(self) -> BasePrompt:
        """The same with a line break where the template ends in spaces.

        Models of one tokenizer must begin the answer with the same token. After "Answer:" the base model would begin
        with a space, and the aligned model does not.
        """
        bare = self.template.rstrip(" ")
        return self if bare == self.template else replace(self, template=f"{bare}\n")

    def render(self, conversation: Sequence[Mapping[str, str]]) -> str:
        """The text that the base model reads before the answer to the last of these messages."""
        system = "\n".join(message["content"] for message in conversation if message["role"] == "system")
        messages = [message for message in conversation if message["role"] != "system"]
        if "{messages}" in self.template:
            examples = [
                {"role": role, "content": text}
                for example in self.examples
                for role, text in zip(_SPEAKERS, example, strict=True)
            ]
            lines = [f"{_SPEAKERS.get(m['role'], m['role'].title())}: {m['content']}\n" for m in (*examples, *messages)]
            return self._filled(messages[-1]["content"], system, "".join(lines))
        *before, (question, _) = [*self.examples, *_exchanges(messages)]
        text = ""
        for earlier, answer in before:
            filled = self._filled(earlier, "" if text else system)
            text += f"{filled}{'' if filled[-1:].isspace() else ' '}{answer.strip()}\n\n"
        return text + self._filled(question, "" if text else system)

    def _filled(self, question: str, system: str, messages: str = "") -> str:
        # In one pass: what the user says may hold the name of a place.
        values = {"question": question, "system": f"{system}\n\n" if system else "", "messages": messages}
        return _PLACE.sub(lambda place: values[place[1]], self.template)


BUILT_IN = {
    "qa": BasePrompt("{system}Question: {question}\nAnswer: ", ("\n\nQuestion:", "\nQuestion:")),
    "chat": BasePrompt("{system}{messages}Assistant: ", ("\nUser:",)),
    "plain": BasePrompt("{system}{question}\n"),
}
"""The templates that have a name."""


def who_ends(text: str) -> tuple[str, str | None]:
    """A text that names a base prompt, without what it says about the end of an answer ("qa:ends=base"); and that."""
    form, mark, ends = text.rpartition(":ends=")
    return (form, ends) if mark else (text, None)


def _exchanges(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Questions with their answers. The last one has none yet. Messages of one speaker in a row become one."""
    exchanges: list[tuple[str, str]] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "assistant" and exchanges:
            question, answer = exchanges[-1]
            exchanges[-1] = (question, f"{answer}\n{text}" if answer else text)
        elif exchanges and not exchanges[-1][1]:
            exchanges[-1] = (f"{exchanges[-1][0]}\n{text}", "")
        else:
            exchanges.append((text, ""))
    return exchanges or [("", "")]


def _stops_of(template: str) -> tuple[str, ...]:
    """What begins the next question: the text before `{question}` on its line."""
    if "{messages}" in template:
        return (f"\n{_SPEAKERS['user']}:",)
    line = template.partition("{question}")[0].rpartition("\n")[2].replace("{system}", "").rstrip()
    # Examples are separated by an empty line. It belongs to the stop, else p's first line break is in its answer.
    return (f"\n\n{line}", f"\n{line}") if line else ()


def _examples(name: str) -> tuple[tuple[str, str], ...]:
    lines = [line for line in _text_of(name).splitlines() if line.strip()]
    examples = tuple(_example(_json(line, name), name) for line in lines)
    if not examples:
        raise OptionError(f'{name} has no example. A line is {{"question": "...", "answer": "..."}}.')
    return examples


def _example(example: Any, where: str) -> tuple[str, str]:
    if not isinstance(example, Mapping) or not all(isinstance(example.get(k), str) for k in ("question", "answer")):
        raise OptionError(f"An example in {where} has a question and an answer, both texts, but is {example!r}.")
    return example["question"], example["answer"]


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"The base prompt {name} is not JSON: {error}.") from error


def _text_of(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"Cannot read the base prompt {name}: {reason}.") from error
