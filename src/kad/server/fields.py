"""The fields of requests that this server knows, and what they mean for `kad`. It refuses all others by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kad.engines.pair import Pair
from kad.method.composition import Composition
from kad.pair.base_prompt import BUILT_IN, SAME, who_ends
from kad.server.masks import Penalties
from kad.server.refusals import Refusal
from kad.text.contexts import Asking, Context
from kad.text.drafting import MAX_DRAFT_TOKENS
from kad.text.prompts import Prompt
from kad.text.sampling import Sampling

MOST_MESSAGES = 1024
MOST_STOPS = 16
MOST_TOKENS = 1 << 20
MOST_CHOICES = 128
MOST_BIASES = 1024
MOST_LOGPROBS = 1024
# In a whole body, lists of token ids aside. Each of them may be wrong, and pydantic writes an error for each.
MOST_VALUES = 20_000
LONGEST_RULE = 256
LONGEST_PROMPT = 1 << 16
# Fields that are not supported, and the values that turn them off.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"), ()),
}
_NO_CALLS = "its answers call no functions; describe them in a message, or ask for JSON with 'response_format'"
_REASONS = dict.fromkeys(("tool_choice", "function_call"), _NO_CALLS)
# Fields that do not change the text. A model may ignore the functions in a request.
IGNORED = (
    "tools", "functions", "parallel_tool_calls",
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
ALONE = {"base": "base_only", "aligned": "aligned_only"}

Number = Annotated[float, Field(allow_inf_nan=False)]
Rule = Annotated[str, Field(max_length=LONGEST_RULE)]
Seed = Annotated[int, Field(ge=0, lt=1 << 53)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS, fail_fast=True)]
Drafts = Annotated[int, Field(ge=0, le=MAX_DRAFT_TOKENS)] | Literal["auto"]
Text = Annotated[str, Field(min_length=1)]
# pydantic refuses half a surrogate pair, which no tokenizer reads, only in texts with a bound. So there is one.
AnyText = Annotated[str, Field(min_length=0)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Biases = Annotated[dict[Token, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)]


def _check_count(body: dict[str, Any]) -> None:
    count, parts = 0, list[Any]([body])
    while parts:
        part = parts.pop()
        values = list(part.values()) if isinstance(part, dict) else part
        if isinstance(part, dict) or not set(map(type, part)) <= {int}:
            count += len(values)
            parts += [value for value in values if isinstance(value, dict | list)]
        if count > MOST_VALUES:
            raise ValueError(f"the request has more than {MOST_VALUES:,} values in its lists and objects")


class Fields(BaseModel):
    """Fields of a request. An unknown one is an error, as at OpenAI: a mistyped `rule` must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: AnyText


class ChatMessage(Fields):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: AnyText | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it. A developer's message is a system message by another name."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class JsonSchema(Fields):
    """A JSON schema with its name."""

    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Fields):
    """What the text must be: anything, a JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the field 'json_schema' belongs to the type 'json_schema'")
        return self

    @property
    def schema(self) -> dict[str, Any] | None:  # type: ignore[override]
        """The schema of the text; None if it is free."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(Fields):
    """What a stream also contains."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extra(Fields):
    """vLLM's place for the rule of a request."""

    rule: Rule


class ChatTemplate(Fields):
    """vLLM's place for a template's switch."""

    enable_thinking: bool | None = None


class KadField(Fields):
    """Asks for a field `kad` in the chunks of the stream, with all that is known of each token; see `details.Details`.

    Attributes:
        of: what answers: the composed model, or one of its models alone. That is the pair under the rules `base_only`
            and `aligned_only`, so that all three show the same distributions. But a base model with a tokenizer of its
            own answers in its own tokens.
        continuation: the first tokens of the answer, if it goes on from a place ("what if"). The last of them is the
            first token of the stream.
    """

    of: Literal["composed", "base", "aligned"] = "composed"
    continuation: Annotated[list[Token], Field(max_length=MOST_TOKENS, fail_fast=True)] = []


