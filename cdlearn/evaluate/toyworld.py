"""The toy world's table: every strategy on every task, the puzzles over alpha and beta, and the drafts."""

from collections.abc import Iterator

import torch
from tqdm.auto import tqdm

import cdlearn
from cdlearn.evaluate.answers import answers, asked, task_rows
from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.report import rows_of
from cdlearn.evaluate.strategies import BASELINE, EVERY, build
from cdlearn.toyworld.tasks import TASKS, Item

BATCH = 100
GRID = [(alpha, beta) for alpha in (0.05, 0.1, 0.2, 0.3) for beta in (0.25, 0.5, 1.0)]
TABLE_SETTING = (0.1, 0.5)  # what the table itself decodes with; the grid takes its grades from there
ONLY = {
    "DoLa high": ("facts",),
    "early checkpoint, beta 0.5": ("puzzles", "facts"),
}  # what would say nothing new elsewhere


def strategies(pair, early=None) -> dict[str, tuple[object, dict]]:
    """Name -> (source, keywords of `generate`) of everything that is compared; `early`: a checkpoint of the expert."""
    return build([name for name in EVERY if early is not None or not name.startswith("early")], pair, early)


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
    """1 - TV(expert, draft) at every position, [positions], for the amateur and for each early exit of the expert.

    Early exits are read off models in the Llama format only; other architectures give the amateur alone.
    """
    found: dict[str, list[torch.Tensor]] = {}
    expert = pair.expert
    for ids, where in _batches(rows):
        ids, where = ids.to(expert.device), where.to(expert.device)
        drafts = {"amateur": pair.amateur(ids.to(pair.amateur.device)).logits.to(ids.device)[where]}
        if expert.config.model_type == "llama":
            hidden = expert.model(
                ids, output_hidden_states=True, use_cache=False
            ).hidden_states  # the last one is normed
            logits = expert.lm_head(hidden[-1][where])  # the last one is normed already
            for k, state in enumerate(hidden[1:-1]):
                drafts[f"exit {k + 1}"] = expert.lm_head(expert.model.norm(state[where]))
        else:
            logits = expert(ids).logits[where]
        size = min(logits.shape[-1], drafts["amateur"].shape[-1])  # families pad their vocabularies differently
        target = logits[:, :size].float().softmax(-1)  # (positions, V)
        drafts["amateur"] = drafts["amateur"][:, :size]
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
    return [(tokenizer(item.prompt).input_ids, g["token_ids"]) for item, g in pairs if g["token_ids"]]


def _mean_row(values: torch.Tensor, metric: str = "1 - TV") -> dict:
    """A mean over positions, in percent; neighbouring positions depend on each other, so no interval is given."""
    return {"metric": metric, "value": round(100 * values.mean().item(), 1), "items": values.numel()}


def evaluate(
    pair,
    *,
    early=None,
    tasks=tuple(TASKS),
    n: int = 500,
    seed: int = 0,
    grid: bool = True,
    runs: int = 1,
    batch: int = BATCH,
    records: Records | None = None,
    texts: bool = False,
    progress=None,
) -> list[dict]:
    """Every strategy on every task: a list of rows (task, strategy, metric, value, low, high, minus_greedy, items).

    Values are percentages with a 95% percentile-bootstrap interval (2,000 resamples of items; of places for facts).
    pair: a `Pair` trained on the toy world; early: a checkpoint of its expert, as one more amateur. tasks: names from
    `TASKS`. n: items a task (facts are always all). grid: also run the puzzles over alpha and beta. runs: repetitions
    of sampled strategies. batch: prompts in one batch. records: where answers are kept and found again. texts: add rows
    about the texts themselves. Raises ValueError for an unknown task or n below 1.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"tasks names {unknown[0]!r}; known are {', '.join(TASKS)}.")
    items = {name: TASKS[name].items(n, seed) for name in tasks}
    compared = strategies(pair, early)
    chosen = {name: {s: c for s, c in compared.items() if name in ONLY.get(s, TASKS)} for name in tasks}
    grid = grid and "puzzles" in tasks
    total = sum(asked(items[name], chosen[name], runs) + len(items[name]) for name in tasks)
    total += (len(GRID) - 1) * len(items["puzzles"]) if grid else 0
    rows: list[dict] = []
    sampled = {}
    # quiet where nobody watches: `disable=None` is tqdm's word for "only on a terminal"
    with tqdm(total=total, unit="text", disable=True if progress is False else None) as bar:
        settings = {"tokenizer": pair.tokenizer, "batch": batch, "seed": seed, "bar": bar}
        settings["records"] = Records() if records is None else records
        for name in tasks:
            found, made = task_rows(TASKS[name], items[name], chosen[name], runs=runs, texts=texts, **settings)
            for strategy in made:
                if strategy.startswith("contrastive"):
                    rows.append(agreement(pair, name, made[strategy], items[name], strategy))
            rows += found
            bar.set_description(f"{name}: drafting")
            expert = compared[BASELINE][0]
            sampled[name] = answers(TASKS[name], items[name], "temperature 1.0", expert, temperature=1.0, **settings)
            if name == "puzzles" and grid:
                rows += _grid_rows(pair, items[name], made, settings)
        return rows + drafting(pair, sampled, items)


def _grid_rows(pair, items: list[Item], made: dict[str, list[dict]], settings: dict) -> list[dict]:
    """The puzzles over alpha and beta; `made`: the answers of greedy, and of the table's own setting."""
    task = TASKS["puzzles"]
    expert, amateur = cdlearn.CachedLM(pair.expert), cdlearn.CachedLM(pair.amateur)
    texts = {BASELINE: made[BASELINE]}
    for alpha, beta in GRID:
        name = f"alpha {alpha}, beta {beta}"
        settings["bar"].set_description(f"puzzles: {name}")
        if (alpha, beta) == TABLE_SETTING:
            texts[name] = made["contrastive, beta 0.5"]
        else:
            source = cdlearn.Contrast(expert, amateur, alpha=alpha, beta=beta)
            texts[name] = answers(task, items, f"contrastive, {name}", source, **settings)
    graded = {
        name: [{"right": task.grade(item, record["answer"])["right"]} for item, record in zip(items, records)]
        for name, records in texts.items()
    }
    return rows_of(task, items, graded, "puzzles, every setting")
