"""The options that several commands share. Light to import: only Typer."""

from __future__ import annotations

from typing import Annotated

import typer

_MODELS = "Models"

Pair = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="PAIR",
        help="A pair: a folder written by kad pack, a hub id, or tiny, the embedded one.",
        show_default="tiny",
        rich_help_panel=_MODELS,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The big base model: a folder, a hub id (organisation/name or organisation/name@revision) or tiny:NAME.",
        rich_help_panel=_MODELS,
    ),
]
Aligned = Annotated[
    str | None,
    typer.Option("--aligned", metavar="MODEL", help="The small aligned model.", rich_help_panel=_MODELS),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODEL",
        help="The small model from which the aligned one was made; product rules need it.",
        rich_help_panel=_MODELS,
    ),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        "--rule",
        metavar="RULE",
        help="The rule, like dual:threshold=0.4; kad rules lists them.",
        show_default="the pair's",
        rich_help_panel=_MODELS,
    ),
]
DeferralTemperature = Annotated[
    float | None,
    typer.Option(
        "--deferral-temperature",
        metavar="T",
        help="Divide the models' logits by T before composing.",
        show_default="the pair's",
        rich_help_panel=_MODELS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Weights as float32, bfloat16, float16, or auto (as stored).",
        show_default="the pair's",
        rich_help_panel=_MODELS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps; or auto, which spreads the models over all devices (needs accelerate).",
        show_default="the pair's, else the first accelerator, else cpu",
        rich_help_panel=_MODELS,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the models.", rich_help_panel=_MODELS),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="Seed of the random numbers.", show_default="random"),
]
