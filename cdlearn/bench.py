"""What decoding costs, as ratios to the bare forward passes measured beside it.

Steps: every step of a loop is followed at once by the bare forwards of the same token with the same context length, so
that a noisy machine slows both and the ratio stays. Texts: whole continuations by the plain and the speculative loops
in turn. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cdlearn.decode import generate
from cdlearn.hf import as_causal_lm
from cdlearn.loading import pick_device
from cdlearn.pairs import load_pair
from cdlearn.sources import CachedLM, Contrast, DoLa, EarlyExit, Source
from cdlearn.speculative import speculate

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


class Forwards:
    """Bare one-token forward passes of the models, each with its own cache: what a loop is held against."""

    def __init__(self, models: dict[str, PreTrainedModel]):
        self.models = models
        self.caches: dict[str, Any] = {}
        self.times: dict[str, list[float]] = {name: [] for name in models}

    @torch.no_grad()
    def step(self, ids: torch.Tensor) -> None:
        """Feed what is new of ids [B, T] to every model; time it where it is one token."""
        for name, model in self.models.items():
            if name not in self.caches:
                self.caches[name] = DynamicCache(config=model.config)
            seen = self.caches[name].get_seq_length()
            new = ids[:, seen:].to(model.device)
            positions = torch.arange(seen, ids.shape[1], device=model.device)[None]
            start = now(model.device)
            model(input_ids=new, past_key_values=self.caches[name], position_ids=positions, logits_to_keep=1)
            spent = now(model.device) - start
            if new.shape[1] == 1:
                self.times[name].append(spent)


class Stopwatch(Source):
    """A source around a source: its time and the loop's time count, the bare forwards in between do not."""

    def __init__(self, inner: Source, forwards: Forwards):
        super().__init__()
        self.inner, self.forwards, self.left = inner, forwards, None
        self.times: list[float] = []
        self.vocab_size, self.device = inner.vocab_size, inner.device
        self.max_positions, self.rewindable, self.settings = inner.max_positions, inner.rewindable, inner.settings
        self.eos_token_ids = ()  # every text runs to its full length

    def __call__(self, ids, mask=None, n=1):
        scores = self.inner(ids, mask, n)
        self.parts, self.details = self.inner.parts, self.inner.details
        entered = now(self.device)
        if self.left is not None:
            self.times.append(entered - self.left)  # one step: the loop after the last scores, and these scores
        self.forwards.step(ids)
        self.left = now(self.device)
        return scores


class _Lap(StoppingCriteria):
    """The same stopwatch for the generate() of transformers, which calls this once a step and never stops for it."""

    def __init__(self, forwards: Forwards, device: torch.device):
        self.forwards, self.device, self.left = forwards, device, None
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        entered = now(self.device)
        if self.left is not None:
            self.times.append(entered - self.left)
        self.forwards.step(input_ids)
        self.left = now(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Return the time after everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


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


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    place = {"device": f"{device.type} ({name})", "threads": threads}
    return place | versions | {"transformers": transformers.__version__}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_memory(device: torch.device) -> str:
    """The most memory used so far: of the GPU's allocator, or of the whole process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale:.0f} MiB, the whole process"


@contextlib.contextmanager
def _threads(count: int | None):
    """Use `count` threads for a while: the process's own number comes back afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


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
    stories: list[torch.Tensor] = []
    if expert is None:
        place = ("cpu" if size == "embedded" else pick_device()) if device == "auto" else device
        if size == "embedded":
            pair = load_pair(device=place)
            expert, amateur = pair.expert, pair.amateur
            stories = [torch.tensor([pair.tokenizer(text)["input_ids"]]) for text in STORIES]
        else:
            expert, amateur = (model.to(place) for model in random_pair(size))
    with _threads(threads) as used, tqdm(total=repetitions + 1, disable=_hide(progress)) as bar:
        rows = _steps(expert, amateur, batch, context, steps, repetitions, bar)
        if stories:
            rows += _texts(expert, amateur, stories, steps, repetitions)
    table = pd.DataFrame(rows)
    table["aim"] = table["method"].map(AIMS).fillna("")
    table.attrs["machine"] = machine(expert.device, used) | {"peak memory": _peak_memory(expert.device)}
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (expert, amateur)]
    table.attrs["setting"] = {"expert": f"{sizes[0]:.1f}M", "amateur": f"{sizes[1]:.2f}M", "batch": batch}
    table.attrs["setting"] |= {"context": context, "steps": steps, "repetitions": repetitions}
    table.attrs["setting"] |= {"dtype": str(expert.dtype)}
    return table


