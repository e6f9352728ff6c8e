"""The one path from tasks to rows: asks each method, batch by batch, writes each answer down at once, and grades."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import GRADES, Choices, repetition
from cdlearn.evaluate.report import rows_of
from cdlearn.methods import OPTIONS, Decoder, Models, build, parse
from cdlearn.metrics import choice_scores
from cdlearn.toyworld.tasks import Item, Task

Tasks = dict[str, tuple[Task, list[Item]]]  # title -> a task and its items


def evaluate(tasks: Tasks, methods: dict[str, Sequence[str]], models: Models, **settings: Any) -> list[dict]:
    """The report's rows of every task, method and metric (see `report.rows_of`), task by task.

    tasks: as `read_questions` and `toy_tasks` return them. methods: title -> the methods that answer, spelled as in
    `cdlearn.methods`. settings: see `answers`. Multiple choice leaves out methods that differ from their source only in
    how they draw. Raises ValueError for a method that is unknown or lacks its model.
    """
    decoders = {spec: build(models, *parse(spec)) for specs in methods.values() for spec in specs}
    asked = {
        title: [spec for spec in methods[title] if not isinstance(items[0].gold, Choices) or _plain(decoders[spec])]
        for title, (_, items) in tasks.items()
    }
    rows = []
    # disable=None: a bar on a terminal only, and on stderr, so that redirected output stays clean
    total = sum(len(items) * len(asked[title]) for title, (_, items) in tasks.items())
    with tqdm(total=total, unit="text", disable=None) as bar:
        settings |= {"tokenizer": models.pair.tokenizer, "bar": bar}
        for title, (task, items) in tasks.items():
            graded = {}
            for spec in asked[title]:
                bar.set_description(f"{title}: {spec}")
                made = answers(task, items, spec, decoders[spec], **settings)
                graded[spec] = [_graded(task, item, record) for item, record in zip(items, made, strict=True)]
            rows += rows_of(title, items, graded)
    return rows


def answers(
    task: Task, items: list[Item], spec: str, decoder: Decoder, *, tokenizer: Any, records: Records, batch: int = 100,
    seed: int = 0, stop: list[str] | None = None, bar: tqdm | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The records of a task's items, in order: those that `records` holds, and the others asked for now.

    spec: the method's name in the records. stop: texts that end an answer. A record holds task, strategy and item, and
    as its "answer" the text, or for multiple choice the log-probability of every choice. Batches are the same whatever
    is there already, so that a resumed run gives the very answers of an uninterrupted one. An interrupt raises
    KeyboardInterrupt; what is finished is kept.
    """
    keys = [(task.name, spec, k) for k in range(len(items))]
    # prompts of similar lengths share a batch: the least padding; multiple choice is asked item by item
    order, choice = sorted(range(len(items)), key=lambda k: len(items[k].prompt)), isinstance(items[0].gold, Choices)
    size = 1 if choice else batch
    for start in range(0, len(items), size):
        group = order[start : start + size]
        if any(keys[k] not in records for k in group):
            asked = [items[k] for k in group]
            settings = {"max_new_tokens": task.max_new_tokens, "seed": seed + start, "stop": stop}
            made = _choose(decoder, asked[0], tokenizer) if choice else _write(decoder, asked, tokenizer, settings)
            for k, record in zip(group, made):
                if record["finish_reason"] != "interrupted":
                    records.add(dict(zip(("task", "strategy", "item"), keys[k])) | record)
            if any(record["finish_reason"] == "interrupted" for record in made):
                raise KeyboardInterrupt
        if bar is not None:
            bar.update(len(group))
    return [records[key] for key in keys]


def _graded(task: Task, item: Item, record: dict[str, Any]) -> dict[str, tuple[float, float]]:
    grades = task.grade(item, record["answer"])
    # graders see the text alone; a loop without spaces shows in the tokens only, and a limit cuts answers off
    tokens = repetition(record.get("token_ids", [])).items()
    if GRADES["contains"] in grades:
        grades["ended"] = (record.get("finish_reason") != "length", 1)
    return grades | {f"{name}, tokens": value for name, value in tokens if name in grades}


def _plain(decoder: Decoder) -> bool:
    """Whether a method is its source as it is: choices are scored, so that how tokens are drawn changes nothing."""
    return decoder.draft is None and all(value == OPTIONS[name].default for name, value in decoder.draw.items())


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
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    count = sum(weight.numel() for weight in model.parameters())
    return f"{type(model).__name__}, {count} parameters in {str(model.dtype)[6:]}, {digest.hexdigest()[:12]}"
