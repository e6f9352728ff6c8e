"""Asks a source for the answers of a task, batch by batch, and writes each down as soon as it is there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import Choices
from cdlearn.evaluate.report import rows_of, text_rows
from cdlearn.evaluate.strategies import is_sampled
from cdlearn.likelihood import choice_scores
from cdlearn.loops.generate import generate
from cdlearn.sources import Source
from cdlearn.toyworld.tasks import Item, Task

if TYPE_CHECKING:
    from tqdm import tqdm

SEED_STEP = 1_000_000  # between the seeds of two runs: more than a run has items


def answers(
    task: Task,
    items: list[Item],
    strategy: str,
    source: Source,
    *,
    tokenizer: Any,
    records: Records,
    batch: int = 100,
    seed: int = 0,
    run: int = 0,
    bar: tqdm | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The records of a task's items, in order: those that `records` holds, and the others asked for now.

    strategy: the name under which they are kept. run: the number of the repetition, which draws with other seeds.
    options: keywords of `generate`. A record holds task, strategy, run and item, and as its "answer" the text, or for
    multiple choice the log-probability of every choice. Batches are the same whatever is there already, so that a
    resumed run gives the very answers of an uninterrupted one. An interrupt raises KeyboardInterrupt; what is finished
    is kept.
    """
    keys = [(task.name, strategy, run, k) for k in range(len(items))]
    # prompts of similar lengths share a batch: the least padding; multiple choice is asked item by item
    free = sorted((k for k in range(len(items)) if not _is_choice(items[k])), key=lambda k: len(items[k].prompt))
    starts = range(0, len(free), batch)
    groups = [(seed + run * SEED_STEP + start, free[start : start + batch]) for start in starts]
    groups += [(seed, [k]) for k in range(len(items)) if _is_choice(items[k])]
    for first, group in groups:
        if any(records.get(keys[k]) is None for k in group):
            chosen = [items[k] for k in group]
            made = (
                [_choose(strategy, source, chosen[0], tokenizer)]
                if _is_choice(chosen[0])
                else _write(source, chosen, tokenizer, task.max_new_tokens, first, options)
            )
            for k, record in zip(group, made):
                if record["finish_reason"] != "interrupted":
                    records.add(dict(zip(("task", "strategy", "run", "item"), keys[k])) | record)
            if any(record["finish_reason"] == "interrupted" for record in made):
                raise KeyboardInterrupt
        if bar is not None:
            bar.update(len(group))
    return [records.get(key) for key in keys]


def task_rows(
    task: Task,
    items: list[Item],
    compared: dict[str, tuple[Source, dict]],
    *,
    runs: int = 1,
    texts: bool = False,
    bar: tqdm | None = None,
    stop: list[str] | None = None,
    **settings: Any,
) -> tuple[list[dict], dict[str, list[dict]]]:
    """The report's rows of a task, and each strategy's records of its first run.

    compared: strategy -> (source, keywords of `generate`). runs: repetitions of the sampled strategies. texts: add rows
    about the texts. settings: see `answers`. Multiple choice leaves out strategies that differ from their source only
    in how they draw.
    """
    graded, first, written = {}, {}, {}
    for strategy, (source, options) in compared.items():
        repeat = _repeat(items, options, runs)
        found: list[dict] = []
        for run in range(repeat):
            if bar is not None:
                bar.set_description(f"{task.name}: {strategy}")
            options = options | ({"stop": stop} if stop else {})
            found += answers(task, items, strategy, source, run=run, bar=bar, **settings, **options)
        if not repeat:
            continue
        first[strategy] = found[: len(items)]
        graded[strategy] = [task.grade(items[k % len(items)], record["answer"]) for k, record in enumerate(found)]
        written[strategy] = [record["answer"] for record in found]
    about = text_rows(task.name, items, written) if texts and not _is_choice(items[0]) else []
    return rows_of(task, items, graded) + about, first


def asked(items: list[Item], compared: dict[str, tuple[Source, dict]], runs: int) -> int:
    """How many answers `task_rows` asks for."""
    return sum(len(items) * _repeat(items, options, runs) for _, options in compared.values())


def _repeat(items: list[Item], options: dict, runs: int) -> int:
    if _is_choice(items[0]):
        return 0 if options else 1
    return runs if is_sampled(options) else 1


def _is_choice(item: Item) -> bool:
    return isinstance(item.gold, Choices)


def _choose(strategy: str, source: Source, item: Item, tokenizer: Any) -> dict[str, Any]:
    convention = "reference" if strategy.endswith(", reference") else "textbook"
    scores = choice_scores(source, item.prompt, item.gold.texts, tokenizer=tokenizer, convention=convention)
    return {"answer": scores, "finish_reason": "choice"}


def _write(source: Source, items: list[Item], tokenizer: Any, length: int, seed: int, options: dict) -> list[dict]:
    if options.get("stop"):  # stop strings need the text at every step
        prompts, options = [item.prompt for item in items], options | {"tokenizer": tokenizer}
    else:  # ids in, ids out: nobody reads along, so the text is made once at the end
        prompts = [tokenizer(item.prompt)["input_ids"] for item in items]
    made = generate(source, prompts, max_new_tokens=length, seed=seed, trace=False, progress=False, **options)
    found = []
    for one in made:
        text = tokenizer.decode(one.token_ids, skip_special_tokens=True) if one.text is None else one.text
        found.append({"answer": text, "token_ids": list(one.token_ids), "finish_reason": one.finish_reason})
    return found


@torch.no_grad()
def fingerprint(model: Any) -> str | None:
    """A model's kind, size and a hash over a few numbers of every weight: the same for the same weights anywhere."""
    if model is None:
        return None
    digest, count = hashlib.sha256(), 0
    for name, weight in model.named_parameters():
        count += weight.numel()
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"{type(model).__name__}, {count} parameters in {str(model.dtype)[6:]}, {digest.hexdigest()[:12]}"
