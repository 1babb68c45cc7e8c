"""`kad info --probe`: its means are those of the traces, and its advice follows from them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.figures.probe import SURE, Probe, probe
from kad.text.sampling import Sampling

PROMPTS = ("Ann has 5 pens. She buys 8 more. How many pens does she have now?", "Hello!")
FITS = Probe(2, 40, 0.1, 0.9, 0.9, 0.8, 0.01, 0.01, ())


@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "nudging:threshold=0.6", "implicit_reward"])
def test_a_probe_is_the_mean_over_traces(tiny: Any, rule: str) -> None:
    with tiny.using(rule):
        found = probe(tiny, PROMPTS, max_new_tokens=24)
        sampling = Sampling(max_new_tokens=24, temperature=0.0)
        positions = [at for prompt in PROMPTS for at in kad.trace(tiny, prompt, sampling=sampling).positions]
        names = [kad.trace(tiny, prompt, sampling=sampling).vocabulary for prompt in PROMPTS]
    vocabulary = names[0] | names[1]
    firsts = [
        tuple(max(at.candidates, key=lambda row, of=of: getattr(row, of)) for of in ("p", "p_aligned"))  # type: ignore[misc]
        for at in positions
    ]
    apart = [base.token != aligned.token for base, aligned in firsts]
    sure = [base.p >= SURE for base, _ in firsts]
    count = len(positions)
    assert found.positions == count
    assert found.answers == 2
    assert found.acceptance == pytest.approx(sum(at.acceptance for at in positions) / count, abs=1e-4)
    assert found.agreement == pytest.approx(1 - sum(apart) / count)
    assert found.sure == pytest.approx(sum(sure) / count)
    assert found.sure_apart == pytest.approx(sum(a and s for a, s in zip(apart, sure, strict=True)) / count)
    if rule == "implicit_reward":
        assert found.deferred_mass is None
        assert found.sure_deferred is None
    else:
        masses = [at.deferred_mass or 0.0 for at in positions]
        where_sure = [mass for mass, is_sure in zip(masses, sure, strict=True) if is_sure]
        assert found.deferred_mass == pytest.approx(sum(masses) / count, abs=1e-4)
        assert found.sure_deferred == pytest.approx(sum(where_sure) / len(where_sure), abs=1e-4)
    pairs = Counter(
        (base.token, aligned.token) for (base, aligned), is_apart in zip(firsts, apart, strict=True) if is_apart
    )
    expected = Counter({(vocabulary[b], vocabulary[a]): n for (b, a), n in pairs.items()})
    listed = {(row.base, row.aligned): row.positions for row in found.disagreements}
    assert listed
    assert len(listed) == min(8, len(expected))
    assert listed.items() <= expected.items()
    assert sorted(listed.values(), reverse=True) == [n for _, n in expected.most_common(8)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["Nothing stands out"]),
        ({"deferred_mass": 0.3}, ["gives 30% of the tokens"]),
        ({"deferred_mass": 0.01}, ["Only 1.0% of the tokens"]),
        ({"sure_apart": 0.2}, ["At 20% of the positions the base model is sure"]),
        ({"deferred_mass": 0.3, "sure_apart": 0.2}, ["gives 30%", "At 20%"]),
        ({"deferred_mass": None}, ["Nothing stands out"]),
    ],
)
def test_what_to_try(changes: dict[str, Any], words: list[str]) -> None:
    advice = replace(FITS, **changes).advice()
    assert len(advice) == len(words)
    assert all(word in sentence for word, sentence in zip(words, advice, strict=True))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("\n".join(PROMPTS))
    asked = ["info", "tiny", "--prompts", str(tmp_path / "asked.txt")]
    result = CliRunner().invoke(app, [*asked, "--probe", "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["probe"]
    assert found["answers"] == 2
    assert found["advice"]
    other = json.loads(CliRunner().invoke(app, [*asked, "--probe", "--base-prompt", "plain", "--json"]).stdout)["probe"]
    assert other["acceptance"] != found["acceptance"]
    shown = CliRunner().invoke(app, [*asked, "--probe"]).stdout
    assert "both prefer the same token" in " ".join(shown.split())
    for option in (asked[2:], ["--base-prompt", "qa"]):
        refused = CliRunner().invoke(app, ["info", "tiny", *option])
        assert refused.exit_code == 2
        assert f"{option[0]} belongs to --probe" in refused.stderr
