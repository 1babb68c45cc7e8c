"""Marking one answer: `paper`, the published metric, beside `strict`, each 0 or 1. These are lm-eval's
`process_results`. Short questions have two other marks, see `mark_fact`.

A document (see `documents.py`) carries `answer`, the plain answer, and `solution`, a text that ends in it. The
published code reads the answer out of the solution as it reads the prediction's.

An extractor takes a text and returns its answer, or None. The `paper` extractors are the published metric, so they
keep its quirks:

- The last number in the text is the answer. A check after the answer changes it.
- A sign belongs to decimals only: "-5" is read as "5", and "-5.0" as "-5.0". Numbers are compared as strings, so "18"
  is not "18.0".
- A comma between two digits is removed, in "1,234" and also in the list "1,2".
- A single capital letter from A to J is an option letter. So the article "A" and the pronoun "I" count as answers, and
  K and later letters do not.
- A box that is never closed hides every box before it.

The `strict` extractors read an answer only where the text says that it is one: a box, "#### x", "the answer is x", and
for options a last line with nothing but the letter. An open box is a cut-off answer, which is none. `\\boxed`
without a brace is no box, and what a model thinks (`<think>`) is no answer.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from kad.errors import missing_extra

Document = Mapping[str, Any]
Marks = dict[str, float]

_PAPER_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_PAPER_OPTION = re.compile(r"\b[A-J]\b")

_STATEMENT = re.compile(r"\banswer\b[\s*_]*(?:is|was|=|:)(?!\s+not\b)[\s*_:]*(?=(?P<rest>[^\n]*))", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{")
_HASHES = re.compile(r"####[ \t]*(?=(?P<rest>[^\n]*))")
_CLAUSE_END = re.compile(r"[.;](?=\s|$)")
_NUMBER = re.compile(
    r"(?P<sign>[-+−]?)[ ]?(?:"
    r"\\[dt]?frac\{(?P<top>-?\d+)\}\{(?P<bottom>\d+)\}"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/(?P<over>\d+))?"
    r")"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;!: ]|\{,\}|\\?\$|\\?%|\\left|\\right")

_OPTION_STATEMENT = re.compile(
    r"\b(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice)(?:[ ](?:choice|option|letter))?[\s*_]*(?:is|was|=|:)[\s*_:]*"
    r"(?:[Oo]ption[ ]|[Cc]hoice[ ]|[Ll]etter[ ])?[*_(\[\"'`$ ]*(?P<letter>[A-Z])(?P<after>.?.?)"
)
_LONE_OPTION = re.compile(r"[\s*_(\[\"'`]*(?P<letter>[A-Z])[\s*_)\].:\"'`]*")
# After "the answer is", the words A and I may begin a sentence ("A planet ..."). So they need a mark after them.
_MARKED = re.compile(r"(?:$|[)\].,:;*_\"'`\n}$])")


def mark_number(doc: Document, results: Sequence[str]) -> Marks:
    """GSM8K and SVAMP: the last number as a string; the stated number as a number."""
    stated = strict_number(results[0])
    right = stated is not None and stated == parse_number(doc["answer"])
    return {"paper": _same(paper_number, doc, results[0]), "strict": float(right)}


def mark_boxed_number(doc: Document, results: Sequence[str]) -> Marks:
    """The tiny family's problems: a number in a box."""
    return {**mark_number(doc, results), "paper": _same(paper_boxed, doc, results[0])}


def mark_math(doc: Document, results: Sequence[str]) -> Marks:
    """MATH-500: the last box as a string; the stated answer by mathematical equivalence (`math-verify`)."""
    stated = strict_math(results[0])
    right = stated is not None and equivalent(doc["answer"], stated)
    return {"paper": _same(paper_boxed, doc, results[0]), "strict": float(right)}


def mark_option(doc: Document, results: Sequence[str]) -> Marks:
    """ARC, CommonsenseQA, TruthfulQA: the last lone capital; the letter stated as the answer."""
    right = strict_option(results[0]) == doc["answer"]
    return {"paper": _same(paper_option, doc, results[0]), "strict": float(right)}


def mark_fact(doc: Document, results: Sequence[str]) -> Marks:
    """Short questions: `right`, an accepted answer is in the text; `behaves`, the text is an answer and no more.

    The run puts "finished" into the document; where nobody says it, the text counts as ended.
    """
    text = results[0]
    return {
        "right": float(any(contains(text, answer) for answer in doc["accepted"].split("|"))),
        "behaves": float(behaves(text, bool(doc.get("finished", True)))),
    }


def behaves(text: str, finished: bool) -> bool:
    """Whether a text is an answer and no more: one or two sentences, no question, and ended by the model itself."""
    return finished and 1 <= sentences(text) <= 2 and not asks(text)


def equivalent(answer: str, other: str) -> bool:
    """Whether two LaTeX answers say the same; `math-verify` decides what the plain comparison cannot."""
    if "".join(answer.split()) == "".join(other.split()):
        return True
    try:
        from math_verify import parse, verify
    except ImportError:
        raise missing_extra("eval", "math-verify") from None

    # math-verify's own time limit is a signal, which only the main thread may set.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    first, second = (parse(f"\\boxed{{{text}}}", parsing_timeout=limit) for text in (answer, other))
    return bool(first and second and verify(first, second, timeout_seconds=limit))


