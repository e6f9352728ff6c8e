"""How the ratios of `cdlearn bench` move with batch and context: `python .ci/sweep.py > .ci/bench/sweep.json`.

`make bench` runs it; `.ci/pages.py` draws the README's figure from what it wrote.
"""

import argparse
import json
from collections.abc import Sequence

from matplotlib.figure import Figure

from cdlearn.cli import bench
from cdlearn.show.style import BLUE, GREEN, ORANGE, PURPLE, SKY

BATCHES, CONTEXTS = (1, 4, 16), (32, 128, 512)
MOST = 2048  # tokens of a batch: reading longer prompts takes far longer than the steps that are measured
METHODS = ("contrastive", "as_causal_lm", "DoLa", "mix", "transformers generate")


def sweep(expert, amateur, batches: Sequence[int], contexts: Sequence[int], *, steps: int, **numbers) -> dict:
    """`bench.measure` at every batch and context that the models can read; each row says which batch and context."""
    limit = min(model.config.get_text_config().max_position_embeddings for model in (expert, amateur))
    settings = [(b, c) for b in batches for c in contexts if c + steps <= limit and b * c <= MOST]
    if not settings:
        raise ValueError(f"contexts={tuple(contexts)!r} do not fit: the models read at most {limit} tokens.")
    rows = []
    for batch, context in settings:
        record = bench.measure(expert, amateur, batch=batch, context=context, steps=steps, **numbers)
        rows += [row | {"batch": batch, "context": context} for row in record["rows"]]
    setting = {name: value for name, value in record["setting"].items() if name not in ("batch", "context")}
    return {"machine": record["machine"], "setting": setting, "rows": rows}


def plot_sweep(rows: list[dict]) -> Figure:
    """The ratios of a `sweep` over the context, one panel for each batch, bars from low to high."""
    batches, contexts = (sorted({row[name] for row in rows}) for name in ("batch", "context"))
    figure = Figure(figsize=(3.6 * len(batches) + 1.5, 3.6), layout="constrained")
    axes = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for ax, batch in zip(axes, batches):
        for name, color, marker in zip(METHODS, (BLUE, ORANGE, GREEN, PURPLE, SKY), "osD^v"):
            line = [row for row in rows if (row["method"], row["batch"]) == (name, batch)]
            line.sort(key=lambda row: row["context"])
            ratios = [row["ratio"] for row in line]
            bars = [[row["ratio"] - row["low"] for row in line], [row["high"] - row["ratio"] for row in line]]
            places = [row["context"] for row in line]
            ax.errorbar(places, ratios, yerr=bars, color=color, marker=marker, capsize=3, label=name)
        ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set(xscale="log", xlabel="tokens of context", title=f"batch {batch}")
        ax.set_xticks(contexts, labels=map(str, contexts), minor=False)
        ax.minorticks_off()
    axes[0].set_ylabel("time, relative to bare forwards")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=bench.SIZES, default="25m")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    expert, amateur, _ = bench.load(args.size)
    numbers = {"steps": args.steps, "repetitions": args.repetitions, "threads": args.threads}
    print(json.dumps(sweep(expert, amateur, BATCHES, CONTEXTS, **numbers), indent=1))
