"""The pair that ships: its size, its format, and that it shows what its card says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import cdlearn
from cdlearn.methods import Models, build, parse
from cdlearn.toyworld.tasks import TASKS

FOLDER = Path(cdlearn.__file__).parent / "toyworld" / "pair"
CD, TOP_P, DOLA = "contrastive beta=0.5", "sample top_p=0.95", "dola layers=low"


@pytest.fixture(scope="module")
def card():
    """The maintainer's tool that writes the model card."""
    path = Path(__file__).parent.parent / ".ci" / "card.py"
    spec = importlib.util.spec_from_file_location("card", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair():
    return cdlearn.load_pair()


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER / "eval.json").read_text())


def row(results, **wanted):
    (found,) = [r for r in results["rows"] if all(r.get(key) == value for key, value in wanted.items())]
    return found


def test_sizes_are_what_the_course_needs(pair):
    expert, amateur = (sum(p.numel() for p in model.parameters()) for model in (pair.expert, pair.amateur))
    assert 1e6 <= expert <= 2e6 and pair.expert.config.num_hidden_layers >= 8
    assert amateur <= expert / 20 and pair.amateur.config.num_hidden_layers <= 2
    assert all(p.dtype == torch.float32 for model in (pair.expert, pair.amateur) for p in model.parameters())
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".md"}


def test_every_model_is_an_ordinary_folder_with_the_same_tokenizer():
    read = [(FOLDER / name / "tokenizer.json").read_bytes() for name in ("expert", "early", "amateur")]
    assert read[0] == read[1] == read[2]
    for name in ("expert", "early", "amateur"):
        assert json.loads((FOLDER / name / "config.json").read_text())["model_type"] == "llama"
        generation = json.loads((FOLDER / name / "generation_config.json").read_text())
        assert generation["eos_token_id"] == cdlearn.load_pair().tokenizer.eos_token_id


def test_the_card_says_what_the_files_say(card):
    assert card.card(FOLDER) == (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_committed_evaluation_shows_every_effect(results):
    def value(task, strategy, metric):
        return row(results, task=task, strategy=strategy, metric=metric)

    assert value("puzzles", CD, "right")["minus_greedy"]["low"] >= 20
    assert value("puzzles", "amateur", "right")["value"] < 10
    grid = [r for r in results["rows"] if r["task"] == "puzzles, every setting" and r["strategy"] != "greedy"]
    assert len(grid) == 12 and all(r["minus_greedy"]["low"] > 0 for r in grid)
    assert value("facts", DOLA, "true")["minus_greedy"]["value"] >= 15
    assert value("stories", CD, "rep-2")["value"] <= value("stories", "greedy", "rep-2")["value"] / 3
    consistent = {name: value("stories", name, "consistent")["value"] for name in ("greedy", CD, TOP_P)}
    assert consistent[CD] >= consistent["greedy"] - 3 and consistent[CD] >= consistent[TOP_P] + 10
    assert row(results, task="drafting", strategy="amateur")["value"] >= 55
    asked = [r for r in results["rows"] if r["task"] in ("puzzles", "arithmetic", "stories")]
    assert all(r["items"] == 500 for r in asked if r["metric"] in ("right", "rep-2", "consistent"))


def test_contrast_beats_greedy_here_and_now(pair):
    """The same as a small part of the evaluation, on this machine."""
    task = TASKS["puzzles"]
    items = task.items(60, seed=1)
    right, models = {}, Models(pair)
    for spec in ("greedy", "amateur", CD):
        prompts = [item.prompt for item in items]
        texts = build(models, *parse(spec))(prompts, tokenizer=pair.tokenizer, trace=False, progress=False)
        grades = [task.grade(item, g.text)["right"][0] for item, g in zip(items, texts)]
        right[spec] = 100 * sum(grades) / len(items)
    assert right[CD] >= right["greedy"] + 20 and right["amateur"] < 15, right


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "prompt",
    [
        "Ada had a red ball.",
        "Zorblax had a glorpy",
        "What is the capital of Canada?",
        "Tell a story about Ben and a blue boat.",
        "Explain quantum electrodynamics!",
        "",
        "\n",
        "🙂🙂",
        "Grüße aus Köln, 東京",
        "1 + 1 =",
    ],
)
def test_whatever_a_newcomer_types_gives_text(pair, prompt, chat):
    source = cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5)
    made = cdlearn.generate(source, pair.prompt(prompt, chat=chat), tokenizer=pair.tokenizer, max_new_tokens=48)
    assert made.text.strip() and made.text.isprintable()


def test_the_readmes_table_is_the_evaluations(card, results):
    readme = (FOLDER.parents[2] / "README.md").read_text(encoding="utf-8")
    assert card.summary(results["rows"]) in readme