def _hide(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _steps(expert, amateur, batch: int, context: int, steps: int, repetitions: int, bar) -> list[dict[str, Any]]:
    """One-token steps of every loop against the bare forwards beside each step."""
    vocab = min(model.config.get_text_config().vocab_size for model in (expert, amateur))
    prompt = torch.randint(0, vocab, (batch, context), generator=torch.Generator().manual_seed(0))
    half = max(1, expert.config.get_text_config().num_hidden_layers // 2)
    both, alone = {"expert": expert, "amateur": amateur}, {"expert": expert}

    def loop(make: Callable[[], Source], *, trace: bool = True):
        def timed(forwards: Forwards) -> list[float]:
            watch = Stopwatch(make(), forwards)
            generate(watch, prompt, max_new_tokens=steps, temperature=0.0, trace=trace, progress=False)
            return watch.times

        return timed

    def contrast() -> Source:
        return Contrast(expert, amateur, beta=0.5)

    methods = {
        "contrastive, no trace": (both, loop(contrast, trace=False)),
        "contrastive": (both, loop(contrast)),
        "as_causal_lm": (both, lambda forwards: _transformers_steps(as_causal_lm(contrast()), prompt, steps, forwards)),
        "expert greedy": (alone, loop(lambda: CachedLM(expert))),
        "DoLa": (alone, loop(lambda: DoLa(expert))),
        f"early exit at {half}": (alone, loop(lambda: EarlyExit(expert, half))),
        "transformers generate": (alone, lambda forwards: _transformers_steps(expert, prompt, steps, forwards)),
    }
    medians: dict[str, list[float]] = {}
    for repetition in range(-1, repetitions):  # -1 warms up
        for method, (needed, timed) in methods.items():
            forwards = Forwards(needed)
            times = timed(forwards)
            if repetition >= 0:
                medians.setdefault(method, []).append(statistics.median(times))
                medians.setdefault(f"{method}/forwards", []).append(
                    sum(statistics.median(spent) for spent in forwards.times.values())
                )
                for name, spent in forwards.times.items():
                    medians.setdefault(name, []).append(statistics.median(spent))
        bar.update()
    rows = [_row(f"{name} forward", medians[name]) for name in both]
    for method, (needed, _) in methods.items():
        floor, against = medians[f"{method}/forwards"], "both forwards" if needed is both else "expert forward"
        if method == "DoLa":  # it and the plain loop ran one after the other: the forwards beside them level the two
            plain = [m / f for m, f in zip(medians["expert greedy"], medians["expert greedy/forwards"])]
            floor, against = [p * f for p, f in zip(plain, floor)], "expert greedy"
        rows.append(_row(method, medians[method], floor, against))
    return rows


def _transformers_steps(model, prompt: torch.Tensor, steps: int, forwards: Forwards) -> list[float]:
    lap = _Lap(forwards, model.device)
    criteria = StoppingCriteriaList([lap])
    ids = prompt.to(model.device)
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, generation_config=_greedy(model, steps), stopping_criteria=criteria)
    return lap.times


def _greedy(model: PreTrainedModel, steps: int) -> GenerationConfig:
    never = model.config.get_text_config().vocab_size  # an EOS id that no model can emit
    return GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)


def _texts(expert, amateur, stories: list[torch.Tensor], steps: int, repetitions: int, gamma: int = 4) -> list[dict]:
    """Whole texts: each speculative loop's speed-up over its plain loop, beside what theory makes of the acceptance."""
    shared = CachedLM(amateur)
    options = dict(max_new_tokens=steps, eos_token_ids=(), trace=False, progress=False)
    exit_layer = max(1, expert.config.get_text_config().num_hidden_layers // 3)

    def assisted(ids: torch.Tensor) -> None:
        ids, never = ids.to(expert.device), expert.config.get_text_config().vocab_size
        numbers = dict(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)
        expert.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=amateur, **numbers)

    methods: dict[str, Callable[[torch.Tensor], Any]] = {
        "contrastive text": lambda ids: generate(Contrast(expert, shared, beta=0.5), ids, **options),
        "speculative contrastive": lambda ids: speculate(
            Contrast(expert, shared, beta=0.5), shared, ids, gamma=gamma, **options
        ),
        "greedy text": lambda ids: generate(CachedLM(expert), ids, **options),
        "speculative": lambda ids: speculate(CachedLM(expert), shared, ids, gamma=gamma, **options),
        f"self-speculative, exit {exit_layer}": lambda ids: speculate(
            CachedLM(expert), EarlyExit(expert, exit_layer), ids, gamma=gamma, **options
        ),
        "transformers assisted": assisted,
    }
    spent: dict[str, list[float]] = {name: [] for name in methods}
    accepted: dict[str, list[int]] = {name: [0, 0] for name in methods}
    passes: dict[str, list[float]] = {}
    for repetition in range(-1, repetitions):
        for name, decode in methods.items():
            total = 0.0
            for ids in stories:
                shared.reset()
                start = now(expert.device)
                made = decode(ids)
                total += now(expert.device) - start
                if made is not None and "tested" in made.stats:
                    accepted[name][0] += made.stats["accepted"]
                    accepted[name][1] += made.stats["tested"]
            if repetition >= 0:
                spent[name].append(total / len(stories) / steps)
        if repetition >= 0:
            for name, cost in _passes(expert, amateur, exit_layer, stories[0], gamma).items():
                passes.setdefault(name, []).append(cost)
    cost = {name: statistics.median(values) for name, values in passes.items()}
    rows = []
    for name, times in spent.items():
        base = "contrastive text" if name == "speculative contrastive" else "greedy text"
        speedup = [b / t for b, t in zip(spent[base], times)] if name != base and "text" not in name else None
        row = _row(name, times) | {"against": base if speedup else ""}
        if speedup:
            row |= {"ratio": statistics.median(speedup), "low": min(speedup), "high": max(speedup)}
        if accepted[name][1]:
            a = accepted[name][0] / accepted[name][1]
            tokens = (1 - a ** (gamma + 1)) / (1 - a) if a < 1 else gamma + 1
            if name == "speculative contrastive":  # the amateur reads the last draft too, and nothing twice
                plain, spend = cost["expert"] + cost["amateur"], (gamma + 1) * cost["amateur"] + cost["check"]
            else:
                draft = cost["exit" if name.startswith("self") else "amateur"]
                plain, spend = cost["expert"], gamma * draft + cost["check"]
            row |= {"predicted": tokens * plain / spend, "accepted": a}
        rows.append(row)
    return rows


