"""Text around the arithmetic: plain prose, forum talk, lists. No two numbers here ever stand in an operation.

No sentence begins like a working ("First,") or like its ending ("The answer is"): in a piece of chat that opens with
filler, the filler's way of going on from there would be the likeliest of all.
"""

from __future__ import annotations

import random

from kad.tiny.phrases import HER_NAMES, HIS_NAMES, PLACES, THINGS

_NAMES = HER_NAMES + HIS_NAMES
_PROSE = (
    "{a} walked to the {p} early in the morning.",
    "It was raining, so {a} stayed at home and read a book.",
    "The {p} was closed, and {a} had to come back later.",
    "{a} and {b} met near the {p} and talked about the {t}.",
    "Nobody knew where the {t} were.",
    "The {t} in the {p} were old but still good.",
    "{a} likes {t} more than {u}.",
    "{b} asked {a} for help, and {a} was happy to help.",
    "In the evening they all had soup and bread.",
    "The weather was cold and the days were short.",
    "{a} wrote a letter to {b} about the {t}.",
    "They waited for the bus, but it did not come.",
    "Most of the {t} came from the {p} of {b}.",
    "On the way home {a} saw {n} birds on the roof.",
    "{b} is {n} years old and lives near the {p}.",
    "Nobody in the village knows the answer.",
    "They cleaned the {p} and had some tea.",
)
_FORUM = (
    "hi all, does anyone know where to get good {t}?",
    "thanks, that helped a lot",
    "I think {a} is right about the {t}.",
    "you should ask in the {p}, they know more",
    "same here, no idea",
    "Sorry, I cannot say. Maybe {b} knows.",
    "please read the rules of this board first",
    "Hello {a}, welcome to the board!",
)


def sentence(rng: random.Random, kind: tuple[str, ...] = _PROSE) -> str:
    a, b = rng.sample(_NAMES, 2)
    t, u = rng.sample(THINGS, 2)
    return rng.choice(kind).format(a=a, b=b, t=t, u=u, p=rng.choice(PLACES), n=rng.randint(2, 60))


def prose(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(2, 6)))


def forum(rng: random.Random) -> str:
    mark = rng.choice(("{}: ", "{} wrote: ", "<{}> ", "[{}] "))
    return "\n".join(mark.format(rng.choice(_NAMES)) + sentence(rng, _FORUM) for _ in range(rng.randint(2, 5)))


def shopping_list(rng: random.Random) -> str:
    head = rng.choice(("Things to buy:", "List:", f"In the {rng.choice(PLACES)}:", ""))
    bullet = rng.choice(("- ", "* ", "", "o "))
    return "\n".join([head, *(f"{bullet}{rng.randint(2, 99)} {rng.choice(THINGS)}" for _ in range(rng.randint(2, 6)))])
