"""The one path from tasks to rows: asks each method, batch by batch, writes each answer down at once, and grades."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import Choices
from cdlearn.evaluate.report import rows_of, text_rows
from cdlearn.methods import OPTIONS, Decoder, Models, build, parse
from cdlearn.metrics import choice_scores
from cdlearn.toyworld.tasks import Item, Task

SEED_STEP = 1_000_000  # between the seeds of two runs: more than a run has items


def evaluate(
    tasks: dict[str, tuple[Task, list[Item]]],
    methods: dict[str, Sequence[str]],
    models: Models,
    *,
    runs: int = 1,
    texts: bool = False,
    **settings: Any,
) -> list[dict]:
    """The report's rows of every task, method and metric (see `report.rows_of`), task by task.

    tasks: title -> (task, items), as `read_questions` and `toy_tasks` return them. methods: title -> the methods that
    answer, spelled as in `cdlearn.methods`. runs: repetitions of the methods that sample. texts: add rows about the
    texts. settings: see `answers`. Multiple choice leaves out methods that differ from their source only in how they
    draw. Raises ValueError for a method that is unknown or lacks its model.
    """
    decoders = {spec: build(models, *parse(spec)) for spec in dict.fromkeys(sum(map(list, methods.values()), []))}
    repeats = {
        (title, spec): _repeats(items, decoders[spec], runs)
        for title, (_, items) in tasks.items()
        for spec in methods[title]
    }
    total = sum(len(tasks[title][1]) * count for (title, _), count in repeats.items())
    rows = []
    # disable=None: a bar on a terminal only, and on stderr, so that redirected output stays clean
    with tqdm(total=total, unit="text", disable=None) as bar:
        settings |= {"tokenizer": models.pair.tokenizer, "bar": bar}
        for title, (task, items) in tasks.items():
            graded, written = {}, {}
            for spec in (spec for spec in dict.fromkeys(methods[title]) if repeats[title, spec]):
                bar.set_description(f"{title}: {spec}")
                made = [
                    record
                    for run in range(repeats[title, spec])
                    for record in answers(task, items, spec, decoders[spec], run=run, **settings)
                ]
                written[spec] = [record["answer"] for record in made]
                graded[spec] = [task.grade(items[k % len(items)], answer) for k, answer in enumerate(written[spec])]
            rows += rows_of(title, items, graded)
            rows += text_rows(title, items, written) if texts and not _is_choice(items[0]) else []
    return rows


def answers(
    task: Task,
    items: list[Item],
    spec: str,
    decoder: Decoder,
    *,
    tokenizer: Any,
    records: Records,
    batch: int = 100,
    seed: int = 0,
    run: int = 0,
    stop: list[str] | None = None,
    bar: tqdm | None = None,
) -> list[dict[str, Any]]:
    """The records of a task's items, in order: those that `records` holds, and the others asked for now.

    spec: the method's name in the records. run: the number of the repetition, which draws with other seeds. stop: texts
    that end an answer. A record holds task, strategy, run and item, and as its "answer" the text, or for multiple
    choice the log-probability of every choice. Batches are the same whatever is there already, so that a resumed run
    gives the very answers of an uninterrupted one. An interrupt raises KeyboardInterrupt; what is finished is kept.
    """
    keys = [(task.name, spec, run, k) for k in range(len(items))]
    # prompts of similar lengths share a batch: the least padding; multiple choice is asked item by item
    free = sorted((k for k in range(len(items)) if not _is_choice(items[k])), key=lambda k: len(items[k].prompt))
    groups = [(start, free[start : start + batch]) for start in range(0, len(free), batch)]
    groups += [(0, [k]) for k in range(len(items)) if _is_choice(items[k])]
    for start, group in groups:
        if any(records.get(keys[k]) is None for k in group):
            chosen = [items[k] for k in group]
            if _is_choice(chosen[0]):
                made = _choose(decoder, chosen[0], tokenizer)
            else:
                settings = {"max_new_tokens": task.max_new_tokens, "seed": seed + run * SEED_STEP + start, "stop": stop}
                made = _write(decoder, chosen, tokenizer, settings)
            for k, record in zip(group, made):
                if record["finish_reason"] != "interrupted":
                    records.add(dict(zip(("task", "strategy", "run", "item"), keys[k])) | record)
            if any(record["finish_reason"] == "interrupted" for record in made):
                raise KeyboardInterrupt
        if bar is not None:
            bar.update(len(group))
    return [records.get(key) for key in keys]


def _is_choice(item: Item) -> bool:
    return isinstance(item.gold, Choices)


def _repeats(items: list[Item], decoder: Decoder, runs: int) -> int:
    """How often a task is asked: sampled methods in every run; multiple choice never where only the draw differs."""
    if _is_choice(items[0]):
        plain = all(value == OPTIONS[name].default for name, value in decoder.draw.items())
        return int(plain and decoder.draft is None)
    return runs if decoder.sampled else 1


def _choose(decoder: Decoder, item: Item, tokenizer: Any) -> list[dict[str, Any]]:
    convention = decoder.numbers.get("choices", "textbook")
    scores = choice_scores(decoder.source, item.prompt, item.gold.texts, tokenizer=tokenizer, convention=convention)
    return [{"answer": scores, "finish_reason": "choice"}]


def _write(decoder: Decoder, items: list[Item], tokenizer: Any, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings["stop"]:  # stop strings need the text at every step
        prompts, settings = [item.prompt for item in items], settings | {"tokenizer": tokenizer}
    else:  # ids in, ids out: nobody reads along, so the text is made once at the end
        prompts = [tokenizer(item.prompt)["input_ids"] for item in items]
    records = []
    for made in decoder(prompts, trace=False, progress=False, **settings):
        text = tokenizer.decode(made.token_ids, skip_special_tokens=True) if made.text is None else made.text
        records.append({"answer": text, "token_ids": list(made.token_ids), "finish_reason": made.finish_reason})
    return records


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
