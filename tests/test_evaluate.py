"""`cdlearn eval`: the arithmetic of intervals, and the whole command on the embedded pair."""

import json

import numpy as np
import pytest

import cdlearn
from cdlearn.toyworld import evaluate as ev
from cdlearn.toyworld.tasks import TASKS, Item


def test_bootstrap_measures_a_ratio_of_sums_and_repeats_itself():
    grades = [{"m": (1, 2)}, {"m": (0, 0)}, {"m": (3, 4)}]
    values = ev.bootstrap(grades, ["a", "b", "c"], "m")
    assert values[0] == pytest.approx(100 * 4 / 6)
    assert np.array_equal(values, ev.bootstrap(grades, ["a", "b", "c"], "m"))
    assert values.min() >= 0 and values.max() <= 75 + 1e-9


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        draws = rng.random(200) < 0.3
        span = ev.interval(ev.bootstrap([{"m": (float(d), 1)} for d in draws], [str(k) for k in range(200)], "m"))
        hits += span["low"] <= 30 <= span["high"]
    assert hits >= 88


def test_groups_are_drawn_as_a_whole():
    """Six copies of one item tell no more than the item."""
    once = [{"m": (k % 2, 1)} for k in range(40)]
    single = ev.interval(ev.bootstrap(once, [f"{k:02}" for k in range(40)], "m"))
    copies = [grade for grade in once for _ in range(6)]
    grouped = ev.interval(ev.bootstrap(copies, [f"{k:02}" for k in range(40) for _ in range(6)], "m"))
    assert grouped == single


def test_differences_are_paired():
    items = [Item("", None, str(k)) for k in range(50)]
    base = [{"m": (k % 2, 1)} for k in range(50)]
    rows = ev.rows_of(TASKS["puzzles"], items, {"greedy": base, "same": base})
    assert "minus_greedy" not in rows[0]
    assert rows[1]["minus_greedy"] == {"value": 0, "low": 0, "high": 0}


def test_unknown_tasks_and_sizes_are_refused():
    pair = cdlearn.load_pair()
    with pytest.raises(ValueError, match="tasks names 'riddles'"):
        ev.evaluate(pair, tasks=["riddles"], progress=False)
    with pytest.raises(ValueError, match="n is 0"):
        ev.evaluate(pair, tasks=["puzzles"], n=0, progress=False)


def test_overlap_of_a_model_with_itself_is_one():
    pair = cdlearn.load_pair()
    items = TASKS["puzzles"].items(4)
    texts = [cdlearn.generate(pair.expert, i.prompt, tokenizer=pair.tokenizer, max_new_tokens=8) for i in items]
    twin = cdlearn.Pair(pair.expert, pair.expert, pair.tokenizer, pair.vocab_size)
    rows = {r["strategy"]: r["value"] for r in ev.drafting(twin, {"puzzles": texts}, {"puzzles": items})}
    assert rows["amateur"] == 100
    assert all(0 < value < 100 for draft, value in rows.items() if draft.startswith("exit"))
    assert ev.agreement(twin, "puzzles", texts, items, "greedy")["value"] == 100


def test_command_prints_the_table_and_writes_the_rows(tmp_path, capsys):
    file = tmp_path / "deep" / "rows.json"
    assert ev.main(["--tasks", "puzzles", "facts", "-n", "6", "--no-grid", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    for task in ("puzzles", "facts", "drafting"):
        assert f"\n{task} (" in f"\n{out}"
    right = [r for r in rows if r["task"] == "puzzles" and r["metric"] == "right"]
    everything = set(ev.strategies(cdlearn.load_pair(), cdlearn.load_expert("early").expert))
    assert {r["strategy"] for r in right} == everything - {"DoLa high"}
    assert "DoLa high" in {r["strategy"] for r in rows if r["task"] == "facts"}
    assert all(r["low"] <= r["value"] <= r["high"] and r["items"] == 6 for r in right)
    assert {r["items"] for r in rows if r["task"] == "facts" and r["metric"] == "true"} == {240}


def test_command_refuses_bad_arguments(capsys):
    for argv in (["-n", "0"], ["--tasks", "riddles"]):
        with pytest.raises(SystemExit) as exit:
            ev.main(argv)
        assert exit.value.code == 2
    assert "riddles" in capsys.readouterr().err