def _same(read: Callable[[str], str | None], doc: Document, text: str) -> float:
    answer = read(text)
    return float(answer is not None and answer == read(doc["solution"]))


def paper_number(text: str) -> str | None:
    """The last thing that looks like a number, as the string that it is."""
    numbers = _PAPER_NUMBER.findall(re.sub(r"(\d),(\d)", r"\1\2", text))
    return numbers[-1] if numbers else None


def paper_boxed(text: str) -> str | None:
    """The content of the last box after its last "="; None without a box, or if the last box is never closed."""
    content = _last_box(text)
    return content.rsplit("=", 1)[1].lstrip(" ") if content is not None and "=" in content else content


def paper_option(text: str) -> str | None:
    """The last capital letter A to J that stands alone."""
    letters = _PAPER_OPTION.findall(text)
    return letters[-1] if letters else None


def strict_number(text: str) -> Fraction | None:
    """The number that is stated as the answer. `\\boxed{}` wins over `####`, which wins over "the answer is"."""
    answer = _stated_answer(text)
    return None if answer is None else parse_number(answer)


def strict_math(text: str) -> str | None:
    """The LaTeX that is stated as the answer. An equivalence checker judges it."""
    answer = _stated_answer(text)
    return answer.strip().strip("$").strip() or None if answer is not None else None


def strict_option(text: str) -> str | None:
    """The option letter that is boxed, stated as the answer, or alone on the last line."""
    text = _said(text)
    if _BOX.search(text):
        match = re.match(r"[\s(*]*([A-Z])(?![A-Za-z])", _WRAPPED.sub(r"\1", _box(text) or ""))
        return match[1] if match else None
    stated = [match for match in _OPTION_STATEMENT.finditer(text) if _is_option(match)]
    if stated:
        return stated[-1]["letter"]
    lines = text.strip().splitlines()
    lone = _LONE_OPTION.fullmatch(lines[-1]) if lines else None
    return lone["letter"] if lone else None


def parse_number(text: str) -> Fraction | None:
    """The first number behind the last "=": signs, thousands separators, decimals, a/b and \\frac{a}{b}."""
    plain = _SPACING.sub("", _WRAPPED.sub(r"\1", text))
    match = _NUMBER.search(plain.rsplit("=", 1)[-1])
    if match is None:
        return None
    top = match["top"] or match["number"].replace(",", "")
    bottom = int(match["bottom"] or match["over"] or 1)
    if bottom == 0:
        return None
    value = Fraction(top) / bottom
    return -value if match["sign"] in ("-", "−") else value


def _stated_answer(text: str) -> str | None:
    text = _said(text)
    if _BOX.search(text):
        return _box(text)
    for pattern in (_HASHES, _STATEMENT):
        statements = [match["rest"] for match in pattern.finditer(text)]
        if statements:
            return _CLAUSE_END.split(statements[-1], maxsplit=1)[0].strip(" *_")
    return None


def _is_option(match: re.Match[str]) -> bool:
    after = match["after"]
    if match["letter"] in "AI":
        return _MARKED.match(after) is not None
    return not after[:1].isalpha() and not (after[:1] == "'" and after[1:2].isalpha())


def _said(text: str) -> str:
    """What a text says after it has thought. Nothing, if it still thinks."""
    _, ended, answer = text.rpartition("</think>")
    return answer if ended else text.partition("<think>")[0]


def _box(text: str) -> str | None:
    """The content of the last box, of those with a brace; None if it is never closed."""
    *_, last = _BOX.finditer(text)
    return _in_braces(text[last.end() - 1 :])


def _last_box(text: str) -> str | None:
    """The same, in the published metric, for which `\\boxed` is a box without a brace, too."""
    _, box, rest = text.rpartition("\\boxed")
    return _in_braces(rest) if box and rest.startswith("{") else None


def _in_braces(text: str) -> str | None:
    """The content of the braces with which a text begins. None if they are never closed."""
    depth = 0
    for index, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[1:index]
    return None


# A full stop after these ends no sentence: initials ("F. Scott") and titles.
_SHORTENED = re.compile(r"(?:^|[\s(\"'])(?:[A-Z]|Dr|Mr|Mrs|Ms|St|U\.S|U\.K|B\.C|A\.D|c|ca)\.$")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|\n+")
_NEXT_QUESTION = re.compile(r"\?|^\s*(?:question|q|user)\s*:", re.IGNORECASE | re.MULTILINE)


def plain(text: str) -> str:
    """Lower case without accents, for comparing names."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def contains(text: str, answer: str) -> bool:
    """Whether the words of an answer stand in a text, in singular or plural. Accents and capitals do not count."""
    return re.search(rf"(?<!\w){re.escape(plain(answer))}s?(?!\w)", plain(text)) is not None


def sentences(text: str) -> int:
    """The number of sentences. A line is one too, and so is a text without a full stop."""
    count = start = 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.end()]
        if _SHORTENED.search(piece.rstrip("\n")) and end.end() < len(text.rstrip()) and "\n" not in end.group():
            continue
        count += bool(re.search(r"\w", piece))
        start = end.end()
    return count + bool(re.search(r"\w", text[start:]))


def asks(text: str) -> bool:
    """Whether a text asks something, or begins another turn."""
    return _NEXT_QUESTION.search(text) is not None
