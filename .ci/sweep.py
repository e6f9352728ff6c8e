"""How the ratios of `cdlearn bench` move with batch and context: `python .ci/sweep.py > .ci/bench/sweep.json`.

`make bench` runs it; `.ci/pages.py` draws the README's figure from what it wrote.
"""

import argparse
import json
from collections.abc import Sequence

from matplotlib.figure import Figure

from cdlearn.cli import bench
from cdlearn.show.style import BLACK, BLUE, GREEN, PURPLE, VERMILLION

BATCHES, CONTEXTS = (1, 4, 16), (32, 128, 512)
MOST = 2048  # tokens of a batch: reading longer prompts takes far longer than the steps that are measured
METHODS = ("contrastive", "as_causal_lm", "DoLa", "mix", "transformers generate")
LOOKS = ((GREEN, "o", "-"), (BLUE, "s", "--"), (PURPLE, "D", "-."), (VERMILLION, "^", ":"), (BLACK, "v", "-"))


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
    """The ratios of a `sweep` over the context, one panel for each batch, bars from low to high.

    A panel is as wide as the contexts that were measured with its batch, so that no place is left empty.
    """
    batches = sorted({row["batch"] for row in rows})
    measured = [sorted({row["context"] for row in rows if row["batch"] == batch}) for batch in batches]
    figure = Figure(figsize=(1.2 * sum(map(len, measured)) + 1, 4.2), layout="constrained")
    grid = {"width_ratios": list(map(len, measured))}
    axes = figure.subplots(1, len(batches), sharey=True, squeeze=False, gridspec_kw=grid)[0]
    for ax, batch, contexts in zip(axes, batches, measured):
        for k, (name, (color, marker, dash)) in enumerate(zip(METHODS, LOOKS)):
            line = [row for row in rows if (row["method"], row["batch"]) == (name, batch)]
            line.sort(key=lambda row: row["context"])
            ratios = [row["ratio"] for row in line]
            bars = [[row["ratio"] - row["low"] for row in line], [row["high"] - row["ratio"] for row in line]]
            places = [contexts.index(row["context"]) + 0.08 * (k - 2) for row in line]  # no bar hides another
            look = {"color": color, "marker": marker, "linestyle": dash, "capsize": 3, "label": name}
            ax.errorbar(places, ratios, yerr=bars, **look)
        ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set(xlabel="tokens of context", title=f"batch {batch}", xlim=(-0.5, len(contexts) - 0.5))
        ax.set_xticks(range(len(contexts)), labels=map(str, contexts))
    axes[0].set_ylabel("time, relative to bare forwards")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
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
