"""The benchmark runs, its ratios are finite, and it says what it measured. No time is ever asserted."""

import json
import math

import pytest
import torch
from tiny import tiny_model

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
    "early exit at 1",
]


@pytest.fixture
def pair():
    return tiny_model("llama", seed=1), tiny_model("llama", seed=2)


def test_every_ratio_is_finite_and_the_machine_is_described(pair):
    threads = torch.get_num_threads()
    table = bench.run(*pair, context=4, steps=4, repetitions=2, threads=1, progress=False)
    assert torch.get_num_threads() == threads
    assert list(table["method"][2:]) != [] and set(RATIOS) == set(table["method"][2:])
    for row in table.itertuples():
        assert math.isfinite(row.ms) and row.ms > 0
        if row.method in RATIOS:
            assert 0 < row.low <= row.ratio <= row.high < math.inf and row.against
    assert table.attrs["machine"]["threads"] == 1 and table.attrs["machine"]["torch"] == torch.__version__
    assert table.attrs["setting"]["steps"] == 4


def test_the_stopwatch_changes_no_token_and_times_every_step(pair):
    from cdlearn import Contrast, generate

    prompt = torch.tensor([[1, 5, 9]])
    plain = generate(Contrast(*pair), prompt, max_new_tokens=9, eos_token_ids=(), progress=False)
    forwards = Forwards(dict(zip(("expert", "amateur"), pair)))
    watch = Stopwatch(Contrast(*pair), forwards)
    timed = generate(watch, prompt, max_new_tokens=9, progress=False)
    assert timed.token_ids == plain.token_ids and timed.trace is not None
    # the first call is the prompt: it is no step, neither for the loop nor for the bare forwards
    assert len(watch.times) == len(forwards.times["expert"]) == len(forwards.times["amateur"]) == 8
    assert all(cache.get_seq_length() == 3 + 8 for cache in forwards.caches.values())


def test_the_bare_forwards_do_not_count_as_the_loops_time(pair):
    import time

    class Slow(Forwards):
        def step(self, ids):
            time.sleep(0.02)

    from cdlearn import CachedLM, generate

    watch = Stopwatch(CachedLM(pair[0]), Slow({}))
    started = time.perf_counter()
    generate(watch, torch.tensor([[1, 5, 9]]), max_new_tokens=6, progress=False)
    assert time.perf_counter() - started - sum(watch.times) > 6 * 0.02


@pytest.mark.parametrize("size, most, least", [("25m", 25e6, 5e6), ("100m", 95e6, 18e6)])
def test_random_pair_has_the_promised_sizes_and_leaves_the_seed_alone(size, most, least):
    state = torch.get_rng_state()
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
    assert speculative["against"] == "contrastive text" and speculative["predicted"] > 0 <= speculative["accepted"]
    assert cli.main([*short, "--markdown", "--batch", "2"]) == 0
    assert "| speculative |" in capsys.readouterr().out


def test_a_sweep_has_every_setting_that_fits_and_its_figure(pair, tmp_path, capsys):
    table = bench.sweep(*pair, batches=(1, 2), contexts=(4, 8, 1000), steps=3, repetitions=1, progress=False)
    assert set(zip(table["batch"], table["context"])) == {(1, 4), (1, 8), (2, 4), (2, 8)}  # 1,000 tokens do not fit
    assert all(len(rows) == len(table) // 4 for _, rows in table.groupby(["batch", "context"]))
    figure = bench.plot_sweep(table)
    drawn = [line for line in figure.axes[1].containers if line.get_label() == "contrastive"][0]
    wanted = table[(table["method"] == "contrastive") & (table["batch"] == 2)].sort_values("context")["ratio"]
    assert list(drawn.lines[0].get_ydata()) == list(wanted)
    figure.savefig(tmp_path / "sweep.svg")
    with pytest.raises(ValueError, match="at most 256 tokens"):
        bench.sweep(*pair, contexts=(1000,), steps=3)
    with pytest.raises(SystemExit):
        cli.main(["bench", "--figure", str(tmp_path / "x.png")])
    assert "add --sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(size="7b"), "size='7b' is unknown"),
        (dict(steps=1), "steps=1 must be"),
        (dict(context=0), "context=0 must be"),
        (dict(repetitions=0), "repetitions=0 must be"),
        (dict(threads=0), "threads=0 must be"),
        (dict(expert=torch.nn.Linear(1, 1)), "both expert and amateur"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        bench.run(**arguments)
