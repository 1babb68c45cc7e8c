"""The mistakes of a day, over all commands: each is an error of one or two lines, exit code 2, and nothing left behind.

The table was made by trying them all as a new user and as a hostile operator would.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from kad.cli.main import app


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.fixture(scope="module")
def world(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and broken models, pairs and runs."""
    root = tmp_path_factory.mktemp("world")
    for role, folder in folders.items():
        shutil.copytree(folder, root / role)

    def broken(name: str, of: str = "aligned") -> Path:
        return Path(shutil.copytree(root / of, root / name))

    cut(broken("truncated") / "model.safetensors", 2000)
    cut(broken("garbage") / "model.safetensors", 5)
    (broken("weightless") / "model.safetensors").unlink()
    edited(broken("sizes") / "config.json", lambda config: config.update(hidden_size=64))
    edited(broken("layers") / "config.json", lambda config: config.update(num_hidden_layers=4))
    edited(broken("heads") / "config.json", lambda config: config.update(num_attention_heads=5))
    cut(broken("half-config") / "config.json", 100)
    (broken("no-config") / "config.json").unlink()
    edited(broken("unknown-type") / "config.json", lambda config: config.update(model_type="nope"))
    for file in broken("no-tokenizer").glob("tokenizer*"):
        file.unlink()
    cut(broken("half-tokenizer") / "tokenizer.json", 200)
    (broken("no-template") / "chat_template.jinja").unlink()
    make_model(5, vocab=90).save_pretrained(root / "other-vocabulary")
    make_tokenizer(90).save_pretrained(root / "other-vocabulary")

    two = {role: str(root / role) for role in ("base", "aligned")}
    kad.KadForCausalLM.from_models(**two).save_pretrained(root / "pair")
    lost = {"model": "../gone-base", "revision": None, "kwargs": {}}
    edited(broken("moved", "pair") / "config.json", lambda config: config.update(base=lost))
    cut(broken("half-pair", "pair") / "config.json", 150)
    edited(broken("rule-pair", "pair") / "config.json", lambda config: config.update(rule="duel"))
    edited(broken("typo-pair", "pair") / "config.json", lambda config: config.update(bse=config.pop("base")))
    (broken("list-pair", "pair") / "config.json").write_text("[1]")
    (broken("binary-pair", "pair") / "config.json").write_bytes(b"\xff\xfe\x00")

    (root / "empty").mkdir()
    (root / "file.txt").write_text("x")
    (root / "blank.txt").write_text("  \n")
    (root / "binary.bin").write_bytes(b"\x00\xff\xfe")

    run = ["eval", "--pair", root / "pair", "--limit", 1, "-n", 2, "--methods", "aligned", "--out", root / "run-good"]
    assert call(*run).exit_code == 0
    for name, line in (("run-garbage", b"\x80garbage\n"), ("run-nul", b"\0" * 50 + b"\n")):
        with (broken(name, "run-good") / "samples.jsonl").open("ab") as file:
            file.write(line)
    cut(broken("run-half", "run-good") / "settings.json", 80)
    cut(broken("run-empty", "run-good") / "samples.jsonl", 0)
    (broken("run-list", "run-good") / "settings.json").write_text("[]")
    (broken("run-later", "run-good") / "settings.json").write_text('{"schema": "kad-run/9"}')
    (broken("run-keys", "run-good") / "settings.json").write_text('{"schema": "kad-run/2"}')
    return root


