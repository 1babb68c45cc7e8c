"""The card of a pair: what the hub shows of it (README.md), and the loop for Transformers' `custom_generate`.

A card says what is in the files and what was measured, and nothing else. What is not known is said to be unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from kad import __version__
from kad.disk import write_atomically
from kad.errors import PairError
from kad.method import defaults
from kad.method.rules import Rule
from kad.method.rules.describe import describe
from kad.pair.config import KadConfig
from kad.pair.model_files import TROUBLE, download, load_config
from kad.pair.sources import CARD_FILES, CARD_MARK, TUNING, TUNING_SCHEMA, Source, check_card, is_carded

_NOTE = f"{CARD_MARK}, which writes it anew. Without this line kad leaves the file alone."
_LOOP = f'''# {_NOTE}
"""Transformers' `generate(custom_generate=...)` finds here the exact speculative decoding of a pair."""

import kad


def generate(model, **arguments):
    """As `model.generate(**arguments)`: the same distribution, in fewer passes of the base model."""
    return type(model).generate(model, custom_generate=kad.speculative, **arguments)
'''
_REQUIREMENTS = f"# {_NOTE}\nkad-align\n"
_MOST_BYTES = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9.+-]{1,60}")
_KAD = """\
@inproceedings{hammal2026kad,
  title = {{KAD}: A Framework for Proxy-based Test-time Alignment with Knapsack Approximation Deferral},
  author = {Hammal, Ayoub and Zweigenbaum, Pierre and Corro, Caio},
  booktitle = {Proceedings of the 19th Conference of the European Chapter of the Association for Computational
               Linguistics (Volume 1: Long Papers)},
  year = {2026},
  pages = {3854--3872},
  url = {https://aclanthology.org/2026.eacl-long.179/},
}"""
_REJECTION = """\
@inproceedings{hammal2026rejection,
  title = {On the Rejection Criterion for Proxy-based Test-time Alignment},
  author = {Hammal, Ayoub and Zweigenbaum, Pierre and Corro, Caio},
  booktitle = {Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics
               (Volume 2: Short Papers)},
  year = {2026},
  pages = {547--554},
  url = {https://arxiv.org/abs/2604.16146},
}"""


def write_card(
    folder: Path, config: KadConfig, engines: Collection[str], probe: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write the card of a pair folder, and the loop for `custom_generate` where Transformers can run it.

    Args:
        folder: the pair's.
        config: of the pair, as it lies in the folder.
        engines: what runs its models, see `kad.engines.load.engine_for`.
        probe: what `kad info --probe` measured, as JSON. None: the card says nothing about it.

    Returns:
        The files, each written whole.

    Raises:
        PairError: a file in the way that kad did not write, or that cannot be written; a damaged tuning.json.
    """
    check_card(folder)
    readme, loop, requirements = CARD_FILES
    looped = set(engines) == {"transformers"} and config.base_tokenizer is None
    texts = {loop: _LOOP, requirements: _REQUIREMENTS} if looped else {}
    texts[readme] = card(config, _hub_name(folder), engines, tuning_of(folder, config), probe)
    remove_card(folder)
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomically(folder / name, text)
    except OSError as error:
        raise PairError(f"Cannot write the card in {folder}: {error.strerror or error}.") from error
    return [folder / name for name in texts]


def remove_card(folder: Path) -> None:
    """Take away a card that kad wrote: it is about the pair that was there. Other files stay."""
    for name in CARD_FILES:
        file = folder / name
        if is_carded(file):
            file.unlink()
    loops = (folder / CARD_FILES[1]).parent
    if loops.is_dir() and not any(loops.iterdir()):
        loops.rmdir()


def tuning_of(folder: Path, config: KadConfig) -> dict[str, Any] | None:
    """What `kad tune` left in the folder, if the pair still has the rule that it chose. Else None.

    Raises:
        PairError: the file is damaged.
    """
    file = folder / TUNING
    try:
        tuning = json.loads(file.read_text("utf-8"))
        known = tuning["schema"] == TUNING_SCHEMA
        if not known or tuning["rule"] != config.rule:
            return None
        _tuning_lines(tuning)
        return dict(tuning)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise PairError(f"{file} is damaged ({error!r}). Delete it, or run kad tune again.") from error


def card(
    config: KadConfig,
    name: str,
    engines: Collection[str],
    tuning: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> str:
    """The text of README.md: front matter as the hub reads it, and Markdown."""
    sources = config.model_sources()
    licenses = {role: license_of(source) for role, source in sources.items()}
    hub = dict.fromkeys(source.model for source in sources.values() if _on_hub(source))
    data = ModelCardData(
        base_model=list(hub) or None,
        library_name="kad",
        license=licenses["aligned"],
        pipeline_tag="text-generation",
        tags=["kad", "test-time-alignment", "speculative-decoding", "custom_generate"],
    )
    rule = config.parsed_rule
    lines = [
        f"# {name}",
        "",
        "A pair of kad (the package `kad-align`): a big base model and a small aligned model that generate "
        "together, token by token. **This repository has no weights of its own.** It names the models, and holds the "
        "rule, and the tokenizer, chat template and generation settings of the aligned model. The weights come from "
        "the models' own places, under their own licenses.",
        "",
        *_model_lines(config, sources, licenses),
        "",
        *_rule_lines(config, rule, tuning),
        *([] if tuning is None else ["", *_tuning_lines(tuning)]),
        *([] if probe is None else ["", *_probe_lines(probe)]),
        "",
        *_use_lines(name, engines, config),
        "",
        "## Citation",
        "",
        "kad is an independent implementation of these papers:"
        if _bet(rule)
        else "kad is an independent implementation of this paper:",
        "",
        "```bibtex",
        *([_KAD, "", _REJECTION] if _bet(rule) else [_KAD]),
        "```",
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n<!-- {_NOTE} -->\n\n" + "\n".join(lines) + "\n"
    return str(ModelCard(text))


def license_of(source: Source) -> str | None:
    """The license that a model's own card states in its front matter. None if it has no card, or states none."""
    if _name(source).startswith("tiny:"):
        return "apache-2.0"
    try:
        place = Path(source.model, "README.md") if source.is_local else Path(download(source, "README.md"))
        with place.open(encoding="utf-8") as file:
            stated = ModelCard(file.read(_MOST_BYTES), ignore_metadata_errors=True).data.get("license")
    except (*TROUBLE, YAMLError):
        return None
    return stated if isinstance(stated, str) and _PLAIN.fullmatch(stated) else None


def _model_lines(config: KadConfig, sources: Mapping[str, Source], licenses: Mapping[str, str | None]) -> list[str]:
    rows = [
        f"| {role} | {_code(_name(source))} | {_revision(source)} | {licenses[role] or 'its own card states none'} |"
        for role, source in sources.items()
    ]
    lines = ["## Models", "", "| role | model | revision | license |", "|---|---|---|---|", *rows]
    if any(not _on_hub(source) and not _name(source).startswith("tiny:") for source in sources.values()):
        lines += ["", "A model without a revision is a folder or a file beside this one: `config.json` says where."]
    if config.base_tokenizer is not None:
        lines += ["", "The base model has another tokenizer, and is read through the aligned model's tokens."]
    if config.base_prompt is not None:
        lines += ["", "The base model is asked in a form of its own: `base_prompt` in `config.json`."]
    return lines


def _revision(source: Source) -> str:
    """Which state of a model on the hub the pair names, and which that is today, as far as it is known."""
    if not _on_hub(source):
        return "–"
    try:
        commit = getattr(load_config(source), "_commit_hash", None)
    except PairError:
        commit = None
    if source.revision is not None:
        named = _code(source.revision)
        return named if commit in (None, source.revision) else f"{named}, which was {_code(commit)}"
    return "the newest" if commit is None else f"the newest, which was {_code(commit)}"


def _rule_lines(config: KadConfig, rule: Rule, tuning: Mapping[str, Any] | None) -> list[str]:
    known = describe(type(rule))
    if tuning is not None:
        chosen = "`kad tune` chose it; the table below says on what."
    elif str(rule) == defaults.RULE:
        chosen = (
            "It is the default of kad, with the threshold of the published experiments. It was not tuned for this pair."
        )
    else:
        chosen = "Whoever packed the pair gave it; `kad tune` did not choose it."
    lines = ["## Rule", "", f"`{rule}`: {known['summary']}. Source: {known['source']}.", "", chosen]
    if config.deferral_temperature != 1.0:
        lines += ["", f"The logits of every model are divided by {config.deferral_temperature:g} before composing."]
    return lines


def _tuning_lines(tuning: Mapping[str, Any]) -> list[str]:
    floor = tuning["floor"]
    heads = ["value", f"accuracy ({_cell(tuning['metric'])})", "tokens a second", "chance of winning"]
    heads += [] if floor is None else ["chance of reaching the floor"]
    tasks = ", ".join(_cell(task) for task in tuning["tasks"])
    lines = [
        "## Tuning",
        "",
        f"By {_cell(tuning['objective'])} on {int(tuning['questions']):,} questions of {tasks}"
        + ("" if floor is None else f", with an accuracy of {float(floor):g} or more")
        + f". {_cell(tuning['chosen'])} is {_cell(tuning['reason'])}. A chance is a share of bootstrap samples.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---:|" * len(heads),
    ]
    for row in tuning["candidates"]:
        cells = [
            _cell(row["value"]), f"{100 * row['accuracy']:.1f} %", f"{row['throughput']:.1f}",
            f"{100 * row['chance']:.0f} %", *([] if floor is None else [f"{100 * row['meets_floor']:.0f} %"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _probe_lines(probe: Mapping[str, Any]) -> list[str]:
    rows = {
        "deferred mass α, the share of the aligned model": probe["deferred_mass"],
        "acceptance of a draft from the aligned model": probe["acceptance"],
        "positions where both models prefer the same token": probe["agreement"],
        "positions where the base model gives one token 0.9 or more": probe["sure"],
        "deferred mass at those": probe["sure_deferred"],
        "positions where it does, and the aligned model prefers another": probe["sure_apart"],
    }
    return [
        "## Measured",
        "",
        f"`kad info --probe` of kad {__version__}, means over {probe['positions']:,} tokens of {probe['answers']} "
        "greedy answers. It says how the two models work together, not how good the answers are.",
        "",
        "| | |",
        "|---|---:|",
        *(f"| {what} | {value:.3f} |" for what, value in rows.items() if value is not None),
    ]


def _use_lines(name: str, engines: Collection[str], config: KadConfig) -> list[str]:
    place = f"OWNER/{name}"
    extras = {"llama_cpp": "llama-cpp", "mlx": "mlx"}
    wanted = [extras[engine] for engine in sorted(engines) if engine in extras]
    package = f'"kad-align[{",".join(wanted)}]"' if wanted else "kad-align"
    lines = [
        "## Use it",
        "",
        "`OWNER` is whoever has the repository; the path of a folder works as well.",
        "",
        "```",
        f"pip install {package}",
        f"kad chat --pair {place}",
        f'kad generate --pair {place} "..."',
        "```",
        "",
        "In Python:",
        "",
        "```python",
        "import kad",
        "",
        f'pair = kad.load("{place}")',
        'print(kad.generate(pair, "...").text)',
        "```",
    ]
    if set(engines) == {"transformers"} and config.base_tokenizer is None:
        lines += [
            "",
            "In Transformers, where `pair` is a model like others. The last line decodes speculatively, and exactly:",
            "",
            "```python",
            "import kad",
            "",
            f'pair = kad.KadForCausalLM.from_pretrained("{place}")',
            'inputs = pair.tokenizer("...", return_tensors="pt")',
            f'pair.generate(**inputs, custom_generate="{place}", trust_remote_code=True)',
            "```",
        ]
    loading = {key for source in config.model_sources().values() for key in source.kwargs}
    if set(engines) == {"transformers"} and not loading & {"gguf_file", "subfolder"}:
        lines += ["", "In vLLM, in an environment that has it beside kad:", "", "```", f"vllm serve {place}", "```"]
    return lines


def _bet(rule: Rule) -> bool:
    return rule.name == "confidence_bet"


def _hub_name(folder: Path) -> str:
    """The folder's name as a repository of the hub may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "pair"


def _name(source: Source) -> str:
    """The name of a model without the place on somebody's machine: tiny:NAME, a hub id, or a file or folder's name."""
    plain = str(source.to_dict()["model"])
    return plain if plain.startswith("tiny:") or _on_hub(source) else Path(plain).name


def _on_hub(source: Source) -> bool:
    return not source.is_local and not source.model.startswith("tiny:")


def _code(text: str) -> str:
    """A name as code in a cell of a table."""
    return f"`{text.replace('`', '').replace('|', '')}`".replace("\n", " ")


def _cell(value: Any) -> str:
    """A text or a number of tuning.json as plain words: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~])", r"\\\1", " ".join(str(value).split()))
