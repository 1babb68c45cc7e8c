"""`kad playground`: a page to talk with a pair, on this machine."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from kad.cli import stdio
from kad.cli.options import ModelOptions, PairArgument
from kad.options import Option
from kad.server.options import Listening

if TYPE_CHECKING:
    from fastapi import FastAPI

EXAMPLES = (
    "kad playground",
    "kad playground my-pair --rule dual:threshold=0.6",
    "kad playground --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-browser",
)


def command(
    pair_argument: PairArgument = None,
    *,
    browser: Annotated[bool, Option("Open the page in the browser.")] = True,
    models: ModelOptions,
    listening: Listening,
) -> None:
    """Talk with a pair on a page, and see which model each token comes from.

    The page shows the three distributions of every token. Click a token, choose another one, and the text goes on from
    there. Change the rule and see what changes. Compare base alone, aligned alone and composed.

    Without --host, only this machine can reach the page. It asks nothing of other places. The OpenAI API is there too,
    under /v1. Ctrl-C ends it.
    """
    from kad.server import run

    models = models.of(pair_argument)
    models.check_places()
    run.check_installed()
    socket = run.listen(listening)
    from kad.server import playground

    def make() -> FastAPI:
        return run.app_of(models.load(), models.name, listening)

    address, key = run.address_of(socket), run.key_of(listening)
    if key is not None:
        address += f"/#key={quote(key, safe='')}"
    stdio.message(f"The page is at {address} (Ctrl-C ends it).")
    if not run.is_loopback(listening) and key is None:
        stdio.message("Everybody who reaches this machine can use it: give --api-key, or set KAD_API_KEY.")
    if browser:
        webbrowser.open(address)
    playground.run(make, socket, run.hosts_of(listening))
