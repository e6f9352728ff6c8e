"""The benchmark runs, its ratios are finite, and it says what it measured. No time is ever asserted."""

import importlib.util
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import character_tokenizer
from tiny import tiny_model

from cdlearn import CachedLM, Contrast, generate
from cdlearn.cli import bench
from cdlearn.cli import main as cli
from cdlearn.cli.timing import Forwards, Stopwatch

RATIOS = [
    "contrastive, no trace",
    "contrastive",
    "expert greedy",
    "transformers generate",
    "DoLa",
    "as_causal_lm",
    "mix",
    "prompted",
    "first token, contrastive",
    "first token, expert greedy",
    "early exit at 1",
]
FORWARDS = {"expert forward", "amateur forward", "both forwards"}
spec = importlib.util.spec_from_file_location("sweep", Path(__file__).parent.parent / ".ci" / "sweep.py")
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)


@pytest.fixture
def pair():
    return tiny_model("llama", seed=1), tiny_model("llama", seed=2)


def test_every_ratio_is_finite_and_the_machine_is_described(pair):
    threads = torch.get_num_threads()
    record = bench.measure(*pair, context=4, steps=4, repetitions=2, threads=1)
    assert torch.get_num_threads() == threads
    assert {row["method"] for row in record["rows"]} == {*RATIOS, *FORWARDS}
    for row in record["rows"]:
        assert math.isfinite(row["ms"]) and row["ms"] > 0
        assert bool(row["against"]) == (row["method"] in RATIOS)
        if row["against"]:
            assert 0 < row["low"] <= row["ratio"] <= row["high"] < math.inf
    assert record["machine"]["threads"] == 1 and record["machine"]["torch"] == torch.__version__
    assert record["setting"]["steps"] == 4 and record["setting"]["dtype"] == "torch.float32"
    assert re.fullmatch(r"[1-9]\d* MiB|unknown", record["machine"]["peak memory"])


def test_the_stopwatch_changes_no_token_and_times_every_step(pair):
    prompt = torch.tensor([[1, 5, 9]])
    plain = generate(Contrast(*pair), prompt, max_new_tokens=9, eos_token_ids=(), progress=False)
    forwards = Forwards(dict(zip(("expert", "amateur"), pair)))
    timed = generate(Stopwatch(Contrast(*pair), forwards), prompt, max_new_tokens=9, progress=False)
    assert timed.token_ids == plain.token_ids and timed.trace is not None
    # the first call is the prompt: it is no step, neither for the loop nor for the bare forwards
    assert len(forwards.laps) == len(forwards.times["expert"]) == len(forwards.times["amateur"]) == 8
    assert forwards.first > 0 and set(forwards.prompt) == {"expert", "amateur"}
    assert all(cache.get_seq_length() == 3 + 8 for cache in forwards.caches.values())


def test_the_bare_forwards_do_not_count_as_the_loops_time(pair, monkeypatch):
    expert, amateur = pair
    forward = amateur.forward
    monkeypatch.setattr(amateur, "forward", lambda **inputs: time.sleep(0.02) or forward(**inputs))
    forwards = Forwards({"amateur": amateur})
    started = time.perf_counter()
    generate(Stopwatch(CachedLM(expert), forwards), torch.tensor([[1, 5, 9]]), max_new_tokens=6, progress=False)
    assert time.perf_counter() - started - sum(forwards.laps) - forwards.first > 6 * 0.02


@pytest.mark.parametrize("size, most, least", [("25m", 25e6, 5e6), ("100m", 95e6, 18e6)])
def test_random_pair_has_the_promised_sizes_and_leaves_the_seed_alone(size, most, least):
    state = torch.get_rng_state()
    with torch.device("meta"):  # counted, not built
        expert, amateur = bench.random_pair(size)
    assert torch.equal(state, torch.get_rng_state())
    assert most < sum(p.numel() for p in expert.parameters()) < 1.4 * most
    assert least < sum(p.numel() for p in amateur.parameters()) < 1.5 * least
    assert not expert.training


