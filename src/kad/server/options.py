"""Where a server listens and whom it answers: the options of `kad serve` and `kad playground`. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from kad.options import Option, check_fields

HOST, PORT, MAX_REQUESTS = "127.0.0.1", 8000, 64


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and whom it answers.

    Raises:
        UsageError: a value out of its range.
    """

    PANEL: ClassVar[str] = "Server"

    host: Annotated[
        str | None,
        Option("The address to listen at. 0.0.0.0 is every address of this machine.", "ADDRESS", shown=HOST),
    ] = None
    port: Annotated[int | None, Option("The port; 0 takes a free one.", "N", allowed="[0, 65535]", shown=str(PORT))] = (
        None
    )
    api_key: Annotated[
        str | None,
        Option("A key that clients must give. Other users can see a command line: better set KAD_API_KEY.", "KEY"),
    ] = None
    cors: Annotated[
        tuple[str, ...],
        Option(
            "An origin whose pages may use the server, like http://localhost:3000; may be given several times. * is "
            "every page.",
            "ORIGIN",
        ),
    ] = ()
    max_requests: Annotated[
        int | None,
        Option(
            "The most requests at a time, the waiting ones included. More get status 429.", "N", allowed=">= 1",
            shown=str(MAX_REQUESTS),
        ),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
