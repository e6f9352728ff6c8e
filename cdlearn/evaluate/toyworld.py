"""The embedded pair's own table: its tasks and methods, the puzzles over alpha and beta, and how well drafts do."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from cdlearn.evaluate.answers import Tasks, answers, evaluate
from cdlearn.methods import Models, build, parse
from cdlearn.pairs import Pair

USUAL = ("greedy", "amateur", "sample top_p=0.95", "contrastive beta=0.5", "contrastive strength=1", "dola layers=low")
ALSO = {"dola layers=high": ("facts",), "early beta=0.5": ("puzzles", "facts")}  # elsewhere they say nothing new
GRID = tuple(f"contrastive alpha={alpha} beta={beta}" for alpha in (0.05, 0.1, 0.2, 0.3) for beta in (0.25, 0.5, 1.0))


def table_rows(tasks: Tasks, models: Models, *, early: bool = True, grid: bool = True, **settings: Any) -> list[dict]:
    """Every usual method on these tasks of the toy world, in percent with 95% intervals; then the drafts.

    early: also the expert against its early checkpoint. grid: also the puzzles over alpha and beta. settings: see
    `answers.answers`.
    """
    also = {spec: names for spec, names in ALSO.items() if early or not spec.startswith("early")}
    methods = {name: [*USUAL, *(spec for spec, names in also.items() if name in names)] for name in tasks}
    rows = evaluate(tasks, methods, models, **settings)
    if grid and "puzzles" in tasks:
        task, items = tasks["puzzles"]
        right = replace(task, grade=lambda item, text: {"right": task.grade(item, text)["right"]})
        title = "puzzles, every setting"  # the answers of greedy are found again
        rows += evaluate({title: (right, items)}, {title: ["greedy", *GRID]}, models, **settings)
    return rows + _draft_rows(tasks, models, settings)


def _draft_rows(tasks: Tasks, models: Models, settings: dict[str, Any]) -> list[dict]:
    tokenizer = models.pair.tokenizer

    def token_rows(name: str, spec: str) -> list[tuple[list[int], list[int]]]:
        task, items = tasks[name]
        made = answers(task, items, spec, build(models, *parse(spec)), tokenizer=tokenizer, **settings)
        pairs = zip(items, made, strict=True)
        return [(tokenizer(item.prompt).input_ids, one["token_ids"]) for item, one in pairs if one["token_ids"]]

    contrasts = [spec for spec in USUAL if spec.startswith("contrastive")]
    rows = [agreement(models.pair, name, token_rows(name, spec), spec) for name in tasks for spec in contrasts]
    return rows + drafting(models.pair, {name: token_rows(name, "sample") for name in tasks})


def drafting(pair: Pair, texts: dict[str, list[tuple[list[int], list[int]]]]) -> list[dict]:
    """How well the amateur and the expert's early exits stand in for the expert.

    texts: per task the ids of prompts and of continuations sampled at temperature 1. The acceptance rate of speculative
    sampling is `1 - TV(expert, draft)` there, averaged over positions (arXiv 2211.17192, corollary 3.6).
    """
    overlaps = {name: _overlaps(pair, rows) for name, rows in texts.items()}
    drafts = dict.fromkeys(draft for task in overlaps.values() for draft in task)
    rows = [_mean_row("drafting", draft, sum((task[draft] for task in overlaps.values()), [])) for draft in drafts]
    return rows + [_mean_row(f"drafting, {name}", "amateur", task["amateur"]) for name, task in overlaps.items()]


@torch.inference_mode()
def agreement(pair: Pair, task: str, texts: list[tuple[list[int], list[int]]], spec: str) -> dict:
    """The share of a text's tokens that the amateur would have chosen greedily as well."""
    same = []
    for prompt, new in texts:
        logits = pair.amateur(torch.tensor([prompt + new], device=pair.amateur.device)).logits[0, len(prompt) - 1 : -1]
        same += [a == b for a, b in zip(logits.argmax(-1).tolist(), new)]
    return _mean_row(task, spec, same, "amateur's greedy choice")


@torch.inference_mode()
def _overlaps(pair: Pair, texts: list[tuple[list[int], list[int]]]) -> dict[str, list[float]]:
    """1 - TV(expert, draft) at every position: for the amateur and, in the Llama format only, each early exit."""
    overlaps, expert = defaultdict(list), pair.expert
    for prompt, new in texts:
        ids, columns = torch.tensor([prompt + new], device=expert.device), slice(len(prompt) - 1, -1)
        made = expert(ids, output_hidden_states=True, use_cache=False)
        drafts = {"amateur": pair.amateur(ids.to(pair.amateur.device)).logits[0, columns].to(ids.device)}
        if expert.config.model_type == "llama":
            for k, state in enumerate(made.hidden_states[1:-1]):
                drafts[f"exit {k + 1}"] = expert.lm_head(expert.model.norm(state[0, columns]))
        size = min(made.logits.shape[-1], drafts["amateur"].shape[-1])  # families pad their vocabularies differently
        target = made.logits[0, columns, :size].float().softmax(-1)  # (positions, V)
        for name, draft in drafts.items():
            overlaps[name] += torch.minimum(target, draft[:, :size].float().softmax(-1)).sum(-1).tolist()
    return overlaps


def _mean_row(task: str, spec: str, values: list[float], metric: str = "1 - TV") -> dict:
    """A mean over positions, in percent; neighbouring positions depend on each other, so no interval is given."""
    value = round(100 * sum(values) / len(values), 1)
    return {"task": task, "strategy": spec, "metric": metric, "value": value, "items": len(values)}
