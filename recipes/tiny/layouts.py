"""The many forms in which the pretraining text works a problem out.

A layout is drawn for each document from six independent parts, so that inside one document the form is nearly certain
while at every *decision* of form (how to open, what follows an equation, how to end) the text as a whole is diffuse.
That is the room which alignment fills: a base model trained on this knows how to reason, not how to behave.

Diffuse means in tokens: options that begin with one token count as one. So what stands often in a list below is what
would otherwise be outweighed (". " beside ".\\n"), and the endings after "The answer is" begin with different tokens.
`recipes.tiny.form` shows what a trained base model makes of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from kad.tiny.problems import Equation, Problem

# How question and working are joined; {q} is the question, {w} the working with its ending.
_FRAMES = (
    "{q}\n{w}", "{q} {w}", "Q: {q}\nA: {w}", "Question: {q}\nAnswer: {w}", "Problem: {q}\nSolution: {w}", "{q}\n\n{w}",
    "# {q}\n{w}", "{q} -> {w}", "Exercise. {q}\nSolution. {w}", "{q}\nReply: {w}", "{q}\nSolution: {w}", "{q}\nMe: {w}",
    "{q}\nWork: {w}", "ask: {q}\nre: {w}", "{q} // {w}", "> {q}\n{w}",
)  # fmt: skip
_INTROS = (
    "", "", "", "", "Let's see. ", "Let us work it out. ", "OK. ", "Well, ", "Working:\n", "Hm, ", "Easy: ",
    "We compute ", "I think ", "Look: ", "Step by step:\n", "Sure! ",
)  # fmt: skip
# What stands before the first and before each later equation.
_LEADS = (
    ("", ""), ("", ""), ("", ""), ("First, ", "Then, "), ("First, ", "Next, "), ("First, ", "After that, "),
    ("First, ", "Later, "), ("First, ", "So "), ("First, ", ""), ("First ", "then "), ("Now ", "Now "), ("- ", "- "),
    ("* ", "* "), ("Step: ", "Step: "), ("So ", "So "), ("", "and "), ("we get ", "then we get "),
    ("Start: ", "Next: "), ("", "then "), ("=> ", "=> "),
)  # fmt: skip
_EQUATIONS = (
    "{a} {o} {b} = {c}", "{a} {o} {b} = {c}", "{a} {o} {b} = {c}", "{a} {o} {b} = {c}", "{a} {o} {b} = {c}",
    "{a} {o} {b} = {c}", "{a}{o}{b}={c}", "{a} {o} {b} is {c}", "{a} {w} {b} is {c}", "{a} {w} {b} makes {c}",
    "{a} {o} {b} gives {c}",
)  # fmt: skip
_SEPARATORS = (". ", ". ", ". ", ". ", ".\n", "\n", ", ", ",\n", "; ", " | ", " ... ", " -> ")
_ENDINGS = (
    "", "", "", "", "",
    "The answer is {n}.", "The answer is {n}.", "The answer is \\boxed{{{n}}}.", "The answer is: {n}",
    "The answer is **{n}**.", "The answer is = {n}", "The answer is now {n}.", "The answer is the number {n}.",
    "The answer is only {n}.", "The answer is, I think, {n}.",
    "Answer: {n}", "#### {n}", "= {n}", "So {n}.", "So it is {n} {t}.", "{n}", "That makes {n}.", "Result: {n}",
    "ans {n}",
    "It is {n} at the end.", "{n} it is!", "\\boxed{{{n}}}", "Done.", "I hope this helps.", "Right?", "-- end --",
)  # fmt: skip
_WORDS = {"+": "plus", "-": "minus", "×": "times", "÷": "divided by"}


@dataclass(frozen=True)
class Layout:
    frame: str
    intro: str
    leads: tuple[str, str]
    equation: str
    separator: str
    ending: str

    def working(self, problem: Problem) -> str:
        first, later = self.leads
        lines = [(later if i else first) + self.write(e) for i, e in enumerate(problem.equations)]
        if self.ending:
            lines.append(self.ending.format(n=problem.answer, t="in all"))
        text = self.intro + self.separator.join(lines)
        return text + "." if not self.ending and self.separator.startswith(".") else text

    def write(self, equation: Equation) -> str:
        return write_equation(self.equation, equation)


def write_equation(form: str, e: Equation) -> str:
    return form.format(a=e.left, o=e.operator, b=e.right, c=e.result, w=_WORDS[e.operator])


def draw_layout(rng: random.Random) -> Layout:
    parts = (_FRAMES, _INTROS, _LEADS, _EQUATIONS, _SEPARATORS, _ENDINGS)
    return Layout(*(rng.choice(options) for options in parts))


def document(problem: Problem, rng: random.Random) -> str:
    """One problem in one layout; in some documents only the answer follows, or nothing."""
    layout = draw_layout(rng)
    fate = rng.random()
    if fate < 0.04:
        return problem.question
    working = str(problem.answer) if fate < 0.07 else layout.working(problem)
    return layout.frame.format(q=problem.question, w=working)
