"""What a step costs, as ratios to the bare forward passes measured beside it.

Every step of a loop is followed at once by the bare forwards of the same token with the same context length, so that
a noisy machine slows both and the ratio stays. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
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
from cdlearn.loading import pick_device
from cdlearn.pairs import load_pair
from cdlearn.sources import CachedLM, Contrast, DoLa, Source

SIZES = ("embedded", "25m")
CLAIMS = {
    "contrastive, no trace": "<= 1.05 at 25M+/5M+, <= 1.15 embedded",
    "contrastive": "<= 1.05 at 25M+/5M+, <= 1.15 embedded",
    "DoLa": "<= 1.08",
}


class Forwards:
    """Bare one-token forward passes of the models, each with its own cache: what a loop is held against."""

    def __init__(self, models: dict[str, PreTrainedModel]):
        self.models = models
        self.caches: dict[str, Any] = {}
        self.times: dict[str, list[float]] = {name: [] for name in models}

    @torch.no_grad()
    def step(self, ids: torch.Tensor) -> None:
        """Feed what is new of ids [1, T] to every model; time it where it is one token."""
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


def random_pair(*, seed: int = 0, vocab_size: int = 16384) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return random Llama models of 34M and 7M parameters: sizes where a step is mostly matrix products."""
    shapes = (dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8),)
    shapes += (dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4),)
    models = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for shape in shapes:
            config = LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, max_position_embeddings=2048, **shape)
            models.append(LlamaForCausalLM(config).eval())
    return models[0], models[1]


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return (
        {"device": f"{device.type} ({name})", "threads": threads}
        | versions
        | {"transformers": transformers.__version__}
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
    context: int = 32,
    steps: int = 64,
    repetitions: int = 5,
    threads: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measure one-token steps; returns a row for each method, with the machine in `.attrs["machine"]`.

    Two models, or `size` "embedded" or "25m" (random, 34M and 7M parameters). Each repetition decodes `steps` tokens
    after `context` random ones with every method in turn. Columns: method, ms (median of all steps), against, ratio
    (to the bare forwards or the method named in `against`, median over repetitions), low and high (over repetitions).
    """
    if (expert is None) != (amateur is None):
        raise ValueError("give both expert and amateur, or neither and a size.")
    if size not in SIZES:
        raise ValueError(f"size={size!r} is unknown: use {' or '.join(map(repr, SIZES))}.")
    for name, value, least in (("context", context, 1), ("steps", steps, 2), ("repetitions", repetitions, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads={threads!r} must be a whole number of at least 1, or None.")
    if expert is None:
        place = ("cpu" if size == "embedded" else pick_device()) if device == "auto" else device
        if size == "embedded":
            pair = load_pair(device=place)
            expert, amateur = pair.expert, pair.amateur
        else:
            expert, amateur = (model.to(place) for model in random_pair())
    vocab = min(model.config.get_text_config().vocab_size for model in (expert, amateur))
    prompt = torch.randint(0, vocab, (1, context), generator=torch.Generator().manual_seed(0))

    methods = {
        "contrastive, no trace": lambda: Contrast(expert, amateur, beta=0.5),
        "contrastive": lambda: Contrast(expert, amateur, beta=0.5),
        "expert greedy": lambda: CachedLM(expert),
        "DoLa": lambda: DoLa(expert),
        "transformers generate": None,
    }
    both = {"expert": expert, "amateur": amateur}
    steps_of: dict[str, list[list[float]]] = {}
    with _threads(threads) as used, tqdm(total=(repetitions + 1) * len(methods), disable=_hide(progress)) as bar:
        for repetition in range(-1, repetitions):  # -1 warms up
            for method, make in methods.items():
                needed = both if "contrastive" in method else {"expert": expert}
                forwards = Forwards(needed)
                if make is None:
                    times = _transformers_steps(expert, prompt, steps, forwards)
                else:
                    watch = Stopwatch(make(), forwards)
                    trace = method != "contrastive, no trace"
                    generate(watch, prompt, max_new_tokens=steps, temperature=0.0, trace=trace, progress=False)
                    times = watch.times
                bar.update()
                if repetition >= 0:
                    steps_of.setdefault(method, []).append(times)
                    for name, spent in forwards.times.items():
                        steps_of.setdefault(f"{method}/{name}", []).append(spent)
    table = _summarise(steps_of)
    table.attrs["machine"] = machine(expert.device, used)
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (expert, amateur)]
    table.attrs["setting"] = {"expert": f"{sizes[0]:.1f}M", "amateur": f"{sizes[1]:.2f}M", "context": context}
    table.attrs["setting"] |= {"steps": steps, "repetitions": repetitions, "dtype": str(expert.dtype)}
    return table


def _hide(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _transformers_steps(expert: PreTrainedModel, prompt: torch.Tensor, steps: int, forwards: Forwards) -> list[float]:
    lap = _Lap(forwards, expert.device)
    never = expert.config.get_text_config().vocab_size  # an EOS id that no model can emit
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)
    ids = prompt.to(expert.device)
    criteria = StoppingCriteriaList([lap])
    expert.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=criteria)
    return lap.times


def _summarise(steps_of: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Medians within a repetition, ratios of those, then the median and the range over repetitions."""
    medians = {name: [statistics.median(times) for times in rows] for name, rows in steps_of.items()}
    expert, amateur = medians["contrastive/expert"], medians["contrastive/amateur"]
    rows = [_row("expert forward", expert, None, ""), _row("amateur forward", amateur, None, "")]
    for method in ("contrastive, no trace", "contrastive"):
        floor = [e + a for e, a in zip(medians[f"{method}/expert"], medians[f"{method}/amateur"])]
        rows.append(_row(method, medians[method], floor, "both forwards"))
    for method in ("expert greedy", "transformers generate"):
        rows.append(_row(method, medians[method], medians[f"{method}/expert"], "expert forward"))
    # DoLa and the plain loop ran one after the other: each is divided by the forwards beside it first
    plain = [m / f for m, f in zip(medians["expert greedy"], medians["expert greedy/expert"])]
    floor = [p * f for p, f in zip(plain, medians["DoLa/expert"])]
    rows.append(_row("DoLa", medians["DoLa"], floor, "expert greedy"))
    return pd.DataFrame(rows)


def _row(method: str, medians: list[float], floor: list[float] | None, against: str) -> dict[str, Any]:
    row = {"method": method, "ms": 1e3 * statistics.median(medians), "against": against}
    ratios = [m / f for m, f in zip(medians, floor)] if floor else []
    row["ratio"] = statistics.median(ratios) if ratios else None
    row |= {"low": min(ratios, default=None), "high": max(ratios, default=None), "claim": CLAIMS.get(method, "")}
    return row


def main(argv: list[str]) -> int:
    """`cdlearn bench`."""
    parser = argparse.ArgumentParser(
        prog="cdlearn bench",
        description="Cost of a decoding step, as a ratio to the bare forward passes timed beside it.",
        epilog="example: cdlearn bench --size 25m --threads 2 --json",
    )
    parser.add_argument("--size", choices=SIZES, default="embedded", help="25m: a random pair of 34M and 7M parameters")
    parser.add_argument("--expert", metavar="MODEL", help="hub id or folder instead of --size; needs --amateur")
    parser.add_argument("--amateur", metavar="MODEL")
    parser.add_argument("--context", type=int, default=32, help="tokens before the first step (default: 32)")
    parser.add_argument("--steps", type=int, default=64, help="tokens per repetition (default: 64)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    models: tuple = ()
    if args.expert or args.amateur:
        pair = load_pair(args.expert, args.amateur, device=args.device)
        models = (pair.expert, pair.amateur)
    table = run(
        *models,
        size=args.size,
        context=args.context,
        steps=args.steps,
        repetitions=args.repetitions,
        threads=args.threads,
        device=args.device,
    )
    if args.json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(table.attrs | {"rows": rows}, indent=1))
        return 0
    for facts in table.attrs.values():
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\n{'method':24}{'ms/step':>9}{'ratio':>8}  {'range':15}against")
    for row in table.itertuples():
        ratio = f"{row.ratio:8.3f}  {f'{row.low:.3f}-{row.high:.3f}':15}{row.against}" if row.against else ""
        claim = f"  (aim {row.claim})" if row.claim else ""
        print(f"{row.method:24}{row.ms:9.3f}{ratio}{claim}")
    return 0
