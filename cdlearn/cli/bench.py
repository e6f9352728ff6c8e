"""What decoding costs, as ratios to the bare forward passes measured beside it.

Steps: every step of a loop is followed at once by the bare forwards of the same token with the same context length, so
that a noisy machine slows both and the ratio stays. Texts: whole continuations by the plain and the speculative loops
in turn. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cdlearn.cli import options
from cdlearn.cli.costs import step_rows, text_rows
from cdlearn.cli.timing import machine, peak_memory, use_threads
from cdlearn.pairs.loading import pick_device
from cdlearn.pairs.pair import load_pair
from cdlearn.show.style import BLUE, GREEN, ORANGE, PURPLE, SKY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# random pairs: hidden size, intermediate size, layers, heads of the expert and of the amateur; 34M/7M and 98M/20M
SHAPES = {
    "25m": ((512, 1408, 8, 8), (256, 704, 4, 4)),
    "100m": ((768, 2048, 12, 12), (448, 1216, 5, 7)),
}
SIZES = ("embedded", *SHAPES)
AIMS = {
    "contrastive, no trace": "<= 1.05 at 25M+, <= 1.15 embedded",
    "contrastive": "<= 1.05 at 25M+, <= 1.15 embedded",
    "DoLa": "<= 1.08",
    "as_causal_lm": "<= 1.25",
    "speculative contrastive": ">= 0.85 of the prediction, 1.3 on the embedded pair's stories",
    "speculative": "faster than transformers' assisted generation",
}
STORIES = (
    "Tell a story about Ben and a blue boat.",
    "Tell me a story about a fox and a drum.",
    "Zoe had a red kite. She had a fox too. They lived near the lake.",
)


def random_pair(size: str = "25m", *, seed: int = 0, vocab_size: int = 16384) -> tuple[PreTrainedModel, ...]:
    """Return a random Llama expert and amateur of a size in `SHAPES`, where a step is mostly matrix products."""
    models = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for width, inner, layers, heads in SHAPES[size]:
            config = LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                tie_word_embeddings=True,
                max_position_embeddings=4096,
            )
            models.append(LlamaForCausalLM(config).eval())
    return tuple(models)


def run(
    expert: PreTrainedModel | None = None,
    amateur: PreTrainedModel | None = None,
    *,
    size: str = "embedded",
    batch: int = 1,
    context: int = 32,
    steps: int = 64,
    repetitions: int = 5,
    threads: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measure; returns a row for each method, with the machine and the setting in `.attrs`.

    Two models, or `size` "embedded", "25m" or "100m" (random). Steps: each repetition decodes `steps` tokens in `batch`
    rows after `context` random ones with every method in turn. Texts, of the embedded pair or models with its
    vocabulary: `STORIES` continued by `steps` tokens. Columns: method, ms (a step, or a token of a text; median),
    against, ratio (times to the bare forwards or the method named in `against`; for speculative rows the speed-up over
    it), low and high (over repetitions), predicted (the speed-up that the acceptance rate and the measured passes give:
    arXiv 2211.17192, eq. 1 and theorem 3.8), aim.
    """
    _check(expert, amateur, size, batch, context, steps, repetitions, threads)
    models = _load(size, device) if expert is None else (expert, amateur, [])
    return _measure(*models, batch, context, steps, repetitions, threads, progress)


def _check(expert, amateur, size: str, batch: int, context: int, steps: int, repetitions: int, threads: Any) -> None:
    if (expert is None) != (amateur is None):
        raise ValueError("give both expert and amateur, or neither and a size.")
    if size not in SIZES:
        raise ValueError(f"size={size!r} is unknown: use {' or '.join(map(repr, SIZES))}.")
    numbers = (("batch", batch, 1), ("context", context, 1), ("steps", steps, 2), ("repetitions", repetitions, 1))
    for name, value, least in numbers:
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads={threads!r} must be a whole number of at least 1, or None.")


