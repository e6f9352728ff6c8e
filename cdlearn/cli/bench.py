"""`cdlearn bench`: what decoding costs, as ratios to the bare forward passes measured beside it.

Steps: the bare forwards of the same token follow at once every step of a loop, so that a noisy machine slows both and
the ratio stays. Texts: whole continuations by the plain and the speculative loops in turn. Nothing here is a test:
times depend on the machine.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from cdlearn.cli import options
from cdlearn.cli.timing import Forwards, Lap, Stopwatch, machine, now
from cdlearn.hf import as_causal_lm
from cdlearn.loops.generate import generate
from cdlearn.loops.speculate import speculate
from cdlearn.pairs import load_pair
from cdlearn.pairs.loading import pick_device
from cdlearn.sources import CachedLM, Contrast, DoLa, EarlyExit, Mix, Prompted, Source

# random pairs: hidden size, intermediate size, layers, heads of the expert and of the amateur; 34M/7M and 98M/20M
SHAPES = {"25m": ((512, 1408, 8, 8), (256, 704, 4, 4)), "100m": ((768, 2048, 12, 12), (448, 1216, 5, 7))}
SIZES = ("embedded", *SHAPES)
GAMMA = 4  # tokens drafted per round
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


def random_pair(size: str = "25m", *, seed: int = 0, vocab_size: int = 16384) -> list[PreTrainedModel]:
    """Return a random Llama expert and amateur of a size in `SHAPES`, where a step is mostly matrix products."""
    numbers = {"vocab_size": vocab_size, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        configs = [LlamaConfig(**numbers, **dict(zip(names, shape))) for shape in SHAPES[size]]
        return [LlamaForCausalLM(config).eval() for config in configs]


def load(size: str) -> tuple[PreTrainedModel, PreTrainedModel, list[Tensor]]:
    """The expert and the amateur of a size, and the ids of the stories that the embedded ones can continue."""
    if size == "embedded":
        pair = load_pair(device="cpu")
        return pair.expert, pair.amateur, [torch.tensor([pair.tokenizer(text)["input_ids"]]) for text in STORIES]
    return *(model.to(pick_device()) for model in random_pair(size)), []


def measure(
    expert: PreTrainedModel, amateur: PreTrainedModel, stories: Sequence[Tensor] = (), *,
    batch: int = 1, context: int = 32, steps: int = 64, repetitions: int = 5, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the machine, the setting, and rows: one for each method.

    Each repetition decodes `steps` tokens in `batch` rows after `context` random ones with every method in turn, and
    continues the stories, ids [1, T] that the models can read, by `steps` tokens. In a row: method, ms (a step, or a
    token of a text; median), against, ratio (times to the bare forwards or the method named in `against`; for
    speculative rows the speed-up over it), low and high (over repetitions), predicted (the speed-up that the
    acceptance rate and the measured passes give: arXiv 2211.17192, eq. 1 and theorem 3.8), aim.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with options.bar((repetitions + 1) * (1 + bool(stories)), "repetition") as bar:
            rows = _step_rows(expert, amateur, batch, context, steps, repetitions, bar)
            rows += _text_rows(expert, amateur, stories, steps, repetitions, bar) if stories else []
        place = machine(expert.device)
    finally:
        torch.set_num_threads(before)
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (expert, amateur)]
    setting = {"expert": f"{sizes[0]:.1f}M", "amateur": f"{sizes[1]:.2f}M", "batch": batch, "context": context}
    setting |= {"steps": steps, "repetitions": repetitions, "dtype": str(expert.dtype)}
    return {"machine": place, "setting": setting, "rows": [row | {"aim": AIMS.get(row["method"], "")} for row in rows]}


def _step_rows(expert, amateur, batch: int, context: int, steps: int, repetitions: int, bar: Any) -> list[dict]:
    """One-token steps of every loop against the bare forwards beside each step."""
    vocab = min(model.config.get_text_config().vocab_size for model in (expert, amateur))
    prompt = torch.randint(0, vocab, (batch, context), generator=torch.Generator().manual_seed(0))
    half = max(1, expert.config.get_text_config().num_hidden_layers // 2)
    both, alone = {"expert": expert, "amateur": amateur}, {"expert": expert}

    def ours(make: Callable[[], Source], trace: bool = True) -> Callable[[Forwards], Any]:
        numbers = {"max_new_tokens": steps, "trace": trace, "progress": False}
        return lambda forwards: generate(Stopwatch(make(), forwards), prompt, **numbers)

    def theirs(make: Callable[[], Any]) -> Callable[[Forwards], Any]:
        return lambda forwards: _greedy(make(), prompt, steps, stopping_criteria=[Lap(forwards)])

    def contrast() -> Source:
        return Contrast(expert, amateur, beta=0.5)

    methods = {
        "contrastive, no trace": (both, ours(contrast, trace=False)),
        "contrastive": (both, ours(contrast)),
        "as_causal_lm": (both, theirs(lambda: as_causal_lm(contrast()))),
        "expert greedy": (alone, ours(lambda: CachedLM(expert))),
        "DoLa": (alone, ours(lambda: DoLa(expert))),
        "mix": (both, ours(lambda: Mix([(1.5, expert), (-0.5, amateur)], alpha=0.1))),
        "prompted": (alone, ours(lambda: Prompted(expert, [1, 2, 3, 4]))),
        f"early exit at {half}": (alone, ours(lambda: EarlyExit(expert, half))),
        "transformers generate": (alone, theirs(lambda: expert)),
    }
    times: dict[str, list[float]] = defaultdict(list)
    floors: dict[str, list[float]] = defaultdict(list)
    for timed in [False] + [True] * repetitions:  # the first one warms up
        for method, (needed, decode) in methods.items():
            forwards = Forwards(needed, expert.device)
            decode(forwards)
            if timed:
                bare = {name: statistics.median(spent) for name, spent in forwards.times.items()}
                for name, seconds in bare.items():
                    times[f"{name} forward"].append(seconds)
                times[method].append(statistics.median(forwards.laps))
                floors[method].append(sum(bare.values()))
        bar.update()
    # DoLa and the plain loop ran one after the other: the forwards beside them level the two
    plain = zip(times["expert greedy"], floors["expert greedy"], floors["DoLa"])
    floors["DoLa"] = [step / floor * beside for step, floor, beside in plain]
    rows = [_row(f"{name} forward", times[f"{name} forward"]) for name in both]
    for method, (needed, _) in methods.items():
        against = "expert greedy" if method == "DoLa" else "both forwards" if needed is both else "expert forward"
        rows.append(_row(method, times[method], against, [a / b for a, b in zip(times[method], floors[method])]))
    return rows


def _text_rows(expert, amateur, stories: Sequence[Tensor], steps: int, repetitions: int, bar: Any) -> list[dict]:
    """Whole texts: each speculative loop's speed-up over its plain loop, beside what theory makes of the acceptance."""
    shared = CachedLM(amateur)  # the draft is the contrast's own amateur
    layer = max(1, expert.config.get_text_config().num_hidden_layers // 3)
    numbers = {"max_new_tokens": steps, "eos_token_ids": (), "trace": False, "progress": False}
    drafted = numbers | {"gamma": GAMMA}

    def contrast() -> Source:
        return Contrast(expert, shared, beta=0.5)

    methods: dict[str, tuple[str, Callable[[Tensor], Any]]] = {  # with the method that each is held against
        "contrastive text": ("", lambda ids: generate(contrast(), ids, **numbers)),
        "speculative contrastive": ("contrastive text", lambda ids: speculate(contrast(), shared, ids, **drafted)),
        "greedy text": ("", lambda ids: generate(CachedLM(expert), ids, **numbers)),
        "speculative": ("greedy text", lambda ids: speculate(CachedLM(expert), shared, ids, **drafted)),
        f"self-speculative, exit {layer}": (
            "greedy text", lambda ids: speculate(expert, EarlyExit(expert, layer), ids, **drafted),
        ),
        "transformers assisted": ("greedy text", lambda ids: _greedy(expert, ids, steps, assistant_model=amateur)),
    }  # fmt: skip
    seconds: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, Counter] = defaultdict(Counter)
    passes: list[dict[str, float]] = []
    for timed in [False] + [True] * repetitions:
        for name, (_, decode) in methods.items():
            total = 0.0
            for ids in stories:
                shared.reset()
                start = now(expert.device)
                made = decode(ids)
                total += now(expert.device) - start
                stats = getattr(made, "stats", {})
                counts[name].update({key: stats.get(key, 0) for key in ("accepted", "tested")})
            if timed:
                seconds[name].append(total / len(stories) / steps)
        if timed:
            passes.append(_passes(expert, amateur, layer, stories[0]))
        bar.update()
    cost = {name: statistics.median(spent[name] for spent in passes) for name in passes[0]}
    rows = []
    for name, (against, _) in methods.items():
        row = _row(name, seconds[name], against, [a / b for a, b in zip(seconds[against], seconds[name])])
        if counts[name]["tested"]:
            rate = counts[name]["accepted"] / counts[name]["tested"]
            row |= {"predicted": _predicted(name, rate, cost), "accepted": rate}
        rows.append(row)
    return rows


