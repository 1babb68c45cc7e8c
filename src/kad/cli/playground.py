"""`kad playground`: a page to talk with a pair, on this machine."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Annotated

from kad.cli import options, stdio
from kad.errors import missing_extra
from kad.options import Option
from kad.sources import resolve_pair

if TYPE_CHECKING:
    from fastapi import FastAPI

EXAMPLES = (
    "kad playground",
    "kad playground --pair my-pair --rule dual:threshold=0.6",
    "kad playground --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-browser",
)
# The name of two models that no pair gives a name.
_UNNAMED = "composed"


def command(
    *,
    port: Annotated[int, Option("The port of the page. 0 takes a free one.", "N", allowed="[0, 65535]")] = 8000,
    browser: Annotated[bool, Option("Open the page in the browser.")] = True,
    models: options.ModelOptions,
) -> None:
    """Talk with a pair on a page, and see which model each token comes from.

    The page shows the three distributions of every token. Click a token, choose another one, and the text goes on from
    there. Change the rule and see what changes. Compare base alone, aligned alone and composed.

    The page is for this machine only: nobody else can reach it, and it asks nothing of other places. Ctrl-C ends it.
    """
    try:
        from kad.server.playground import run
    except ImportError as error:
        raise missing_extra("server", "fastapi") from error
    models.check_sources()
    resolve_pair(models.pair or "tiny")

    def make() -> FastAPI:
        from kad.server.app import make_app
        from kad.tracing.tracer import public_name

        name = _UNNAMED if models.base else public_name(models.pair or "tiny")
        return make_app(models.load(), name)

    def ready(address: str) -> None:
        stdio.message(f"The page is at {address} (Ctrl-C ends it).")
        if browser:
            webbrowser.open(address)

    run(make, port=port, ready=ready)
