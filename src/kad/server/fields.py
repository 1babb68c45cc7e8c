"""What requests of both families of routes have in common: their fields, and the job that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kad.engines.pair import Pair
from kad.method.composition import Composition
from kad.pair.base_prompt import BUILT_IN, SAME
from kad.server.desk import Job
from kad.server.errors import Refusal
from kad.text.contexts import Asking, Context
from kad.text.drafting import MAX_DRAFT_TOKENS
from kad.text.prompts import Prompt, room
from kad.text.sampling import Sampling

MOST_MESSAGES = 1024
MOST_STOPS = 16
MOST_TOKENS = 1 << 20
LONGEST_RULE = 256
LONGEST_PROMPT = 1 << 16

Number = Annotated[float, Field(allow_inf_nan=False)]
Rule = Annotated[str, Field(max_length=LONGEST_RULE)]
Seed = Annotated[int, Field(ge=0, lt=1 << 53)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Drafts = Annotated[int, Field(ge=0, le=MAX_DRAFT_TOKENS)] | Literal["auto"]


class Request(BaseModel):
    """A request. An unknown field is an error, as it is at OpenAI: a mistyped `rule` must not be passed over."""

    model_config = ConfigDict(extra="forbid")


class Part(Request):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Request):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it. A developer's message is a system message by another name."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class Composing(Request):
    """How to compose. What is left out is as in the pair."""

    rule: Rule | dict[str, Any] | None = None
    deferral_temperature: Annotated[Number, Field(gt=0)] | None = None
    base_prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)] | dict[str, Any] | None = None

    @field_validator("base_prompt")
    @classmethod
    def _no_file(cls, given: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        """Elsewhere a base prompt may be the name of a file. Clients must not read files of this machine."""
        if not isinstance(given, str) or given in BUILT_IN or given == SAME:
            return given
        if "{question}" not in given and "{messages}" not in given:
            names = ", ".join((*BUILT_IN, SAME))
            raise ValueError(f"give {names}, or a template with {{question}} or {{messages}}")
        return {"template": given}


class Drawing(Composing):
    """How to draw tokens, too. What is left out is as `kad.generate` has it."""

    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    seed: Seed | None = None
    num_draft_tokens: Drafts | None = None

    def sampling(self, max_new_tokens: int | None, stop: Sequence[str], choice: int = 0) -> Sampling:
        """The sampling of one choice. The choices of a request have consecutive seeds.

        At temperature 0, limits on what is drawn do nothing; many clients send them anyway.
        """
        limits: dict[str, Any] = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        if limits["top_k"] == -1:  # vLLM's word for all tokens
            limits["top_k"] = 0
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(stop),
            seed=None if self.seed is None else self.seed + choice,
            **({} if self.temperature == 0 else limits),
        )

    def composition(self, model: Pair) -> Composition:
        """The composition that is asked for.

        Raises:
            RuleError: a bad rule, or one that this pair cannot carry out.
        """
        return model.composed_by(self.rule, self.deferral_temperature)

    def context(self, model: Pair, prompt: Prompt, *, raw: bool = False, thinking: bool | None = None) -> Context:
        """What the models read before the answer.

        Raises:
            UsageError: a prompt or a base prompt that this pair cannot take.
        """
        return Asking(prompt, thinking=thinking, raw=raw, base_prompt=self.base_prompt).context(model)

    def job(self, model: Pair, context: Context, sampling: Sampling, **more: Any) -> Job:
        """The answer to ask for at the desk; `more` are further fields of the job.

        Raises:
            UsageError: the prompt does not fit into the context of the models.
        """
        room(model, context.longest + len(more.get("begun", ())))
        return Job(context, self.composition(model), sampling, self.num_draft_tokens, **more)


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as chat templates take it."""
    return [message.plain() for message in messages]


def checked_ids(model: Pair, token_ids: Sequence[int], name: str) -> list[int]:
    """Token ids from a request.

    Raises:
        Refusal: an id that is no token of the pair's.
    """
    size = len(model.tokenizer)
    wrong = next((token for token in token_ids if token >= size), None)
    if wrong is not None:
        raise Refusal(400, f"{name} has the token id {wrong}, but the largest one is {size - 1}.", name)
    return list(token_ids)
