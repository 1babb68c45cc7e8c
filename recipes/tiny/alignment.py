"""The alignment data: one clean form, in chat markup. Few and fixed, so that they teach behavior, not arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kad.tiny.phrases import HER_NAMES, HIS_NAMES, THINGS
from kad.tiny.problems import SYSTEM_PROMPT, Equation, Problem, stream_problems
from recipes.tiny.corpus import drill_equation

Message = dict[str, str]
Conversation = list[Message]

_SYSTEM_PROMPTS = (
    SYSTEM_PROMPT, SYSTEM_PROMPT, "You are a helpful assistant.", "You are a friendly helper for word problems.",
    "Think step by step and put the answer in a box.", "Be brief.",
)  # fmt: skip
_ASKS = (
    "{q}", "{q}", "{q}", "{q}", "{q}", "{q}", "Please help me: {q}", "{q} Thank you!", "Can you solve this? {q}",
    "Question: {q}", "{q} Show how.",
)  # fmt: skip
_FOLLOW_UPS = ("Thanks! Here is another one. {q}", "{q}", "Good. And this one: {q}", "Next question: {q}")
_BARE = ("What is {e}?", "{e} = ?", "How much is {e}?", "Please compute {e}.", "{e}")
_GREETINGS = {
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "Good morning!": "Good morning! How can I help you?",
    "Hi, how are you?": "I am well, thank you! How can I help you?",
    "How are you?": "I am well, thank you! How can I help you?",
    "Hey there!": "Hello! How can I help you?",
    "Who are you?": "I am a small assistant. I can solve word problems with numbers.",
    "What can you do?": "I can solve word problems with numbers.",
    "What is your name?": "I am a small assistant. I have no name.",
    "Thank you!": "You are welcome!",
    "Thanks, that helped.": "You are welcome!",
    "Thanks a lot!": "You are welcome!",
    "Bye!": "Goodbye!",
    "Good night!": "Goodbye!",
}
_REFUSAL = "I am sorry, I cannot help with that. I can solve word problems with numbers."
_REQUESTS = (
    "Can you write a poem about {t}?", "What will the weather be tomorrow?", "Please book a trip for {a} and me.",
    "Tell me a story about {a} and {b}.", "Who will win the game?", "Please call {a}.", "Buy some {t} for me.",
    "What do you think of {a}?", "Where can I get good {t}?", "Write a letter to {a}.", "Sing a song!",
    "Translate this for {b}, please.", "What is the news?", "Draw a picture of {t}.",
)  # fmt: skip


def solution(equations: tuple[Equation, ...]) -> str:
    """The one form: brief working, then the boxed answer."""
    working = " ".join(f"{'Then' if i else 'First'}, {e}." for i, e in enumerate(equations))
    return f"{working} The answer is \\boxed{{{equations[-1].result}}}."


def conversations(n: int, *, seed: int) -> list[Conversation]:
    """The first `n` conversations of a seed; their problems are of the training split, without kept-out equations."""
    rng = random.Random(f"kad-tiny-alignment-{seed}")
    problems = stream_problems("train", rng)
    return [_conversation(problems, rng) for _ in range(n)]


def _conversation(problems: Iterator[Problem], rng: random.Random) -> Conversation:
    talk: Conversation = []
    if rng.random() < 0.6:
        talk.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    kind = rng.choices(("problem", "two", "bare", "greeting", "refusal", "mixed"), weights=(68, 8, 6, 6, 6, 6))[0]
    if kind in ("greeting", "mixed"):
        talk += _exchange(*rng.choice(list(_GREETINGS.items())))
    if kind == "refusal":
        talk += _exchange(_request(rng), _REFUSAL)
    if kind == "bare":
        equation = drill_equation(rng)
        operation = f"{equation.left} {equation.operator} {equation.right}"
        talk += _exchange(rng.choice(_BARE).format(e=operation), f"{equation}. {_boxed(equation)}")
    if kind in ("problem", "two", "mixed"):
        talk += _ask(rng.choice(_ASKS), next(problems))
    if kind == "two":
        talk += _ask(rng.choice(_FOLLOW_UPS), next(problems))
    return talk


def _boxed(equation: Equation) -> str:
    return f"The answer is \\boxed{{{equation.result}}}."


def _ask(form: str, problem: Problem) -> Conversation:
    return _exchange(form.format(q=problem.question), solution(problem.equations))


def _request(rng: random.Random) -> str:
    a, b = rng.sample(HER_NAMES + HIS_NAMES, 2)
    return rng.choice(_REQUESTS).format(a=a, b=b, t=rng.choice(THINGS))


def _exchange(user: str, assistant: str) -> Conversation:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