def _predicted(name: str, rate: float, cost: dict[str, float]) -> float:
    """The speed-up of a speculative loop that its acceptance rate and the costs of the passes give."""
    tokens = (1 - rate ** (GAMMA + 1)) / (1 - rate) if rate < 1 else GAMMA + 1  # per round
    if name == "speculative contrastive":  # the amateur reads the last draft too, and nothing twice
        return tokens * (cost["expert"] + cost["amateur"]) / ((GAMMA + 1) * cost["amateur"] + cost["check"])
    draft = cost["exit" if name.startswith("self") else "amateur"]
    return tokens * cost["expert"] / (GAMMA * draft + cost["check"])


@torch.no_grad()
def _passes(expert, amateur, layer: int, ids: Tensor) -> dict[str, float]:
    """Median seconds of bare passes after a context: one token of each model, and the check of a round's tokens."""
    models = {"expert": (expert, 1), "amateur": (amateur, 1), "exit": (EarlyExit(expert, layer).model, 1)}
    costs = {}
    for name, (model, width) in (models | {"check": (expert, GAMMA + 1)}).items():
        cache, times = DynamicCache(config=model.config), []
        model(input_ids=ids.to(model.device), past_key_values=cache)
        for _ in range(15):
            start = now(model.device)
            model(input_ids=ids[:, :1].expand(-1, width).to(model.device), past_key_values=cache)
            times.append(now(model.device) - start)
            cache.crop(-width)
        costs[name] = statistics.median(times)
    return costs


