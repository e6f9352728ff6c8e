"""`cdlearn eval`: strategies x tasks of the toy world, with bootstrap intervals."""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import cdlearn
from cdlearn.toyworld.tasks import TASKS, Item, Task

RESAMPLES = 2000
BATCH = 100
GRID = [(alpha, beta) for alpha in (0.05, 0.1, 0.2, 0.3) for beta in (0.25, 0.5, 1.0)]
TABLE_SETTING = (0.1, 0.5)  # what the table itself decodes with; the grid takes its grades from there
BASELINE = "greedy"
ONLY = {
    "DoLa high": ("facts",),
    "early checkpoint, beta 0.5": ("puzzles", "facts"),
}  # what would say nothing new elsewhere


def strategies(pair, early=None) -> dict[str, tuple[object, dict]]:
    """Name -> (source, keywords of `generate`) of everything that is compared; `early`: a checkpoint of the expert."""
    expert, amateur = cdlearn.CachedLM(pair.expert), cdlearn.CachedLM(pair.amateur)
    compared = {
        BASELINE: (expert, {}),
        "amateur": (amateur, {}),
        "top-p 0.95": (expert, {"temperature": 1.0, "top_p": 0.95}),
        "contrastive, beta 0.5": (cdlearn.Contrast(expert, amateur, beta=0.5), {}),
        "contrastive, strength 1": (cdlearn.Contrast(expert, amateur, strength=1.0), {}),
        "DoLa low": (cdlearn.DoLa(pair.expert, layers="low"), {}),
        "DoLa high": (cdlearn.DoLa(pair.expert, layers="high"), {}),
    }
    if early is not None:
        compared["early checkpoint, beta 0.5"] = (cdlearn.Contrast(expert, cdlearn.CachedLM(early), beta=0.5), {})
    return compared


def run(source, items: list[Item], task: Task, tokenizer, *, seed: int, bar, **options) -> list:
    """The generations of a task's items, in order; batches of similar lengths waste the least padding."""
    order = sorted(range(len(items)), key=lambda k: len(items[k].prompt))
    done: list = [None] * len(items)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        # ids in, ids out: nobody reads along, so the text is made once at the end instead of token by token
        texts = cdlearn.generate(
            source,
            [tokenizer(items[k].prompt)["input_ids"] for k in chosen],
            max_new_tokens=task.max_new_tokens,
            seed=seed + start,
            trace=False,
            progress=False,
            **options,
        )
        for k, made in zip(chosen, texts, strict=True):
            made.text = tokenizer.decode(made.token_ids, skip_special_tokens=True)
            done[k] = made
        bar.update(len(chosen))
    return done


def bootstrap(grades: list[dict], groups: list[str], metric: str, *, seed: int = 0) -> np.ndarray:
    """[1 + RESAMPLES] values of a metric in percent: as measured, then with the groups drawn anew with replacement.

    The same groups in the same order give the same draws, so that two strategies can be compared item by item.
    """
    place = {group: k for k, group in enumerate(sorted(set(groups)))}
    sums = np.zeros((len(place), 2))
    for grade, group in zip(grades, groups, strict=True):
        sums[place[group]] += grade[metric]
    draws = np.random.default_rng(seed).integers(len(place), size=(RESAMPLES, len(place)))
    totals = np.concatenate([sums.sum(0)[None], sums[draws].sum(1)])  # (1 + RESAMPLES, 2)
    return 100 * np.divide(totals[:, 0], totals[:, 1], out=np.zeros(len(totals)), where=totals[:, 1] > 0)


def interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": round(float(values[0]), 1), "low": round(float(low), 1), "high": round(float(high), 1)}


def rows_of(task: Task, items: list[Item], graded: dict[str, list[dict]], name: str | None = None) -> list[dict]:
    """One row per strategy and metric, with the paired difference to the expert's greedy decoding."""
    groups = [item.group for item in items]
    base = graded.get(BASELINE, [])
    greedy = {metric: bootstrap(base, groups, metric) for metric in base[0]} if base else {}
    rows = []
    for strategy, grades in graded.items():
        for metric in grades[0]:
            values = greedy[metric] if strategy == BASELINE else bootstrap(grades, groups, metric)
            row = {"task": name or task.name, "strategy": strategy, "metric": metric, **interval(values)}
            if greedy and strategy != BASELINE:
                row["minus_greedy"] = interval(values - greedy[metric])
            rows.append(row | {"items": len(items)})
    return rows