def _measure(
    expert: PreTrainedModel,
    amateur: PreTrainedModel,
    stories: list[torch.Tensor],
    batch: int,
    context: int,
    steps: int,
    repetitions: int,
    threads: int | None,
    progress: bool | None,
) -> pd.DataFrame:
    """The table of `run`, with the rows about whole texts where there are stories to continue."""
    with use_threads(threads) as used, tqdm(total=repetitions + 1, disable=_hide(progress)) as bar:
        rows = step_rows(expert, amateur, batch, context, steps, repetitions, bar)
        if stories:
            rows += text_rows(expert, amateur, stories, steps, repetitions)
    table = pd.DataFrame(rows)
    table["aim"] = table["method"].map(AIMS).fillna("")
    table.attrs["machine"] = machine(expert.device, used) | {"peak memory": peak_memory(expert.device)}
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (expert, amateur)]
    table.attrs["setting"] = {"expert": f"{sizes[0]:.1f}M", "amateur": f"{sizes[1]:.2f}M", "batch": batch}
    table.attrs["setting"] |= {"context": context, "steps": steps, "repetitions": repetitions}
    table.attrs["setting"] |= {"dtype": str(expert.dtype)}
    return table


def _load(size: str, device: str) -> tuple[PreTrainedModel, PreTrainedModel, list[torch.Tensor]]:
    """The expert and the amateur of a size, and the ids of the stories that the embedded ones can continue."""
    place = ("cpu" if size == "embedded" else pick_device()) if device == "auto" else device
    if size == "embedded":
        pair = load_pair(device=place)
        return pair.expert, pair.amateur, [torch.tensor([pair.tokenizer(text)["input_ids"]]) for text in STORIES]
    return *(model.to(place) for model in random_pair(size)), []


