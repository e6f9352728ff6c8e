"""The README is what a newcomer copies from: its lines, blocks, commands, tables and links are run and compared."""

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from test_notebooks import broken_links
from test_pages import pages

import cdlearn
from cdlearn.cli.main import main
from cdlearn.hf import as_causal_lm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `((?:generate|beam_search|speculate|as_causal_lm)\(.*\))` \|$", README, re.MULTILINE)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"cdlearn |echo .*\| cdlearn ", line)]
SHORTER = {"eval": "-n 2", "bench": "--steps 2 --repetitions 1 --context 4"}


@pytest.fixture(scope="module")
def names():
    pair = cdlearn.load_pair()
    known = {name: getattr(cdlearn, name) for name in cdlearn.__all__} | {"as_causal_lm": as_causal_lm}
    known |= {"expert": pair.expert, "amateur": pair.amateur, "tokenizer": pair.tokenizer}
    known["prompt"] = re.search(r'^prompt = "([^"]+)"$', README, re.MULTILINE).group(1)
    return known | {"base": cdlearn.load_pair(amateur="early").amateur, "other": pair.amateur,
                    "other_tokenizer": pair.tokenizer}  # fmt: skip


def test_the_table_is_there():
    assert len(ROWS) >= 16 and len(COMMANDS) >= 7 and len(BLOCKS) >= 8


@pytest.mark.parametrize("method, line", ROWS, ids=[method.strip() for method, _ in ROWS])
def test_each_line_runs(names, method, line):
    made = eval(line, dict(names))
    if "as_causal_lm" in line:
        assert made.shape[1] > names["tokenizer"](names["prompt"], return_tensors="pt")["input_ids"].shape[1]
    else:
        assert made.text and made.finish_reason in ("eos", "length")


def test_the_python_blocks_run_one_after_the_other(monkeypatch, tmp_path, capsys):
    load = cdlearn.load_pair
    hub = []

    def load_pair(*models, **options):  # a hub id is out of reach: the embedded pair stands in for it
        hub.extend(models)
        return load(**options)

    monkeypatch.setattr(cdlearn, "load_pair", load_pair)
    monkeypatch.chdir(tmp_path)
    known, blocks = {}, [text for kind, text in BLOCKS if kind == "python"]
    for text in blocks:
        exec(text, known)
    assert len(blocks) >= 4 and len(hub) == 2 and all(name.startswith("Qwen/") for name in hub)
    assert capsys.readouterr().out.lstrip().startswith("The capital of Turkey is Ankara.")
    assert (tmp_path / "handout.html").stat().st_size > 10_000


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_runs(line, tmp_path, monkeypatch, capsys):
    """As a shell would run it; what takes minutes is made shorter."""
    text, _, command = line.rpartition(" | ")
    words = shlex.split(command, comments=True)
    assert words.pop(0) == "cdlearn"
    words += shlex.split(SHORTER.get(words[0], ""))
    (question,) = re.findall("^echo '(.*)' > questions.jsonl$", README, re.MULTILINE)
    (tmp_path / "questions.jsonl").write_text(question + "\n", encoding="utf-8")
    solved = next((Path(cdlearn.__file__).parents[1] / "notebooks/assignments/source").glob("01*/*.ipynb"))
    shutil.copy(solved, tmp_path)  # for `cdlearn check`
    monkeypatch.chdir(tmp_path)
    typed = shlex.split(text)[1] if text else ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


def test_the_texts_of_the_demo_are_what_compare_prints(capsys, monkeypatch):
    (shown,) = [text for kind, text in BLOCKS if text.startswith("> ")]
    (command,) = re.findall(r"`cdlearn (compare .*) < FILE`", README)
    lines = "\n".join(re.findall("^> (.*)$", shown, re.MULTILINE))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_the_tables_of_speed_are_the_measured_ones():
    page = (ROOT / "notebooks" / "speed.md").read_text(encoding="utf-8")
    assert pages.with_performance(page) == page, "run `make pages`"


def test_the_diagrams_numbers_are_the_evaluations():
    diagram = (ROOT / "notebooks" / "pictures" / "subtraction.svg").read_text(encoding="utf-8")
    rows = json.loads((Path(cdlearn.__file__).parent / "toyworld" / "pair" / "eval.json").read_text())["rows"]
    value = {(row["task"], row["strategy"]): round(row["value"]) for row in rows if row["metric"] == "right"}
    for task in ("puzzles", "arithmetic"):
        ours, alone = value[task, "contrastive beta=0.5"], value[task, "greedy"]
        assert re.search(f"{ours}% (are right )?instead of {alone}%", diagram)


def test_the_readme_is_short():
    assert sum(bool(re.search(r"\w", word)) for word in README.split()) <= 1500  # the bars of tables are no words


def test_every_make_target_exists_and_every_link_leads_somewhere():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"lab", "test", "demo", "bench"} <= named <= targets
    assert broken_links(README, ROOT) == []