def _batches(rows: list[tuple[list[int], list[int]]], size: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids [B, T] of prompts and continuations, padded on the right, and where a continuation's next token is scored."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width = max(len(prompt) + len(new) for prompt, new in part)
        ids = torch.tensor([p + n + [0] * (width - len(p) - len(n)) for p, n in part])
        columns = torch.arange(width)
        where = torch.stack([(columns >= len(p) - 1) & (columns < len(p) + len(n) - 1) for p, n in part])
        yield ids, where


@torch.inference_mode()
def _overlaps(pair, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """1 - TV(expert, draft) at every position, [positions], for the amateur and for each early exit of the expert."""
    found: dict[str, list[torch.Tensor]] = {}
    expert = pair.expert
    for ids, where in _batches(rows):
        ids, where = ids.to(expert.device), where.to(expert.device)
        hidden = expert.model(ids, output_hidden_states=True, use_cache=False).hidden_states  # the last one is normed
        target = expert.lm_head(hidden[-1][where]).float().softmax(-1)  # (positions, V)
        drafts = {"amateur": pair.amateur(ids.to(pair.amateur.device)).logits.to(ids.device)[where]}
        for k, state in enumerate(hidden[1:-1]):
            drafts[f"exit {k + 1}"] = expert.lm_head(expert.model.norm(state[where]))
        for name, logits in drafts.items():
            found.setdefault(name, []).append(torch.minimum(target, logits.float().softmax(-1)).sum(-1).cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def drafting(pair, texts: dict[str, list], prompts: dict[str, list[Item]]) -> list[dict]:
    """How well the amateur and the expert's early exits stand in for the expert.

    `texts` are sampled continuations (temperature 1) per task: the acceptance rate of speculative sampling is
    `1 - TV(expert, draft)` there, averaged over positions (arXiv 2211.17192, corollary 3.6).
    """
    rows = []
    pooled: dict[str, list[torch.Tensor]] = {}
    for name, generations in texts.items():
        for draft, overlap in _overlaps(pair, _token_rows(pair.tokenizer, prompts[name], generations)).items():
            pooled.setdefault(draft, []).append(overlap)
            if draft == "amateur":
                rows.append({"task": f"drafting, {name}", "strategy": draft, **_mean_row(overlap)})
    return [{"task": "drafting", "strategy": k, **_mean_row(torch.cat(v))} for k, v in pooled.items()] + rows


@torch.inference_mode()
def agreement(pair, name: str, generations: list, items: list[Item], strategy: str) -> dict:
    """The share of a text's tokens that the amateur would have chosen greedily as well."""
    same = []
    for ids, where in _batches(_token_rows(pair.tokenizer, items, generations)):
        choice = pair.amateur(ids.to(pair.amateur.device)).logits.argmax(-1).cpu()
        same.append((choice[:, :-1] == ids[:, 1:])[where[:, :-1]])
    return {"task": name, "strategy": strategy, **_mean_row(torch.cat(same).float(), "amateur's greedy choice")}


def _token_rows(tokenizer, items: list[Item], generations: list) -> list[tuple[list[int], list[int]]]:
    pairs = zip(items, generations, strict=True)
    return [(tokenizer(item.prompt).input_ids, list(g.token_ids)) for item, g in pairs if len(g.token_ids)]


def _mean_row(values: torch.Tensor, metric: str = "1 - TV") -> dict:
    """A mean over positions, in percent; neighbouring positions depend on each other, so no interval is given."""
    return {"metric": metric, "value": round(100 * values.mean().item(), 1), "items": values.numel()}


def evaluate(
    pair, *, early=None, tasks=tuple(TASKS), n: int = 500, seed: int = 0, grid: bool = True, progress=None
) -> list[dict]:
    """Every strategy on every task: a list of rows (task, strategy, metric, value, low, high, minus_greedy, items).

    Values are percentages with a 95% percentile-bootstrap interval (2,000 resamples of items; of places for facts).
    pair: a `Pair` trained on the toy world; early: a checkpoint of its expert, as one more amateur. tasks: names from
    `TASKS`. n: items a task (facts are always all). grid: also run the puzzles over alpha and beta.
    Raises ValueError for an unknown task or n below 1.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"tasks names {unknown[0]!r}; known are {', '.join(TASKS)}.")
    items = {name: TASKS[name].items(n, seed) for name in tasks}
    compared = strategies(pair, early)
    settings = {}
    if grid and "puzzles" in tasks:
        expert, amateur = cdlearn.CachedLM(pair.expert), cdlearn.CachedLM(pair.amateur)
        settings = {(a, b): cdlearn.Contrast(expert, amateur, alpha=a, beta=b) for a, b in GRID}
    runs = {name: 1 + sum(name in ONLY.get(strategy, TASKS) for strategy in compared) for name in tasks}
    total = sum(len(items[name]) * runs[name] for name in tasks) + len(settings) * len(items.get("puzzles", []))
    rows: list[dict] = []
    sampled = {}
    # quiet where nobody watches: `disable=None` is tqdm's word for "only on a terminal"
    with tqdm(total=total, unit="text", disable=True if progress is False else None) as bar:
        for name in tasks:
            task, chosen, graded = TASKS[name], items[name], {}
            for strategy, (source, options) in compared.items():
                if name not in ONLY.get(strategy, TASKS):
                    continue
                bar.set_description(f"{name}: {strategy}")
                done = run(source, chosen, task, pair.tokenizer, seed=seed, bar=bar, **options)
                graded[strategy] = [task.grade(item, g.text) for item, g in zip(chosen, done, strict=True)]
                if strategy.startswith("contrastive"):
                    rows.append(agreement(pair, name, done, chosen, strategy))
            rows += rows_of(task, chosen, graded)
            bar.set_description(f"{name}: drafting")
            sampled[name] = run(
                compared[BASELINE][0], chosen, task, pair.tokenizer, seed=seed, bar=bar, temperature=1.0
            )
            if name == "puzzles" and settings:
                at_table_setting = graded["contrastive, beta 0.5"]
                graded = {BASELINE: graded[BASELINE]}
                for (alpha, beta), source in settings.items():
                    bar.set_description(f"{name}: alpha {alpha}, beta {beta}")
                    if (alpha, beta) == TABLE_SETTING:
                        grades = at_table_setting
                        bar.update(len(chosen))
                    else:
                        done = run(source, chosen, task, pair.tokenizer, seed=seed, bar=bar)
                        grades = [task.grade(item, g.text) for item, g in zip(chosen, done, strict=True)]
                    graded[f"alpha {alpha}, beta {beta}"] = grades
                graded = {key: [{"right": g["right"]} for g in grades] for key, grades in graded.items()}
                rows += rows_of(task, chosen, graded, "puzzles, every setting")
        return rows + drafting(pair, sampled, items)


def table(rows: list[dict]) -> str:
    """The rows as aligned text, one block per task."""
    lines, last = [], None
    for row in sorted(rows, key=lambda r: r["task"]):
        if row["task"] != last:
            last = row["task"]
            counted = [r for r in rows if r["task"] == last]
            whole = [r["items"] for r in counted if "low" in r]
            lines += ["", f"{last} ({whole[0]} items)" if whole else f"{last} ({counted[0]['items']} tokens)"]
        span = f"[{row['low']:5.1f}, {row['high']:5.1f}]" if "low" in row else ""
        against = row.get("minus_greedy")
        against = f"{against['value']:+6.1f} [{against['low']:+.1f}, {against['high']:+.1f}]" if against else ""
        lines.append(f"  {row['strategy']:27} {row['metric']:22} {row['value']:6.1f} {span:16} {against}".rstrip())
    return "\n".join(lines[1:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cdlearn eval",
        description="Strategies x tasks of the toy world: percentages, 95% bootstrap intervals, difference to greedy.",
        epilog="example: cdlearn eval --tasks puzzles facts --json results.json",
    )
    parser.add_argument("--expert", help="folder or hub id (default: the embedded pair)")
    parser.add_argument("--amateur", help="folder or hub id")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("-n", type=int, default=500, help="items a task (default 500; facts are always all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-grid", action="store_true", help="leave out the puzzles over alpha and beta")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the set-up to FILE as well")
    args = parser.parse_args(argv)
    if args.n < 1:
        parser.error(f"argument -n: {args.n} is not a number of items; use 1 or more")
    start = time.time()
    pair = cdlearn.load_pair(args.expert, args.amateur)
    early = cdlearn.load_expert("early").expert if args.expert is None else None
    rows = evaluate(pair, early=early, tasks=args.tasks, n=args.n, seed=args.seed, grid=not args.no_grid)
    print(table(rows))
    print(f"\n{time.time() - start:.0f} s on {torch.get_num_threads()} threads, seed {args.seed}")
    if args.json:
        setup = {"seed": args.seed, "n": args.n, "seconds": round(time.time() - start), "torch": torch.__version__}
        setup |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