def _greedy(model: PreTrainedModel, ids: Tensor, steps: int, **more: Any) -> None:
    """So many greedy tokens by the generate() of transformers."""
    never = model.config.get_text_config().vocab_size  # an EOS id that no model can emit
    numbers = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)
    ids, before = ids.to(model.device), logging.get_verbosity()
    logging.set_verbosity_error()  # assisted generation warns of its own inner calls
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=numbers, **more)
    finally:
        logging.set_verbosity(before)


def _row(method: str, times: list[float], against: str = "", ratios: Sequence[float] = ()) -> dict[str, Any]:
    row = {"method": method, "ms": 1e3 * statistics.median(times), "against": against}
    row["ratio"] = statistics.median(ratios) if ratios else None
    return row | {"low": min(ratios, default=None), "high": max(ratios, default=None)}


def main(argv: list[str]) -> int:
    """`cdlearn bench`."""
    parser = options.Parser(
        prog="cdlearn bench",
        description="Cost of decoding as ratios to the bare forward passes timed beside it; speculation: the speed-up.",
        epilog="example: cdlearn bench --size 25m --threads 2",
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    if args.expert or args.amateur:
        pair = load_pair(args.expert, args.amateur)
        models = (pair.expert, pair.amateur)
    else:
        models = load(args.size)
    numbers = {name: getattr(args, name) for name in ("batch", "context", "steps", "repetitions", "threads")}
    record = measure(*models, **numbers)
    if args.json:
        print(json.dumps(record, indent=1))
        return 0
    for facts in (record["machine"], record["setting"]):
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("\nratio: time over that of what it is held against; of a whole text the speed-up (more is faster)\n")
    print(pd.DataFrame(record["rows"]).drop(columns="aim").to_string(index=False, na_rep="", float_format="%.3f"))
    return 0
