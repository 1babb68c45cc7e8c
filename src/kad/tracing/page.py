"""The page of a trace: one HTML file with everything in it, from the files in `assets/`."""

from __future__ import annotations

import html
from importlib.resources import files

from kad.tracing import palette
from kad.tracing.schema import Trace

_ASSETS = files("kad.tracing") / "assets"
# What both pages are made of, in the order in which the browser reads it.
COMPONENTS = (
    "words", "rules", "measures", "reading", "panel", "timeline", "controls", "disagreements", "picture", "downloads",
    "theme",
)  # fmt: skip


def trace_page(*traces: Trace) -> str:
    """The page of a trace, or of several side by side, as text.

    It loads nothing, and its content security policy forbids loading. Text of the models reaches the page only as JSON
    without any `<`. The script shows it as text nodes.
    """
    title = " · ".join(["kad trace", *dict.fromkeys(trace.rule_text for trace in traces)])
    return blank_page(title).replace(DATA, script_safe(f"[{','.join(trace.to_json() for trace in traces)}]"))


DATA = "<!-- kad:data -->"
"""The place of the data in a page."""


def blank_page(title: str) -> str:
    """The page without its data."""
    script = components() + asset("trace.js")
    return fill(asset("trace.html"), title=html.escape(title), style=asset("common.css"), script=script)


def components() -> str:
    """The script of the components that every page shares. They define `kad`, and do nothing."""
    return "".join(asset(f"{name}.js") for name in COMPONENTS)


def fill(page: str, **parts: str) -> str:
    """A page with each `<!-- kad:name -->` replaced by the part of that name."""
    for name, text in parts.items():
        page = page.replace(f"<!-- kad:{name} -->", text)
    return page


def notebook_frame(trace: Trace, height: int = 720) -> str:
    """The page in a frame of its own, so that the styles of a notebook do not affect it."""
    source = html.escape(trace_page(trace), quote=True)
    return (
        f'<iframe title="kad trace" style="width:100%;height:{height}px;border:0;border-radius:8px" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{source}"></iframe>'
    )


def asset(name: str) -> str:
    """A file of the page, with the colors in it."""
    text = (_ASSETS / name).read_text(encoding="utf-8")
    return fill(text, light=palette.css(palette.LIGHT), dark=palette.css(palette.DARK))


def script_safe(json_text: str) -> str:
    """JSON that cannot end its script element, and that old JavaScript can read."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text