class Generation(Fields):
    """What chat completions and completions have in common. What is left out is as `kad.generate` has it."""

    model: str
    rule: Rule | dict[str, Any] | None = None
    deferral_temperature: Annotated[Number, Field(gt=0)] | None = None
    base_prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)] | dict[str, Any] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Seed | None = None
    num_draft_tokens: Drafts | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Annotated[list[Text], Field(max_length=MOST_STOPS)] | Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    vllm_xargs: Extra | None = None
    kad: KadField | None = None

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_done(cls, body: Any) -> Any:
        """Drop fields that do not change the text. Refuse unsupported fields, unless they are off."""
        if not isinstance(body, dict):
            return body
        _check_count(body)
        for name, off in NOT_DONE.items():
            if body.get(name) is not None and body[name] not in off:
                raise ValueError(f"{name!r} is not supported by this server: {_REASONS.get(name, 'leave it out')}")
        return {name: value for name, value in body.items() if name not in NOT_DONE and name not in IGNORED}

    @field_validator("rule")
    @classmethod
    def _short(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if len(str(value)) > LONGEST_RULE:
            raise ValueError(f"a rule has at most {LONGEST_RULE} characters")
        return value

    @field_validator("base_prompt")
    @classmethod
    def _no_file(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        """Elsewhere a base prompt may be the name of a file. Clients must not read files of this machine."""
        if not isinstance(value, str):
            return value
        form, ends = who_ends(value)
        if form in BUILT_IN or form == SAME:
            return value
        if "{question}" not in form and "{messages}" not in form:
            names = ", ".join((*BUILT_IN, SAME))
            raise ValueError(f"give {names}, or a template with {{question}} or {{messages}}")
        return {"template": form} | ({} if ends is None else {"ends": ends})

    @model_validator(mode="after")
    def _together(self) -> Generation:
        if self.vllm_xargs is not None:
            if self.rule not in (None, self.vllm_xargs.rule):
                raise ValueError("'rule' and 'vllm_xargs' name two rules; give one")
            self.rule = self.vllm_xargs.rule
        for name in ("stream_options", "kad"):
            if getattr(self, name) is not None and not self.stream:
                raise ValueError(f"{name!r} belongs to 'stream': true")
        if self.kad is not None and self.top is not None:
            raise ValueError("'kad' says the probabilities of every token; leave 'logprobs' out")
        return self

    @property
    def top(self) -> int | None:
        """How many most probable tokens to return. None for no log-probabilities at all."""
        return None

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema that the text must follow; None if it is free."""
        return None if self.response_format is None else self.response_format.schema

    @property
    def penalties(self) -> Penalties:
        """What changes the scores of tokens."""
        return Penalties(self.frequency_penalty or 0.0, self.presence_penalty or 0.0, self.logit_bias or {})

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def new_tokens(self) -> int | None:
        """The most tokens to generate."""
        return self.max_tokens

    def contexts(self, model: Pair) -> list[Context]:
        """What the models read before the answer, for each prompt."""
        raise NotImplementedError

    def composition(self, model: Pair) -> Composition:
        """The composition under the rule of the request."""
        rule = self.rule if self.kad is None else ALONE.get(self.kad.of, self.rule)
        return model.composed_by(rule, self.deferral_temperature)

    def sampling(self, stops: Sequence[str], choice: int) -> Sampling:
        """The sampling of one choice. The choices of a request have consecutive seeds.

        At temperature 0, limits on what is drawn do nothing; many clients send them anyway.
        """
        top_k = 0 if self.top_k == -1 else self.top_k  # -1 is vLLM's word for all tokens
        limits: dict[str, Any] = {"top_p": self.top_p, "top_k": top_k, "min_p": self.min_p}
        return Sampling(
            max_new_tokens=self.new_tokens,
            temperature=self.temperature,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(stops),
            seed=None if self.seed is None else self.seed + choice,
            **({} if self.temperature == 0 else limits),
        )

    def _context(self, model: Pair, prompt: Prompt, **options: Any) -> Context:
        return Asking(prompt, base_prompt=self.base_prompt, **options).context(model)


class ChatRequest(Generation):
    """A request for chat completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: ChatTemplate | None = None

    @model_validator(mode="after")
    def _logprobs_first(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def new_tokens(self) -> int | None:
        """The most tokens to generate: today's name of the field first, then the old one."""
        return self.max_completion_tokens or self.max_tokens

    def contexts(self, model: Pair) -> list[Context]:
        thinking = None if self.chat_template_kwargs is None else self.chat_template_kwargs.enable_thinking
        return [self._context(model, [message.plain() for message in self.messages], thinking=thinking)]


class CompletionRequest(Generation):
    """A request for completions: text without a chat template."""

    prompt: (
        AnyText
        | Tokens
        | Annotated[list[AnyText], Field(min_length=1, max_length=MOST_MESSAGES)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_MESSAGES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="after")
    def _few_choices(self) -> CompletionRequest:
        if len(self.prompts) * self.n > MOST_CHOICES:
            raise ValueError(f"prompts times 'n' must be at most {MOST_CHOICES}")
        return self

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        first: Any = self.prompt[0]
        return [self.prompt] if isinstance(first, int) else self.prompt  # type: ignore[list-item, return-value]

    def contexts(self, model: Pair) -> list[Context]:
        return [
            self._context(model, prompt, raw=True)
            if isinstance(prompt, str)
            else self._context(model, checked_ids(model, prompt, "prompt"))
            for prompt in self.prompts
        ]


class TokenizeRequest(Fields):
    """A text whose tokens are asked for, in vLLM's words."""

    model: str
    prompt: AnyText
    add_special_tokens: bool = True


def checked_ids(model: Pair, token_ids: Sequence[int], name: str) -> list[int]:
    """Token ids from a request. Raises Refusal if one is no token of the pair's."""
    size = len(model.tokenizer)
    wrong = next((token for token in token_ids if token >= size), None)
    if wrong is not None:
        raise Refusal(400, f"{name} has the token id {wrong}, but the largest one is {size - 1}.", name)
    return list(token_ids)
