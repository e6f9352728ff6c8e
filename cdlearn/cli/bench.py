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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cdlearn.cli import options
from cdlearn.cli.timing import CHECKED, Forwards, Lap, Stopwatch, bare_passes, greedy, machine, now
from cdlearn.hf import as_causal_lm
from cdlearn.loops.generate import generate
from cdlearn.loops.speculate import speculate
from cdlearn.pairs import load_pair
from cdlearn.pairs.loading import for_each_role, is_embedded, pick_device
from cdlearn.sources import CachedLM, Contrast, DoLa, EarlyExit, Mix, Prompted, Source

# random pairs: hidden size, intermediate size, layers, heads of the expert and of the amateur; 34M/7M and 98M/20M
SHAPES = {"25m": ((512, 1408, 8, 8), (256, 704, 4, 4)), "100m": ((768, 2048, 12, 12), (448, 1216, 5, 7))}
SIZES = ("embedded", *SHAPES)
AIMS = {  # of the embedded pair and random ones; of others
    "contrastive, no trace": ("<= 1.05 at 25M+, <= 1.15 embedded", ""),
    "contrastive": ("<= 1.05 at 25M+, <= 1.15 embedded", "<= 1.02"),
    "DoLa": ("<= 1.08", "<= 1.25, half precision 1.06"),
    "as_causal_lm": ("<= 1.25", "<= 1.25"),
    "speculative contrastive": (
        ">= 0.85 of the prediction, 1.3 on the embedded pair's stories",
        ">= 1, half precision 1.35",
    ),
    "speculative": ("", ">= 0.97"),
    "speculative over assisted": ("> 1", ">= 1.10"),
}
SMALL = ("contrastive, no trace", "mix", "prompted", "early exit", "self-speculative")
STORIES = (  # for the embedded pair
    "Tell a story about Ben and a blue boat.",
    "Tell me a story about a fox and a drum.",
    "Zoe had a red kite. She had a fox too. They lived near the lake.",
)
PROMPTS = (  # for others
    "The keeper of the old lighthouse had not seen a ship for weeks. Then, one morning,",
    'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number, without recursion."""\n',
    "Why is the sky blue?",
)