@torch.no_grad()
def _passes(expert, amateur, exit_layer: int, ids: torch.Tensor, gamma: int, times: int = 15) -> dict[str, float]:
    """Median seconds of bare passes behind a context: one token of each model, and the check of gamma + 1 tokens."""
    early = EarlyExit(expert, exit_layer).model
    found = {}
    for name, model, width in (
        ("expert", expert, 1), ("amateur", amateur, 1), ("exit", early, 1), ("check", expert, gamma + 1)
    ):  # fmt: skip
        cache, laps = DynamicCache(config=model.config), []
        model(input_ids=ids.to(model.device), past_key_values=cache)
        for _ in range(times):
            start = now(model.device)
            model(input_ids=ids[:, :1].expand(-1, width).to(model.device), past_key_values=cache)
            laps.append(now(model.device) - start)
            cache.crop(-width)
        found[name] = statistics.median(laps)
    return found


def _row(method: str, medians: list[float], floor: list[float] | None = None, against: str = "") -> dict[str, Any]:
    row = {"method": method, "ms": 1e3 * statistics.median(medians), "against": against}
    ratios = [m / f for m, f in zip(medians, floor)] if floor else []
    row["ratio"] = statistics.median(ratios) if ratios else None
    return row | {"low": min(ratios, default=None), "high": max(ratios, default=None)}


def as_markdown(table: pd.DataFrame) -> str:
    """The table for a README: method, ms, ratio with its range, prediction, aim."""
    lines = ["| method | ms | ratio | range | against | predicted | aim |", "|---|---|---|---|---|---|---|"]
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        ratio, span = "", ""
        if row["ratio"] is not None:
            ratio, span = f"{row['ratio']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}"
        predicted = f"{row['predicted']:.2f} (a = {row['accepted']:.2f})" if row.get("predicted") is not None else ""
        cells = (row["method"], f"{row['ms']:.3f}", ratio, span, row["against"], predicted, row["aim"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """`cdlearn bench`."""
    parser = argparse.ArgumentParser(
        prog="cdlearn bench",
        description="Cost of decoding as ratios to the bare forward passes timed beside it; speculation: the speed-up.",
        epilog="example: cdlearn bench --size 25m --threads 2 --markdown",
    )
    parser.add_argument("--size", choices=SIZES, default="embedded", help="25m, 100m: random pairs of 34M/7M, 98M/20M")
    parser.add_argument("--expert", metavar="MODEL", help="hub id or folder instead of --size; needs --amateur")
    parser.add_argument("--amateur", metavar="MODEL")
    parser.add_argument("--batch", type=int, default=1, help="rows decoded at once (default: 1)")
    parser.add_argument("--context", type=int, default=32, help="tokens before the first step (default: 32)")
    parser.add_argument("--steps", type=int, default=64, help="tokens per repetition (default: 64)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    args = parser.parse_args(argv)
    models: tuple = ()
    if args.expert or args.amateur:
        pair = load_pair(args.expert, args.amateur, device=args.device)
        models = (pair.expert, pair.amateur)
    names = ("size", "batch", "context", "steps", "repetitions", "threads", "device")
    table = run(*models, **{name: getattr(args, name) for name in names})
    if args.json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(table.attrs | {"rows": rows}, indent=1))
        return 0
    for facts in table.attrs.values():
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if args.markdown:
        print("\n" + as_markdown(table))
        return 0
    print(f"\n{'method':25}{'ms':>9}{'ratio':>8}  {'range':15}against")
    for row in table.astype(object).where(table.notna(), None).itertuples():
        ratio = f"{row.ratio:8.3f}  {f'{row.low:.3f}-{row.high:.3f}':15}{row.against}" if row.against else ""
        predicted = getattr(row, "predicted", None)
        more = [f"predicted {predicted:.2f}"] if predicted is not None else []
        more += [f"aim {row.aim}"] if row.aim else []
        print(f"{row.method:25}{row.ms:9.3f}{ratio}" + (f"  ({'; '.join(more)})" if more else ""))
    return 0