def call(*arguments: object, stdin: str | bytes = "") -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "200"})


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the current one. The hub is out of reach."""
    monkeypatch.chdir(world)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return world


MISTAKES = [
    ("generat Hi", "Unknown command 'generat'. Did you mean 'generate'?"),
    ("generate Hi --tempreature 1", "No such option: --tempreature (Possible options:"),
    ("generate Hi -n many", "Invalid value for '--max-new-tokens' / '-n': Input should be a"),
    ("generate Hi --rule", "Option '--rule' requires an argument."),
    ("demo --real --problems 5", "--real asks ten questions of its own. Leave out --problems."),
    ("--frobnicate", "No such option: --frobnicate"),
    ("rules duel", "Did you mean dual?"),
    ("generate Hi --rule dual=0.4", "Did you mean dual:threshold=0.4?"),
    ("generate Hi --rule dual:threshold=x", "Rule 'dual:threshold=x': threshold must be a number, but is"),
    ("generate Hi --rule dual:threshold=2", "dual: threshold must be a number from 0 to 1, but is 2.0."),
    ("generate Hi --rule dual:budget=0.4", "dual has no parameter 'budget'. It takes: threshold."),
    (["generate", "Hi", "--rule", ""], "Unknown rule ''. Choose from: dual, primal, nudging,"),
    (
        "generate Hi --rule implicit_reward --base base --aligned aligned",
        "Rule implicit_reward needs the reference model. Give one with",
    ),
    (
        "generate Hi -n 2 --base truncated --aligned aligned",
        "truncated/model.safetensors: the file is damaged or cut off",
    ),
    ("generate Hi -n 2 --base garbage --aligned aligned", "garbage/model.safetensors: the file is damaged or cut off"),
    (
        "generate Hi -n 2 --base weightless --aligned aligned",
        "weightless: Error no file named model.safetensors found in directory",
    ),
    (
        "generate Hi -n 2 --base sizes --aligned aligned",
        "sizes: its config.json describes weights of other sizes than it",
    ),
    (
        "generate Hi -n 2 --base layers --aligned aligned",
        "layers: its config.json describes other weights than it has; 18",
    ),
    ("generate Hi -n 2 --base heads --aligned aligned", "heads: Class validation error for validator"),
    ("generate Hi -n 2 --base half-config --aligned aligned", "half-config/config.json' is not a valid JSON file."),
    (
        "generate Hi -n 2 --base no-config --aligned aligned",
        "no-config. Should have a `model_type` key in its config.json.",
    ),
    (
        "generate Hi -n 2 --base unknown-type --aligned aligned",
        "unknown-type: The checkpoint you are trying to load has model",
    ),
    ("generate Hi -n 2 --base base --aligned no-tokenizer", "no-tokenizer: its folder has no tokenizer.json"),
    (
        "generate Hi -n 2 --base base --aligned half-tokenizer",
        "half-tokenizer: Expecting ',' delimiter: line 11 column 22 (char",
    ),
    (
        "generate Hi -n 2 --base base --aligned other-vocabulary",
        "The base and aligned models have different vocabularies: 1 ids",
    ),
    ("generate Hi -n 2 --base ./gone --aligned aligned", "No model folder at ./gone. Give a folder, or a hub id like"),
    ("generate Hi -n 2 --base gone/model --aligned aligned", "Cannot load gone/model: We couldn't connect to"),
    ("generate Hi -n 2 --base empty --aligned aligned", "empty. Should have a `model_type` key in its config.json."),
    (
        "generate Hi -n 2 --base file.txt --aligned aligned",
        "file.txt is a file, and no GGUF file. Give a folder,",
    ),
    ("generate Hi -n 2 --base base", "--base needs --aligned beside it: a composition has a base and"),
    (
        "generate Hi -n 2 --base base@nope --aligned aligned",
        "base is a folder, which has no revision; got 'base@nope'. Leave",
    ),
    ("generate Hi -n 2 --base tiny:big --aligned aligned", "Unknown model 'tiny:big'. Choose from: tiny:big-base,"),
    ("generate Hi -n 2 --pair tiny:big-base", "tiny:big-base is one model, not a pair. Give tiny, or both"),
    ("generate Hi -n 2 --pair moved", "The pair moved names the model ../gone-base, but there is no"),
    ("generate Hi -n 2 --pair half-pair", "Cannot read the pair half-pair: It looks like the config file"),
    ("generate Hi -n 2 --pair rule-pair", "Unknown rule 'duel'. Choose from: dual, primal, nudging,"),
    ("generate Hi -n 2 --pair typo-pair", "Unknown key 'bse' in a pair's configuration. Did you mean"),
    ("generate Hi -n 2 --pair list-pair", "Cannot read the pair list-pair: its config.json is no JSON"),
    ("generate Hi -n 2 --pair binary-pair", "Cannot read the pair binary-pair: It looks like the config file"),
    ("generate Hi -n 2 --pair empty", "empty is no pair: it has no config.json. Write one with: kad"),
    ("generate Hi -n 2 --pair file.txt", "file.txt is a file; a pair is a folder. Write one with: kad pack"),
    ("generate Hi -n 2 --pair base", "base is not a pair: its config.json names no base and aligned"),
    ("generate Hi -n 2 --pair ./gone", "No pair at ./gone. Give a folder written by `kad pack`, a hub"),
    ("generate Hi -n 2 --pair pair --base base", "Give --pair or --base, not both."),
    ("generate Hi -n 2 --aligned aligned", "--aligned needs --base beside it"),
    ("generate Hi -n 2 --base base --aligned no-template", "has no chat template. Use --raw"),
    (
        ["generate", "x" * 600, "--raw", "--base", "base", "--aligned", "aligned"],
        "The prompt has 600 tokens; the models' context holds 512",
    ),
    (["generate", ""], "The prompt is empty."),
    (["generate", "  \n "], "The prompt is empty."),
    ("generate -", "The prompt is empty."),
    ("generate", "The prompt is empty."),
    ("generate --file gone.txt", "Cannot read gone.txt: No such file or directory."),
    ("generate --file blank.txt", "The prompt is empty."),
    ("generate --file binary.bin", "binary.bin is not UTF-8 text (byte 1). Convert it first."),
    ("generate --file empty", "Cannot read empty: Is a directory."),
    ("generate Hi --file file.txt", "Give the prompt as an argument or with --file, not both."),
    ("generate Hi --raw --system x", "--raw uses no chat template: --system and --thinking would do"),
    ("generate Hi --temperature -1", "--temperature must be 0 or in [0.01, 1000], but is -1."),
    ("generate Hi --temperature 1e-6", "--temperature must be 0 or in [0.01, 1000], but is 1e-06."),
    (f"generate Hi --seed {'1' * 23}", "--seed must be in [0, 9223372036854775807], but is 11111111111111111111111."),
    (f"generate Hi --seed {'1' * 400}", "--seed must be in [0, 9223372036854775807], but is 111"),
    ("generate Hi --temperature nan", "--temperature must be 0 or in [0.01, 1000], but is nan."),
    ("generate Hi --top-p 1.5", "--top-p must be in (0, 1], but is 1.5."),
    ("generate Hi --repetition-penalty 0", "--repetition-penalty must be > 0, but is 0."),
    ("generate Hi --deferral-temperature 0", "--deferral-temperature must be in [0.01, 1000], but is 0."),
    ("generate Hi --temperature 0 --top-p 0.5", "--temperature 0 takes the most probable token; --top-p would do"),
    (["generate", "Hi", "--stop", ""], "--stop needs some text to stop at."),
    ("generate Hi --draft-tokens 99", "--draft-tokens must be a number from 0 to 64 or auto, but is"),
    ("generate Hi --draft-tokens many", "--draft-tokens must be a number from 0 to 64 or auto, but is 'many'."),
    ("generate Hi --device tpu", "Unknown --device 'tpu'. Choose from: cpu, cuda, cuda:1, mps, xpu, auto."),
    ("generate Hi --device cuda:77", "Device 'cuda:77' cannot be used here:"),
    ("generate Hi --dtype int8", "Unknown --dtype 'int8'. Choose from: auto, float32, bfloat16,"),
    ("generate Hi --json --color", "Give --json or --color, not both; the JSON holds the origin"),
    ("pack --base base", "kad pack needs --aligned, --out."),
    ("pack --base base --aligned aligned -o file.txt", "file.txt is a file; a pair is a folder. Choose another name."),
    ("pack --base base --aligned aligned -o file.txt/pair", "Cannot write the pair file.txt/pair: File exists."),
    (
        "pack --base base --aligned aligned -o /proc/pair",
        "Cannot write the pair /proc/pair: No such file or directory.",
    ),
    (
        "pack --base base --aligned other-vocabulary -o new",
        "The base and aligned models have different vocabularies: 1 ids",
    ),
    ("pack --base base --aligned aligned -o base", "base is a folder that is not a pair. Choose another one for the"),
    ("pack --base ./gone --aligned aligned -o new", "No model folder at ./gone. Give a folder, or a hub id like"),
    ("pack --base base --aligned aligned --rule duel -o new", "Did you mean dual?"),
    (
        "pack --base base --aligned aligned --base-option nope=1 -o new",
        "base. Allowed: attn_implementation, cache_dir, device_map,",
    ),
    (
        "pack --base base --aligned aligned --reference-dtype float16 -o new",
        "There are loading options for the reference model, but no",
    ),
    ("pack --base half-config --aligned aligned -o new", "half-config/config.json' is not a valid JSON file."),
    ("info", "kad info needs a pair (a folder, a hub id or tiny), or --base"),
    ("info ./gone", "No pair at ./gone. Give a folder written by `kad pack`, a hub"),
    ("info moved", "The pair moved names the model ../gone-base, but there is no"),
    ("info half-pair", "Cannot read the pair half-pair: It looks like the config file"),
    ("info --environment tiny", "kad info --environment is about this installation: leave out"),
    ("info --base unknown-type --aligned aligned", "unknown-type: The checkpoint you are trying to load has model"),
    ("info --base heads --aligned aligned", "heads: Class validation error for validator"),
    ("trace Hi --pair pair -o nowhere/t.html", "Cannot write nowhere/t.html: there is no folder nowhere."),
    ("trace Hi --pair pair -o empty", "A trace is written as .html or .json, not 'empty'."),
    ("trace Hi --pair pair -o /proc/t.html", "Cannot write /proc/t.html: No such file or directory."),
    ("trace Hi --pair pair -o t.xyz -n 2", "A trace is written as .html or .json, not 't.xyz'."),
    ("eval --tasks kad_tny --out r", "Unknown task"),
    ("eval --tasks , --out r", "--tasks names no task. Try kad_tiny or kad_paper"),
    ("eval --methods bse --out r", "Did you mean the method base?"),
    ("eval --methods base;base --out r", "--methods needs one method or more, each once, separated by"),
    ("eval --methods base@speculative --out r", "base runs one model alone, which has no drafts. Leave out"),
    (
        "eval --methods dual@speculative:num_draft_tokens=x --out r",
        "num_draft_tokens is a positive number or auto, but got 'x'",
    ),
    ("eval --methods oracle --out r", "The method oracle needs a model: oracle=HUB_ID or oracle=PATH."),
    ("eval --pair pair --limit 0 --out r", "--limit must be >= 1, but is 0."),
    ("eval --pair pair --limit 1 --out file.txt", "Cannot write the run directory file.txt: File exists"),
    ("eval --pair pair --limit 1 --out /proc/r", "Cannot write the run directory /proc/r: No such file or"),
    ("eval --pair pair --limit 1 --out file.txt/r", "Cannot write the run directory file.txt/r: Not a directory"),
    ("eval --pair moved --limit 1 --out r", "The pair moved names the model ../gone-base, but there is no"),
    (
        "eval --methods reference --out r --base base --aligned aligned",
        "reference needs the reference model. Give one with --reference",
    ),
    ("eval --baseline primal --out r", "The baseline 'primal' is not among the methods. Choose from: base, aligned,"),
    (
        "eval --tasks kad_gsm8k --data-dir empty --out r",
        "No file gsm8k_test.jsonl in empty: the rows of the task should",
    ),
    ("eval --include-path gone --tasks x --out r", "--include-path needs a folder with task files (YAML), but gone"),
    (
        "eval --base truncated --aligned aligned --limit 1 -n 2 --out r1",
        "truncated/model.safetensors: the file is damaged or cut off",
    ),
    ("eval --out r --base base", "--base needs --aligned beside it: a composition has a base and"),
    (
        "eval --methods oracle=./gone --limit 1 -n 2 --out r2",
        "No model folder at ./gone. Give a folder, or a hub id like",
    ),
    ("eval --pair pair --limit 1 --out pair", "pair is a pair or a model. Choose another --out."),
    ("report", "Missing argument 'DIR...'."),
    ("report gone", "gone is no run directory: it has no settings.json. Give the"),
    ("report empty", "empty is no run directory: it has no settings.json. Give the"),
    ("report run-garbage", "run-garbage/samples.jsonl, line 2 is no sample of a run"),
    ("report run-nul", "run-nul/samples.jsonl, line 2 is no sample of a run (it has NUL bytes"),
    ("report run-half", "run-half/settings.json is damaged (Expecting property name"),
    ("report run-empty", "There are no finished samples to report."),
    ("report run-good run-good", "The runs to compare need distinct folder names, but got"),
    ("report run-good --baseline x", "The baseline 'x' is not among the methods. Choose from: aligned"),
    ("report run-good --out file.txt", "Cannot write to the folder file.txt: File exists."),
    ("report run-good --out /proc/x", "Cannot write to the folder /proc/x: No such file or directory."),
    ("report run-later", "run-later has the schema 'kad-run/9', but this version of kad"),
    ("report run-keys", "run-keys/settings.json is damaged (it lacks methods, samples,"),
    (
        "eval --pair pair --limit 1 -n 2 --methods aligned --out run-half",
        "run-half/settings.json is damaged (Expecting property name",
    ),
    (
        "eval --pair pair --limit 1 -n 2 --methods aligned --out run-list",
        "run-list/settings.json is damaged ('list' object is not a",
    ),
    ("report run-list", "run-list/settings.json is damaged ('list' object is not a"),
    ("sweep --grid a,b --out r", "The grid 'a,b' holds 'a', which is no number"),
    ("sweep --grid 0.1:0.9 --out r", "A grid is 0.1,0.2,0.4 or START:STOP:STEP, but got '0.1:0.9'"),
    ("sweep --grid 0.5,0.5 --out r", "The grid '0.5,0.5' holds a value twice"),
    ("sweep --grid 0:1:0 --out r", "The grid '0:1:0' has no value, or more than 200. Give a positive step"),
    (
        "sweep --rule dual --parameter budget --grid 0.1 --out r",
        "dual has no parameter 'budget' to sweep. Choose from: threshold,",
    ),
    ("sweep --rule aligned_only --grid 0.1 --out r", "aligned_only has no parameter to sweep"),
    (
        "sweep --grid 0.1 --pair pair --limit 1 -n 2 --out /proc/r",
        "Cannot write the run directory /proc/r: No such file or",
    ),
    ("tune --grid 0.1 --out r", "The rule is written into a pair folder of your own, but --pair"),
    ("tune --grid 0.1 --pair gone --out r", "The rule is written into a pair folder of your own, but --pair"),
    (
        "tune --grid 0.1 --pair pair --tasks kad_tiny --out r",
        "kad_tiny is a test split (its file does not say `metadata:",
    ),
    (
        "tune --grid 0.1 --pair pair --parameter num_draft_tokens --out r",
        "A pair's rule has no window to write. Use kad sweep for",
    ),
    (
        "tune --grid 0.1,0.5 --pair pair --limit 2 -n 2 --metric nope --out r3",
        "kad_tiny_development has no metric 'nope'. Choose --metric from:",
    ),
    ("reproduce llama", "Unknown preset 'llama'. Choose from: olmo2, qwen3"),
    ("analyze --prompts gone.txt", "Cannot read gone.txt: No such file or directory."),
    ("analyze --prompts blank.txt", "blank.txt has no question: put one on each line."),
    ("analyze --task nope", "Unknown task"),
    ("analyze --task tiny --prompts file.txt", "Give --task or --prompts, not both."),
    ("figures -o file.txt --limit 1 -n 2", "Cannot write to the folder file.txt: File exists."),
    ("figures -o /proc/f --limit 1 -n 2", "Cannot write to the folder /proc/f: No such file or directory."),
    ("chat --pair gone/x", "Cannot read the pair gone/x: We couldn't connect to"),
    ("chat --rule duel", "Did you mean dual?"),
    ("demo x", "Got unexpected extra argument(s) (x)"),
    ("serve --engine vllm", "vLLM serves a pair: give a folder written by kad pack, a hub id, or tiny."),
    ("playground --pair gone/x/y", "No pair at gone/x/y. Give a folder written by `kad pack`, a hub"),
    ("playground gone/x/y", "No pair at gone/x/y. Give a folder written by `kad pack`, a hub"),
    ("playground tiny --pair pair", "The pair is named twice, tiny and --pair pair. Leave one out."),
    ("chat gone/x", "Cannot read the pair gone/x: We couldn't connect to"),
    ("playground --port 70000", "--port must be in [0, 65535], but is 70000."),
    ("serve gone/x/y", "No pair at gone/x/y. Give a folder written by `kad pack`, a hub"),
    ("generate Hi --base base --base aligned --aligned aligned", "--base is given twice; it takes one value."),
    ("tune --grid 0.1 --pair pair --objective speed --out r", "--objective speed needs --floor"),
    ("figures -o nowhere --limit 1 --task kad_tiny --prompts file.txt", "not both"),
]


# In the mistakes that are found late, because a model, a pair, a task or a run must be read first.
READ = {
    "truncated", "garbage", "weightless", "sizes", "layers", "heads", "half-config", "no-config", "unknown-type",
    "no-tokenizer", "half-tokenizer", "no-template", "x" * 600, "other-vocabulary", "empty", "gone/model", "gone/x",
    "half-pair", "typo-pair", "list-pair", "binary-pair", "run-half", "run-list", "--task", "--tasks",
    "--include-path", "--metric", "reference", "cuda:77",
}  # fmt: skip
LINES = [(given.split() if isinstance(given, str) else given, words) for given, words in MISTAKES]
LATE = [(given, words) for given, words in LINES if READ & {*given}]
AT_ONCE = [(given, words) for given, words in LINES if not READ & {*given}]
WITHOUT_TORCH = """
import json, sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "lm_eval.tasks", "matplotlib.pyplot")))  # cannot be imported
from typer.testing import CliRunner
from kad.cli.main import app
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(app, arguments, input="", env={"COLUMNS": "200"})
    print(json.dumps([done.exit_code, done.stdout, done.stderr, repr(done.exception)]))
