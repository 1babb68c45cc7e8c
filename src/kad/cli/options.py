"""The options that several commands share, each said once. Light to import: `kad.options` and nothing else of kad.

Groups of options that belong to a room of the library stand there: `RunOptions` in `kad.evaluation.options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from kad.errors import UsageError
from kad.options import Option, check_fields

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM

DTYPES = ("auto", "float32", "bfloat16", "float16")

Model = str | None
Json = Annotated[bool, Option("Print one JSON object on standard output, and nothing else there.", name="--json")]
PromptFile = Annotated[Path | None, Option("Read the prompt from a file.", "FILE", "-f")]
Seed = Annotated[int | None, Option("Seed of the random numbers.", "N", allowed=">= 0", shown="random")]
System = Annotated[str | None, Option("A system message before the conversation.", "TEXT")]
Raw = Annotated[bool, Option("Give the prompt as it stands, without the chat template.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which models, composed how, loaded how: a pair, or models; the embedded pair where nothing is named.

    Raises:
        UsageError: a value out of its range.
    """

    PANEL: ClassVar[str] = "Models"

    pair: Annotated[
        str | None,
        Option("A pair: a folder written by kad pack, a hub id, or tiny, the embedded one.", "PAIR", shown="tiny"),
    ] = None
    base: Annotated[
        Model,
        Option(
            "The big base model: a folder, a hub id (organisation/name or organisation/name@revision) or tiny:NAME.",
            "MODEL",
        ),
    ] = None
    aligned: Annotated[Model, Option("The small aligned model.", "MODEL")] = None
    reference: Annotated[
        Model, Option("The small model from which the aligned one was made; product rules need it.", "MODEL")
    ] = None
    rule: Annotated[
        str | None,
        Option("The rule, like dual:threshold=0.4; kad rules lists them.", "RULE", shown="the pair's"),
    ] = None
    deferral_temperature: Annotated[
        float | None,
        Option("Divide the models' logits by T before composing.", "T", allowed="> 0", shown="the pair's"),
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            "Weights as float32, bfloat16, float16, or auto (as stored).", "DTYPE", allowed=DTYPES, shown="the pair's"
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            "cpu, cuda, cuda:1, mps; or auto, which spreads the models over all devices (needs accelerate).",
            "DEVICE",
            shown="the pair's, else the first accelerator, else cpu",
        ),
    ] = None
    trust_remote_code: Annotated[bool, Option("Run code that comes with the models.")] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check_sources(self) -> None:
        """Either a pair, or base and aligned model.

        Raises:
            UsageError: both, or one of the two models without the other.
        """
        given = {"--base": self.base, "--aligned": self.aligned, "--reference": self.reference}
        named = [option for option, value in given.items() if value is not None]
        if self.pair is not None and named:
            raise UsageError(f"Give --pair or {' '.join(named)}, not both.")
        if named and (self.base is None or self.aligned is None):
            missing = "--base" if self.base is None else "--aligned"
            raise UsageError(
                f"{' '.join(named)} needs {missing} beside it: a composition has a base and an aligned model."
            )

    def load(self) -> KadForCausalLM:
        """The composed model; see `kad.cli.loading.load_model`."""
        from kad.cli import loading

        return loading.load_model(self)