def sweep(
    *models: PreTrainedModel,
    batches: Sequence[int] = (1, 4, 16),
    contexts: Sequence[int] = (32, 128, 512),
    most: int = 2048,
    size: str = "embedded",
    steps: int = 64,
    repetitions: int = 5,
    threads: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """`run` at every batch and context that the models can read; its rows with two more columns, `batch`, `context`.

    most: settings with more tokens than this (batch times context) are left out: reading such prompts takes far longer
    than the steps that are measured. The rows about whole texts depend on neither and are measured once. Other
    arguments as in `run`.
    """
    expert, amateur = (*models, None, None)[:2]
    for batch in batches:
        for context in contexts:
            _check(expert, amateur, size, batch, context, steps, repetitions, threads)
    expert, amateur, stories = (*models, []) if models else _load(size, device)
    limit = min(model.config.get_text_config().max_position_embeddings for model in (expert, amateur))
    settings = [(b, c) for b in batches for c in contexts if c + steps <= limit and b * c <= most]
    if not settings:
        raise ValueError(f"contexts={tuple(contexts)!r} do not fit: the models read at most {limit} tokens.")
    tables, facts = [], {}
    for batch, context in settings:
        told = stories if not tables else []
        table = _measure(expert, amateur, told, batch, context, steps, repetitions, threads, progress)
        facts = table.attrs
        tables.append(table.assign(batch=batch, context=context))
    found = pd.concat(tables, ignore_index=True)
    found.attrs = facts | {"setting": {k: v for k, v in facts["setting"].items() if k not in ("batch", "context")}}
    return found


STEP_METHODS = ("contrastive", "as_causal_lm", "DoLa", "mix", "transformers generate")


def plot_sweep(table: pd.DataFrame) -> Figure:
    """The ratios of a `sweep` over the context, one panel a batch: a matplotlib Figure, bars from low to high."""
    from matplotlib.figure import Figure

    batches = sorted(set(table["batch"]))
    figure = Figure(figsize=(3.6 * len(batches) + 1.5, 3.6), layout="constrained")
    axes = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for ax, batch in zip(axes, batches):
        for name, color, marker in zip(STEP_METHODS, (BLUE, ORANGE, GREEN, PURPLE, SKY), "osD^v"):
            rows = table[(table["method"] == name) & (table["batch"] == batch)].sort_values("context")
            spread = [rows["ratio"] - rows["low"], rows["high"] - rows["ratio"]]
            ax.errorbar(rows["context"], rows["ratio"], yerr=spread, color=color, marker=marker, capsize=3, label=name)
        ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set(xscale="log", xlabel="tokens of context", title=f"batch {batch}")
        ax.set_xticks(sorted(set(table["context"])), labels=map(str, sorted(set(table["context"]))), minor=False)
        ax.minorticks_off()
    axes[0].set_ylabel("time, relative to bare forwards")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _hide(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def as_markdown(table: pd.DataFrame) -> str:
    """The table for a README: method, ms, ratio with its range, prediction, aim."""
    lines = ["| method | ms | ratio | range | against | predicted | aim |", "|---|---|---|---|---|---|---|"]
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        ratio, span = "", ""
        if row["ratio"] is not None:
            ratio, span = f"{row['ratio']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}"
        predicted = f"{row['predicted']:.2f} (a = {row['accepted']:.2f})" if row.get("predicted") is not None else ""
        cells = (_name(row), f"{row['ms']:.3f}", ratio, span, row["against"], predicted, row["aim"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"{row['method']}, batch {row['batch']}, context {row['context']}" if "context" in row else row["method"]


def main(argv: list[str]) -> int:
    """`cdlearn bench`."""
    parser = options.Parser(
        prog="cdlearn bench",
        description="Cost of decoding as ratios to the bare forward passes timed beside it; speculation: the speed-up.",
        epilog="example: cdlearn bench --size 25m --threads 2 --markdown",
    )
    parser.add_argument("--size", choices=SIZES, default="embedded", help="25m, 100m: random pairs of 34M/7M, 98M/20M")
    parser.add_argument("--expert", metavar="MODEL", help="hub id or folder instead of --size; needs --amateur")
    parser.add_argument("--amateur", metavar="MODEL")
    count = options.number(int, 1)
    parser.add_argument("--batch", type=count, default=1, help="rows decoded at once (default: 1)")
    parser.add_argument("--context", type=count, default=32, help="tokens before the first step (default: 32)")
    parser.add_argument("--steps", type=options.number(int, 2), default=64, help="tokens per repetition (default: 64)")
    parser.add_argument("--repetitions", type=count, default=5, help="default: 5")
    parser.add_argument("--threads", type=count, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--sweep", action="store_true", help="batches 1, 4, 16 and contexts 32, 128, 512, as they fit")
    parser.add_argument("--figure", metavar="FILE", help="with --sweep: ratios over the context, as PNG or SVG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    args = parser.parse_args(argv)
    if args.figure and not args.sweep:
        parser.error("--figure draws a sweep: add --sweep")
    models: tuple = ()
    if args.expert or args.amateur:
        pair = load_pair(args.expert, args.amateur, device=args.device)
        models = (pair.expert, pair.amateur)
    names = ("size", "steps", "repetitions", "threads", "device", *(() if args.sweep else ("batch", "context")))
    table = (sweep if args.sweep else run)(*models, **{name: getattr(args, name) for name in names})
    if args.figure:
        plot_sweep(table).savefig(args.figure)
    if args.json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(table.attrs | {"rows": rows}, indent=1))
        return 0
    for facts in table.attrs.values():
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if args.markdown:
        print("\n" + as_markdown(table))
        return 0
    width = 50 if args.sweep else 25
    print("\nratio: time over what stands behind it, in pairs; of a whole text the speed-up (more is faster)\n")
    print(f"{'method':{width}}{'ms':>9}{'ratio':>8}  {'range':15}against")
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        span = f"{row['low']:.3f}-{row['high']:.3f}" if row["against"] else ""
        base = ("speed-up over " if row["against"].endswith("text") else "") + row["against"]
        ratio = f"{row['ratio']:8.3f}  {span:15}{base}" if base else ""
        more = [f"predicted {row['predicted']:.2f}"] if row.get("predicted") is not None else []
        more += [f"aim {row['aim']}"] if row["aim"] else []
        print(f"{_name(row):{width}}{row['ms']:9.3f}{ratio}" + (f"  ({'; '.join(more)})" if more else ""))
    return 0
