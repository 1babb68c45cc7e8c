"""Requests of the OpenAI API, as far as they mean something here. Anything else is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kad.server.fields import MOST_MESSAGES, MOST_STOPS, MOST_TOKENS, Drawing, Messages, Number, Request, Token
from kad.server.penalties import Penalties

MOST_CHOICES = 128
MOST_BIASES = 1024
# Fields that are not supported, and the values by which a client says that it does without.
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
# Fields that say nothing about the text. That functions are there does not mean that one must be called.
PASSED_OVER = (
    "tools", "functions", "parallel_tool_calls",
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Biases = Annotated[dict[Token, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)]


class JsonSchema(Request):
    """A JSON schema with its name."""

    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Request):
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


class StreamOptions(Request):
    """What a stream also contains."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extra(Request):
    """vLLM's place for the rule of a request."""

    rule: str


class ChatTemplate(Request):
    """vLLM's place for a template's switch."""

    enable_thinking: bool | None = None


class Generation(Drawing):
    """What chat completions and completions have in common."""

    model: str
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Annotated[list[Text], Field(max_length=MOST_STOPS)] | Text | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    vllm_xargs: Extra | None = None

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_done(cls, given: Any) -> Any:
        """Drop what says nothing about the text. Refuse what is not done here, unless it is off."""
        if not isinstance(given, dict):
            return given
        for name, off in NOT_DONE.items():
            if given.get(name) is not None and given[name] not in off:
                raise ValueError(f"{name!r} is not supported by this server: {_REASONS.get(name, 'leave it out')}")
        return {name: value for name, value in given.items() if name not in NOT_DONE and name not in PASSED_OVER}

    @model_validator(mode="after")
    def _one_rule(self) -> Generation:
        if self.vllm_xargs is not None:
            if self.rule not in (None, self.vllm_xargs.rule):
                raise ValueError("'rule' and 'vllm_xargs' name two rules; give one")
            self.rule = self.vllm_xargs.rule
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' belongs to 'stream': true")
        return self

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


class ChatRequest(Generation):
    """A request for chat completions."""

    messages: Messages
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
    def new_tokens(self) -> int | None:
        """The most tokens to generate: today's name of the field first, then the old one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def thinking(self) -> bool | None:
        """The switch of the chat template."""
        return None if self.chat_template_kwargs is None else self.chat_template_kwargs.enable_thinking


class CompletionRequest(Generation):
    """A request for completions: text without a chat template."""

    prompt: (
        str
        | Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_MESSAGES)]
        | Annotated[
            list[Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS)]],
            Field(min_length=1, max_length=MOST_MESSAGES),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _few_choices(self) -> CompletionRequest:
        if len(self.prompts) * self.n > MOST_CHOICES:
            raise ValueError(f"prompts times 'n' must be at most {MOST_CHOICES}")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        first: Any = self.prompt[0]
        return [self.prompt] if isinstance(first, int) else self.prompt  # type: ignore[list-item, return-value]
