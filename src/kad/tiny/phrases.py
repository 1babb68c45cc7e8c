"""The words of the tiny family's problems: names, things, and a few phrases for each operation."""

from __future__ import annotations

import random
from collections.abc import Sequence

HER_NAMES = (
    "Anna", "Bea", "Cora", "Dina", "Ella", "Fay", "Gina", "Hana", "Iris", "Judy", "Kira", "Lena", "Mia", "Nora",
)  # fmt: skip
HIS_NAMES = ("Adam", "Ben", "Carl", "Dan", "Emil", "Finn", "Gus", "Hugo", "Ivan", "Jack", "Leo", "Max", "Noah", "Tom")
THINGS = (
    "apples", "pears", "plums", "books", "pens", "coins", "cards", "stones", "shells", "stamps", "eggs", "cakes",
    "balls", "toys", "roses", "seeds", "nuts", "keys", "cups", "lamps", "hats", "maps", "beads", "buttons",
)  # fmt: skip
PLACES = ("shop", "garden", "kitchen", "school", "barn", "box", "bag", "drawer", "room", "shed", "cellar", "market")
HOLDERS = ("boxes", "bags", "baskets", "jars", "trays", "crates", "drawers", "shelves")

_OPENINGS = (
    "{Name} has {n} {things}.",
    "{Name} starts the day with {n} {things}.",
    "{Name} counts {n} {things} in the {place}.",
    "There are {n} {things} in the {place} of {Name}.",
    "{Name} brings {n} {things} to the {place}.",
    "In the {place}, {Name} keeps {n} {things}.",
)
_OPENINGS_TIMES = (
    "{Name} has {m} {holders} with {n} {things} in each.",
    "{Name} fills {m} {holders} and puts {n} {things} into each.",
)
_STEPS = {
    "+": (
        "{She} buys {n} more.",
        "{Friend} gives {her} {n} more {things}.",
        "Then {she} finds {n} more {things}.",
        "{She} gets another {n} from {Friend}.",
        "Later {n} more {things} are added.",
        "After that, {she} picks up {n} more.",
    ),
    "-": (
        "{She} gives {n} to {Friend}.",
        "Then {she} loses {n} of them.",
        "{She} sells {n} {things}.",
        "{Friend} takes away {n} {things}.",
        "Later {n} of the {things} get broken.",
        "After that, {she} throws away {n}.",
    ),
    "×": (
        "Then the number of {things} grows to {n} times as many.",
        "{She} works until {she} has {n} times as many {things}.",
        "With the help of {Friend}, {she} ends up with {n} times as many.",
    ),
    "÷": (
        "{She} splits them into {n} equal parts and keeps one part.",
        "Then {she} shares them equally among {n} people and keeps one share.",
        "{She} sorts them into {n} equal piles and only keeps one pile.",
    ),
}
_QUESTIONS = (
    "How many {things} does {Name} have now?",
    "How many {things} does {Name} have at the end?",
    "How many {things} are left?",
    "What is the number of {things} now?",
)


def draw_cast(rng: random.Random) -> dict[str, str]:
    """The names, things and pronouns of one story, as values for the phrases' fields."""
    female = rng.random() < 0.5
    name = rng.choice(HER_NAMES if female else HIS_NAMES)
    friend = rng.choice([other for other in HER_NAMES + HIS_NAMES if other != name])
    she, her = ("she", "her") if female else ("he", "him")
    words = {"Name": name, "Friend": friend, "she": she, "She": she.capitalize(), "her": her}
    return words | {"things": rng.choice(THINGS), "place": rng.choice(PLACES), "holders": rng.choice(HOLDERS)}


def tell(steps: Sequence[tuple[int, str, int]], rng: random.Random) -> str:
    """A story for a chain of `(left, operator, right)` steps that ends in the question for its result."""
    cast = draw_cast(rng)
    start, operator, operand = steps[0]
    if operator == "×" and rng.random() < 0.6:
        sentences = [rng.choice(_OPENINGS_TIMES).format(n=start, m=operand, **cast)]
        steps = steps[1:]
    else:
        sentences = [rng.choice(_OPENINGS).format(n=start, **cast)]
    sentences += [rng.choice(_STEPS[operator]).format(n=operand, **cast) for _, operator, operand in steps]
    return " ".join([*sentences, rng.choice(_QUESTIONS).format(**cast)])