"""


def is_refused(code: int, out: str, said: str, words: str) -> bool:
    """Whether a command ended as a mistake should: in a line or two that hold these words."""
    lines = len(said.strip().splitlines())
    return code == 2 and out == "" and said.startswith("error: ") and words in said and lines <= 2


@pytest.mark.parametrize(("arguments", "words"), LATE, ids=[" ".join(arguments) for arguments, _ in LATE])
def test_a_mistake_is_a_line_or_two(arguments: list[str], words: str, inside: Path) -> None:
    before = {*inside.rglob("*")}
    done = call(*arguments)
    assert is_refused(done.exit_code, done.stdout, done.stderr, words), (done.stderr, done.exception)
    assert {*inside.rglob("*")} == before


def test_what_can_be_seen_at_once_is_said_before_torch_is_imported(inside: Path) -> None:
    """Importing takes seconds. All in one new process, where torch and Transformers cannot be imported."""
    assert len(AT_ONCE) > 100
    before = {*inside.rglob("*")}
    asked = json.dumps([arguments for arguments, _ in AT_ONCE])
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], input=asked, capture_output=True, text=True, check=True)
    for (arguments, words), line in zip(AT_ONCE, ran.stdout.splitlines(), strict=True):
        code, out, said, error = json.loads(line)
        assert is_refused(code, out, said, words), (arguments, said, error)
    assert {*inside.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("generate Hi -n 2 --base base --aligned base", "base and aligned are the same model"),
        ("generate Hi -n 2 --base aligned --aligned base", "the aligned model is bigger than the base model"),
        ("info --base aligned --aligned base", "the aligned model is bigger than the base model"),
    ],
)
def test_what_is_probably_not_meant_is_said(arguments: str, note: str, inside: Path) -> None:
    done = call(*arguments.split())
    assert done.exit_code == 0, done.stderr
    assert f"note: {note}" in done.stderr


def test_binary_input_is_refused() -> None:
    assert "standard input is not UTF-8 text (byte 1)" in call("generate", "-", stdin=b"a\xff\xfe").stderr


def test_models_that_do_not_fit_are_shown_with_exit_code_2(inside: Path) -> None:
    done = call("info", "--base", "base", "--aligned", "other-vocabulary")
    assert done.exit_code == 2
    assert "no match: The base and aligned models have different vocabularies" in done.stdout


def test_a_run_without_an_answer_binds_nobody(inside: Path, tmp_path: Path) -> None:
    """Its first start failed, or was stopped early; the next one may have other settings."""
    shutil.copytree("run-empty", tmp_path / "run")
    command = ["eval", "--pair", "pair", "--limit", 1, "-n", 3, "--methods", "base", "--out", tmp_path / "run"]
    assert call(*command).exit_code == 0


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_the_middle_of_a_run_loses_no_answer(inside: Path, tmp_path: Path) -> None:
    command = ["eval", "--pair", "pair", "--limit", 12, "-n", 2, "--methods", "aligned", "--batch-size", 1]
    command += ["--out", tmp_path / "run"]
    with small_disk(6000):
        done = call(*command)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: Cannot write {tmp_path}/run/samples.jsonl: File too large.")
    samples = tmp_path / "run" / "samples.jsonl"
    kept = samples.read_bytes().rpartition(b"\n")[0].splitlines()
    assert 0 < len(kept) < 12
    assert call(*command).exit_code == 0
    lines = samples.read_bytes().splitlines()
    assert len(lines) == 12
    assert lines[: len(kept)] == kept


def test_a_full_disk_at_the_end_of_a_trace_is_one_line(inside: Path, tmp_path: Path) -> None:
    with small_disk(2000):
        done = call("trace", "Hi", "--pair", "pair", "-n", 4, "-t", 0, "-o", tmp_path / "trace.html")
    assert done.exit_code == 2
    assert "File too large" in done.stderr.splitlines()[-1]


def test_no_flag_shows_a_type() -> None:
    from kad.cli.main import COMMANDS

    for command in COMMANDS:
        assert "bool" not in call(command, "--help").stdout