def test_command_prints_a_table_or_json(capsys):
    short = ["bench", "--context", "4", "--steps", "3", "--repetitions", "1", "--threads", "1"]
    assert cli.main(short) == 0
    table = capsys.readouterr().out
    assert all(method in table for method in RATIOS[:-1]) and "threads 1" in table
    assert cli.main([*short, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in record["rows"]} >= set(RATIOS[:-1]) and record["machine"]["device"]
    speculative = {row["method"]: row for row in record["rows"]}["speculative contrastive"]
    assert speculative["against"] == "contrastive text" and speculative["predicted"] > 0
    assert speculative["accepted"] is None or 0 <= speculative["accepted"] <= 1


@pytest.fixture
def folders(tmp_path):
    for name, seed in (("expert", 1), ("amateur", 2)):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / name)
        character_tokenizer().save_pretrained(tmp_path / name)
    return ["--expert", str(tmp_path / "expert"), "--amateur", str(tmp_path / "amateur"), "--device", "cpu"]


def test_any_pair_with_a_tokenizer_gets_the_whole_table(folders, capsys):
    short = ["--context", "4", "--steps", "3", "--repetitions", "1", "--threads", "1", "--dtype", "bfloat16", "--json"]
    assert cli.main(["bench", *folders, *short]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in record["rows"]}
    assert record["setting"]["dtype"] == "torch.bfloat16" and FORWARDS < rows.keys()
    assert {name for name in RATIOS if not name.startswith(bench.SMALL)} == rows.keys() & set(RATIOS)
    for method in bench.AIMS.keys() - set(bench.SMALL):
        assert rows[method]["aim"] == bench.AIMS[method][1] and rows[method]["ratio"] > 0
    assert rows["speculative over assisted"]["against"] == "transformers assisted"
    assert rows["speculative"]["predicted"] > 0 and rows["speculative"]["drafted"] >= 0
    with pytest.raises(SystemExit):
        cli.main(["bench", *folders, "--size", "25m"])
    assert "--size 25m names a pair" in capsys.readouterr().err


def test_the_prediction_is_theorem_3_8():
    """Leviathan et al., eq. 1 and theorem 3.8, where every drafted token has the same chance."""
    rate, gamma, cost = 0.6, 4, {"expert": 1.0, "amateur": 0.1, "exit": 0.3, "check": 1.0}
    tokens = (1 - rate ** (gamma + 1)) / (1 - rate)
    count = {"rounds": 1000, "drafted": 1000 * gamma, "new_tokens": 1000 * tokens}
    assert bench._predicted("speculative", count, cost) == pytest.approx(tokens / (gamma * 0.1 + 1))
    assert bench._predicted("self-speculative, exit 1", count, cost) == pytest.approx(tokens / (gamma * 0.3 + 1))
    both = bench._predicted("speculative contrastive", count, cost)
    assert both == pytest.approx(1.1 * tokens / ((gamma + 1) * 0.1 + 1))


@pytest.mark.parametrize("flags", [["--device", "gpu"], ["--dtype", "int8"]])
def test_a_random_pair_goes_where_it_is_told(flags, capsys):
    assert cli.main(["bench", "--size", "25m", *flags]) == 1
    assert f"{flags[0][2:]}='{flags[1]}'" in capsys.readouterr().err
    with torch.device("meta"):
        expert, _, texts = bench.load("25m", device="meta", dtype="bfloat16")
    assert (expert.device.type, expert.dtype, texts) == ("meta", torch.bfloat16, [])


def test_a_sweep_has_every_setting_that_fits_and_its_figure(pair):
    record = sweep.sweep(*pair, (1, 2), (4, 8, 1000), steps=3, repetitions=1)
    rows = record["rows"]
    settings = {(row["batch"], row["context"]) for row in rows}
    assert settings == {(1, 4), (1, 8), (2, 4), (2, 8)}  # 1,000 tokens do not fit
    assert len(rows) == 4 * len(RATIOS + list(FORWARDS)) and not {"batch", "context"} & record["setting"].keys()
    figure = sweep.plot_sweep(rows)
    drawn = [line for line in figure.axes[1].containers if line.get_label() == "contrastive"][0]
    wanted = {row["context"]: row["ratio"] for row in rows if (row["method"], row["batch"]) == ("contrastive", 2)}
    assert list(drawn.lines[0].get_ydata()) == [wanted[4], wanted[8]]
    with pytest.raises(ValueError, match="at most 256 tokens"):
        sweep.sweep(*pair, (1,), (1000,), steps=3)


@pytest.mark.parametrize("flag, value", [("--size", "7b"), ("--steps", "1"), ("--context", "0"), ("--threads", "0")])
def test_bad_arguments_are_named(capsys, flag, value):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", flag, value])
    error = capsys.readouterr().err
    assert end.value.code == 2 and flag in error and value in error
