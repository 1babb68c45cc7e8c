"""`kad playground`: a page to talk with a pair, on this machine."""

from __future__ import annotations

import secrets
import webbrowser
from typing import TYPE_CHECKING, Annotated

from kad.cli import stdio
from kad.cli.common import ModelOptions, PairArgument, warn_if_open
from kad.options import Option
from kad.server.listening import Listening, address_of, check_installed, listen

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
    models = models.of(pair_argument)
    models.check()
    check_installed()
    socket = listen(listening)
    from kad.server import playground_app

    def make() -> FastAPI:
        model = models.load()
        from kad.server.app import make_app

        return make_app(model, models.name, listening)

    # The command line of a browser can be read by others, and its history stays.
    code = None if listening.key is None else secrets.token_urlsafe(16)
    address = address_of(socket)
    with_code = address if code is None else f"{address}/#code={code}"
    stdio.message(f"The page is at {address if browser else with_code} (Ctrl-C ends it).")
    warn_if_open(listening)
    if browser:
        webbrowser.open(with_code)
    playground_app.run(make, socket, listening, models.name, code)