def random_pair(size: str = "25m", *, seed: int = 0, vocab_size: int = 16384) -> list[PreTrainedModel]:
    """Return a random Llama expert and amateur of a size in `SHAPES`, where a step is mostly matrix products."""
    numbers = {"vocab_size": vocab_size, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        configs = [LlamaConfig(**numbers, **dict(zip(names, shape))) for shape in SHAPES[size]]
        return [LlamaForCausalLM(config).eval() for config in configs]


def load(
    size: str, expert: Any = None, amateur: Any = None, device: Any = "auto", dtype: Any = "auto"
) -> tuple[PreTrainedModel, PreTrainedModel, list[Tensor]]:
    """The expert and the amateur, named or of a size, and the ids [1, T] of texts that they can continue."""
    if size in SHAPES and expert is None and amateur is None:
        place = pick_device() if device == "auto" else device
        kind = "float32" if dtype == "auto" else dtype
        moved = for_each_role(place, {"": 0}, "device")[""], for_each_role(kind, {"": 0}, "dtype")[""]
        return *(model.to(*moved) for model in random_pair(size)), []
    pair = load_pair(expert, amateur, device=device, dtype=dtype)
    own = all(name is None or is_embedded(name) for name in (expert, amateur))
    texts = STORIES if own else [pair.prompt(text) for text in PROMPTS if pair.tokenizer]
    return pair.expert, pair.amateur, [torch.tensor([pair.tokenizer(text)["input_ids"]]) for text in texts]


def measure(
    expert: PreTrainedModel, amateur: PreTrainedModel, stories: Sequence[Tensor] = (), *,
    batch: int = 1, context: int = 32, steps: int = 64, tokens: int = 64, repetitions: int = 5,
    threads: int | None = None, own: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Returns the machine, the setting, and rows: one for each method.

    Each repetition decodes `steps` tokens in `batch` rows after `context` random ones with every method in turn, and
    continues the stories, ids [1, T] that the models can read, by so many `tokens`. In a row: method, ms (a step, or a
    token of a text, or from the call to the scores of the first token; median), against, ratio (times to the bare
    forwards or the method named in `against`; for speculative rows the speed-up over it), low and high (over
    repetitions), predicted (the speed-up that the measured passes and tokens per round give, were the loop free: arXiv
    2211.17192, theorem 3.8), drafted (tokens per round), accepted (of those that were tested), aim. own: False leaves
    out the methods in `SMALL`, which would take larger models long, and takes the aims of other pairs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with options.bar((repetitions + 1) * (1 + bool(stories)), "repetition") as bar:
            numbers = {"repetitions": repetitions, "bar": bar, "own": own}
            rows = _step_rows(expert, amateur, batch, context, steps=steps, **numbers)
            rows += _text_rows(expert, amateur, stories, tokens=tokens, **numbers) if stories else []
        place = machine(expert.device)
    finally:
        torch.set_num_threads(before)
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (expert, amateur)]
    setting = {"expert": f"{sizes[0]:.1f}M", "amateur": f"{sizes[1]:.2f}M", "batch": batch, "context": context}
    setting |= {"steps": steps, "tokens": tokens, "repetitions": repetitions, "dtype": str(expert.dtype)}
    rows = [row | {"aim": AIMS.get(row["method"], ("", ""))[not own]} for row in rows]
    return {"machine": place, "setting": setting, "rows": rows}


def _step_rows(expert, amateur, batch: int, context: int, *, steps: int, repetitions: int, bar: Any, own: bool) -> list:
    """One-token steps of every loop against the bare forwards beside each step."""
    vocab = min(model.config.get_text_config().vocab_size for model in (expert, amateur))
    prompt = torch.randint(0, vocab, (batch, context), generator=torch.Generator().manual_seed(0))
    half = max(1, expert.config.get_text_config().num_hidden_layers // 2)
    both, alone = {"expert": expert, "amateur": amateur}, {"expert": expert}

    def ours(make: Callable[[], Source], trace: bool = True) -> Callable[[Forwards], Any]:
        numbers = {"max_new_tokens": steps, "trace": trace, "progress": False}
        return lambda forwards: generate(Stopwatch(make(), forwards), prompt, **numbers)

    def theirs(make: Callable[[], Any], cache: str | None = None) -> Callable[[Forwards], Any]:
        more = {"cache_implementation": cache} if cache else {}
        return lambda forwards: greedy(make(), prompt, steps, stopping_criteria=[Lap(forwards)], **more)

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
    if expert.device.type == "cuda":  # there transformers compiles the step, too
        methods |= {"transformers, static cache, compiled": (alone, theirs(lambda: expert, "static"))}
    methods = _chosen(methods, own)
    first = {f"first token, {name}": name for name in ("contrastive", "expert greedy")}
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
                times[f"first token, {method}"].append(forwards.first)
                floors[f"first token, {method}"].append(sum(forwards.prompt.values()))
        bar.update()
    # DoLa and the plain loop ran one after the other: the forwards beside them level the two
    plain = zip(times["expert greedy"], floors["expert greedy"], floors["DoLa"])
    floors["DoLa"] = [step / floor * beside for step, floor, beside in plain]
    rows = [_row(f"{name} forward", times[f"{name} forward"]) for name in both]
    rows.append(_row("both forwards", floors["contrastive"]))
    for name in [*methods, *first]:
        method = first.get(name, name)
        against = "both forwards" if methods[method][0] is both else "expert forward"
        against = "expert greedy" if name == "DoLa" else against + " of the prompt" * (name in first)
        rows.append(_row(name, times[name], against, [a / b for a, b in zip(times[name], floors[name])]))
    return rows


def _text_rows(
    expert, amateur, stories: Sequence[Tensor], *, tokens: int, repetitions: int, bar: Any, own: bool
) -> list:
    """Whole texts: each speculative loop's speed-up over its plain loop, beside what theory makes of the acceptance."""
    shared = CachedLM(amateur)  # the draft is the contrast's own amateur
    layer = max(1, expert.config.get_text_config().num_hidden_layers // 3)
    bare = {"expert": expert, "amateur": amateur} | ({"exit": EarlyExit(expert, layer).model} if own else {})
    numbers = {"max_new_tokens": tokens, "eos_token_ids": (), "trace": False, "progress": False}

    def contrast() -> Source:
        return Contrast(expert, shared, beta=0.5)

    methods: dict[str, tuple[str, Callable[[Tensor], Any]]] = {  # with the method that each is held against
        "contrastive text": ("", lambda ids: generate(contrast(), ids, **numbers)),
        "speculative contrastive": ("contrastive text", lambda ids: speculate(contrast(), shared, ids, **numbers)),
        "greedy text": ("", lambda ids: generate(CachedLM(expert), ids, **numbers)),
        "speculative": ("greedy text", lambda ids: speculate(CachedLM(expert), shared, ids, **numbers)),
        f"self-speculative, exit {layer}": (
            "greedy text", lambda ids: speculate(expert, EarlyExit(expert, layer), ids, **numbers),
        ),
        "transformers assisted": ("greedy text", lambda ids: greedy(expert, ids, tokens, assistant_model=amateur)),
    }  # fmt: skip
    methods = _chosen(methods, own)
    seconds: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, Counter] = defaultdict(Counter)
    passes: list[dict[str, float]] = []
    for timed in [False] + [True] * repetitions:
        for name, (_, decode) in methods.items():
            total = 0.0
            for ids in stories if timed else stories[:1]:
                shared.reset()
                start = now(expert.device)
                made = decode(ids)
                total += now(expert.device) - start
                stats = getattr(made, "stats", {}) if timed else {}
                keys = ("rounds", "drafted", "accepted", "tested", "new_tokens")
                counts[name].update({key: stats.get(key, 0) for key in keys})
            if timed:
                seconds[name].append(total / len(stories) / tokens)
        if timed:
            passes.append(bare_passes(bare, stories[0]))
        bar.update()
    cost = {name: statistics.median(spent[name] for spent in passes) for name in passes[0]}
    rows = []
    for name, (against, _) in methods.items():
        row = _row(name, seconds[name], against, [a / b for a, b in zip(seconds[against], seconds[name])])
        if (count := counts[name])["rounds"]:
            row |= {"predicted": _predicted(name, count, cost), "drafted": count["drafted"] / count["rounds"]}
            row["accepted"] = count["accepted"] / count["tested"] if count["tested"] else None
        rows.append(row)
    ratios = [a / b for a, b in zip(seconds["transformers assisted"], seconds["speculative"])]
    return [*rows, _row("speculative over assisted", seconds["speculative"], "transformers assisted", ratios)]


def _chosen(methods: dict[str, Any], own: bool) -> dict[str, Any]:
    return {name: method for name, method in methods.items() if own or not name.startswith(SMALL)}


def _predicted(name: str, count: Counter, cost: dict[str, float]) -> float:
    """The speed-up of a speculative loop that its tokens per round and the costs of the passes give."""
    tokens, drafted = count["new_tokens"] / count["rounds"], count["drafted"] / count["rounds"]
    check = cost["expert"] + (cost["check"] - cost["expert"]) * drafted / (CHECKED - 1)  # of drafted + 1 tokens
    if name == "speculative contrastive":  # the amateur reads the last draft too, and nothing twice
        return tokens * (cost["expert"] + cost["amateur"]) / ((drafted + 1) * cost["amateur"] + check)
    return tokens * cost["expert"] / (drafted * cost["exit" if name.startswith("self") else "amateur"] + check)


def _row(method: str, times: list[float], against: str = "", ratios: Sequence[float] = ()) -> dict[str, Any]:
    row = {"method": method, "ms": 1e3 * statistics.median(times), "against": against}
    row["ratio"] = statistics.median(ratios) if ratios else None
    return row | {"low": min(ratios, default=None), "high": max(ratios, default=None)}


def main(argv: list[str]) -> int:
    """`cdlearn bench`."""
    parser = options.Parser(
        prog="cdlearn bench",
        description="Cost of decoding as ratios to the bare forward passes timed beside it; speculation: the speed-up.",
        epilog="examples: cdlearn bench --size 25m --threads 2\n"
        "          cdlearn bench --expert Qwen/Qwen3-4B --amateur Qwen/Qwen3-0.6B --dtype bfloat16",
    )
    parser.add_argument("--size", choices=SIZES, default="embedded", help="25m, 100m: random pairs of 34M/7M, 98M/20M")
    options.add_models(parser)
    count = options.number(int, 1)
    parser.add_argument("--batch", type=count, default=1, help="rows decoded at once (default: 1)")
    parser.add_argument("--context", type=count, default=32, help="tokens before the first step (default: 32)")
    steps = options.number(int, 2)
    parser.add_argument("--steps", type=steps, help="steps per repetition (default: 64; of a pair of yours 16)")
    parser.add_argument("--tokens", type=steps, default=64, help="tokens of each text (default: 64)")
    parser.add_argument("--repetitions", type=count, help="default: 5; of a pair of yours 3")
    parser.add_argument("--threads", type=count, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    named = bool(args.expert or args.amateur)
    if named and args.size != "embedded":
        parser.error(f"--size {args.size} names a pair, and so does --expert or --amateur: give one of them")
    args.steps, args.repetitions = args.steps or (16 if named else 64), args.repetitions or (3 if named else 5)
    models = load(args.size, args.expert, args.amateur, args.device, args.dtype)
    numbers = {name: getattr(args, name) for name in ("batch", "context", "steps", "tokens", "repetitions", "threads")}
    record = measure(*models, **numbers, own=not named)
    if args.json:
        print(json.dumps(record, indent=1))
        return 0
    for facts in (record["machine"], record["setting"]):
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("\nratio: time over that of what it is held against; of a whole text the speed-up (more is faster)\n")
    columns = ["method", "ms", "against", "ratio", "low", "high", "predicted", "drafted", "accepted", "aim"]
    print(pd.DataFrame(record["rows"], columns=columns).to_string(index=False, na_rep="", float_format="%.3f"))
    return 0
