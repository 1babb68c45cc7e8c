"""MkDocs hook: the pages link to files of the repository as on GitHub, and the site shows those files as pages.

`README.md` becomes the home page. A link from a page to a file outside docs/ (a source, a benchmark, a JSON) leads to a
page that shows the file. A link to a file that does not exist ends the build.

Formulas ($...$ in a line, a block of ```math) become MathML, which browsers show without a script. A formula that
cannot be converted ends the build.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parent.parent
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".mk": "make", ".yaml": "yaml", ".yml": "yaml"}
IMAGES = {".png", ".svg"}
# A Markdown link or image with a relative target: [text](target#fragment)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?P<fragment>#[^)\s]*)?(?=\))")
# A formula begins and ends with a character that is no space; what stands in code is taken before.
FORMULA = r"\$(?P<tex>[^\s$](?:[^$]*[^\s$])?)\$"
# The converter passes on what it does not know.
NOT_CONVERTED = re.compile(r"\\|<mi>&</mi>")


class Formulas(Extension):
    """Markdown with formulas in its lines."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Formula(FORMULA, md), "formula", 185)  # after code (190), before escapes (180)


class _Formula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(_mathml(m["tex"], "inline")), m.start(0), m.end(0)


def on_config(config: Any) -> Any:
    """Let Markdown know formulas."""
    fence = {"name": "math", "class": "formula", "format": _block}
    config["markdown_extensions"].append(Formulas())
    config["mdx_configs"]["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def _block(source: str, language: str, css_class: str, *_: Any, **__: Any) -> str:
    return f'<div class="{css_class}">{_mathml(source, "block")}</div>'


def _mathml(tex: str, display: str) -> str:
    # TeX's space around a name and after a sign, which the converter leaves to the browser.
    tex = re.sub(r"(?<=[)\w] )\\(log|max|min)\b", r"\\,\\\1", tex.strip())
    tex = re.sub(r"\\(log|max|min)\b(\()?", lambda name: rf"\text{{{name[1]}}}" + (name[2] or r"\,"), tex)
    result = re.sub(r"(?<=(?:28|3D|3E);</mo>)<mo>(?=&#x02212;)", '<mo form="prefix">', convert(tex, display=display))
    if NOT_CONVERTED.search(result):
        raise PluginError(f"This formula has a part that cannot be converted: {tex}")
    return result


def on_files(files: Files, config: Any) -> Files:
    """Add the home page and a page for every file of the repository that some page links to."""
    waiting = ["README.md"]
    for file in list(files.documentation_pages()):
        waiting += _outside(f"docs/{file.src_uri}", Path(file.abs_src_path).read_text(encoding="utf-8"))
    prefix = "repository/"
    waiting += [page.removeprefix(prefix) for page in _nav_pages(config["nav"]) if page.startswith(prefix)]
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(_site_path(path)):
            continue
        source = REPOSITORY / path
        if source.suffix in IMAGES:
            files.append(File.generated(config, _site_path(path), abs_src_path=str(source)))
            continue
        text = _page(source)
        files.append(File.generated(config, _site_path(path), content=text))
        if source.suffix == ".md":
            waiting += _outside(path, text)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to where the site has their targets."""
    uri = page.file.src_uri
    if uri == "index.md":
        path = "README.md"
    elif uri.startswith("repository/"):
        path = uri.removeprefix("repository/")
        if not path.endswith(".md") or not (REPOSITORY / path).is_file():
            return markdown  # a source file, shown as it is
    else:
        path = f"docs/{uri}"

    def replace(match: re.Match[str]) -> str:
        target = _site_path(_resolve(path, match["target"]))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") + (match["fragment"] or "")

    return LINK.sub(replace, markdown)


def _outside(path: str, text: str) -> list[str]:
    """The files outside docs/ that the Markdown file `path` links to."""
    targets = (_resolve(path, match["target"]) for match in LINK.finditer(text))
    return [target for target in targets if not target.startswith("docs/")]


def _resolve(path: str, target: str) -> str:
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if resolved.startswith("..") or not (REPOSITORY / resolved).exists():
        raise PluginError(f"{path} links to {target}, which does not exist.")
    return resolved


def _site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    suffix = Path(path).suffix
    return f"repository/{path}" if suffix == ".md" or suffix in IMAGES else f"repository/{path}.md"


def _page(source: Path) -> str:
    """A file of the repository as Markdown: itself, a listing of a folder, or a block of code."""
    if source.suffix == ".md":
        return source.read_text(encoding="utf-8")
    name = source.relative_to(REPOSITORY).as_posix()
    if source.is_dir():
        entries = sorted(entry.name for entry in source.iterdir() if not entry.name.startswith(("_", ".")))
        return f"# {name}\n\nA folder of the repository:\n\n" + "".join(f"- `{entry}`\n" for entry in entries)
    if source.suffix == ".ipynb":
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
        return "\n\n".join(_fenced(text, "python") if code else text for text, code in texts)
    # The search finds pages of text, not sources and tables of numbers.
    text, language = source.read_text(encoding="utf-8"), LANGUAGES.get(source.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n" + _fenced(text, language)


def _fenced(text: str, language: str) -> str:
    fence = "`````"
    return f"{fence}{language}\n{text}\n{fence}\n"


def _nav_pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav or []) for page in _nav_pages(entry)]
