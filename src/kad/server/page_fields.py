"""What goes over the routes of the playground, `/kad/...`: the pair, and answers with all that is known of each token.

They are internal: the page and the server belong to one version of kad. Errors have the form of the OpenAI API.

    GET  /kad/model    -> `ModelFacts`
    POST /kad/answer   `AnswerRequest` -> server-sent events, each with a JSON object:
         event: start  `Start`, once
         event: piece  `PieceEvent`, one a token
         event: done   `Done`, once, at the end
         event: error  {"error": {"message", ...}}, instead of `done`
    POST /kad/trace    `TraceRequest` -> the trace (`kad.tracing.schema`) of a given answer
    POST /kad/page     a trace -> the trace as one page of HTML

"What if": send the tokens of the answer up to a place and one other token there as `continuation`, and the text goes
on after them. The first `piece` is then that last token, with `"forced": true`. "Alone" (`of`: "base" or "aligned")
is the pair under the rules `base_only` and `aligned_only`, so that all three columns show the same distributions. A
base model with a tokenizer of its own answers in its own tokens: the trace names no other model, and what compares two
is None.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kad.engines.pair import Pair
from kad.method.composition import Composition
from kad.server.fields import MOST_STOPS, MOST_TOKENS, Composing, Drawing, Messages, Token

ALONE = {"base": "base_only", "aligned": "aligned_only"}


class ModelFacts(BaseModel):
    """The pair.

    Attributes:
        name: the name under which it is served.
        kad_version: the version of kad.
        models: role -> where the model came from.
        parameters: role -> the number of weights.
        engines: role -> what runs the model.
        context_length: positions for prompt and answer. None if no model says.
        rule: the pair's own rule as a string, for example "dual:threshold=0.4"; `rule_values` its parts.
        deferral_temperature: the pair's own.
        rules: every rule that the pair can carry out: name, family, parameters (name, default, min, max; None where
            there is no bound), summary, source.
        sampling: the aligned model's own settings: temperature (None: greedy), top_k, top_p, min_p, max_new_tokens.
        waiting: how many requests are in the line now.
    """

    name: str
    kad_version: str
    models: dict[str, str]
    parameters: dict[str, int]
    engines: dict[str, str]
    context_length: int | None
    rule: str
    rule_values: dict[str, Any]
    deferral_temperature: float
    rules: list[dict[str, Any]]
    sampling: dict[str, Any]
    waiting: int


class AnswerRequest(Drawing):
    """An answer to generate.

    Attributes:
        messages: the conversation. The last message is the user's.
        of: what answers: the composed model, or one of its models alone.
        continuation: the first tokens of the answer, if it goes on from a place.
        max_new_tokens: the most tokens to generate after these.
        stop: texts that end the answer.
        thinking: for chat templates with a thinking switch.
    """

    messages: Messages
    of: Literal["composed", "base", "aligned"] = "composed"
    continuation: Annotated[list[Token], Field(max_length=MOST_TOKENS)] = []
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS)] = []
    thinking: bool | None = None

    def composition(self, model: Pair) -> Composition:
        """The composition that is asked for; see `of`."""
        rule = ALONE.get(self.of, self.rule)
        return model.composed_by(rule, self.deferral_temperature)


class Start(BaseModel):
    """What is known before the first token.

    Attributes:
        trace: the fields of a trace (`kad.tracing.schema.Trace`) but `positions`, `vocabulary` and `generation`.
        of: as asked.
        prompt_tokens: the length of the prompt.
        reused_tokens: how many tokens the models had read before.
        draft_tokens: how many tokens are drafted at a time, or "auto"; 0 for plain decoding.
        drafting: the reason in words.
        seed: of a sampled answer.
        temperature: of a sampled answer.
    """

    trace: dict[str, Any]
    of: str
    prompt_tokens: int
    reused_tokens: int
    draft_tokens: int | str
    drafting: str
    seed: int | None
    temperature: float | None


class PieceEvent(BaseModel):
    """One token.

    Attributes:
        index: its place in the answer, from 0.
        position: everything about it, as in a trace: `kad.tracing.schema.Position` as JSON. `event`,
            `rejected_draft` and `dropped_drafts` say what speculation did, `candidates` are rows [token, p,
            p_aligned, pi].
        vocabulary: the texts of tokens that were not mentioned before, by id.
        forced: whether the request chose this token.
        seconds: since the models began with this answer.
    """

    index: int
    position: dict[str, Any]
    vocabulary: dict[int, str]
    forced: bool
    seconds: float


class Done(BaseModel):
    """The end.

    Attributes:
        text: the answer, the continuation included; `token_ids` its tokens.
        finish_reason: as in `kad.Answer`.
        seconds, first_token: times of `kad.Answer`.
        tokens_per_second: of the new tokens.
        rest: what is left of the text after the last piece: an incomplete character. Nearly always "".
        statistics: the counts of speculation, `SpeculationStatistics.to_dict()`. None without drafts.
        generation: the field of that name for a trace.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    seconds: float
    first_token: float
    tokens_per_second: float
    rest: str
    statistics: dict[str, Any] | None
    generation: dict[str, Any]


class TraceRequest(Composing):
    """An answer to trace under a rule; the models read it in one forward pass."""

    messages: Messages
    token_ids: Annotated[list[Token], Field(min_length=1, max_length=MOST_TOKENS)]
    thinking: bool | None = None
