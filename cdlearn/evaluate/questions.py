"""Prompts files: JSON lines with a prompt, and with an answer, or with choices and the right one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlearn.checks import is_int
from cdlearn.metrics import ngram_counts
from cdlearn.toyworld.tasks import Item, Task

FORMAT = 'lines like {"prompt": "2 + 2 =", "answer": "4"} or {"prompt": ..., "choices": ["3", "4"], "answer": 1}'


@dataclass(frozen=True)
class Choices:
    """The texts to choose from, and which is right."""

    texts: tuple[str, ...]
    right: int


def read_questions(
    path: str | Path, *, n: int | None = None, max_new_tokens: int = 64, render: Callable[[str], str] = str
) -> dict[str, tuple[Task, list[Item]]]:
    """The tasks of a prompts file: name -> (task, items). Multiple choice and free text are two tasks.

    path: see `read_prompts`. "choices" is a list of two or more strings, and "answer" then the right one or its number
    from 0; without choices "answer" is a string or a list of accepted strings, or left out: then only repetition is
    measured. "group" (a string) names items that belong together: the bootstrap draws them as one. n: the first n
    lines only. render: what becomes of a prompt, a chat template for instance. Raises ValueError naming file, line and
    key; OSError for a file that cannot be read.
    """
    kinds: dict[str, list[Item]] = {"choices": [], "text": []}
    for number, value in read_prompts(path)[:n]:
        try:
            item = _item(value, number, render)
        except ValueError as error:
            raise ValueError(f"--prompts-file {path}, line {number}: {error}") from None
        kinds["choices" if isinstance(item.gold, Choices) else "text"].append(item)
    tasks = {}
    for kind, grade in (("choices", _grade_choice), ("text", _grade_text)):
        name = Path(path).stem + (f", {kind}" if all(kinds.values()) else "")
        if items := kinds[kind]:
            tasks[name] = (Task(name, lambda rng, n, items=items: items[:n], grade, max_new_tokens), items)
    return tasks


def read_prompts(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, {"prompt": text, ...}) of a UTF-8 file: .txt has one prompt a line, others a JSON value a line.

    A JSON value is an object with a "prompt", or a string. Raises ValueError naming file and line; OSError for a file
    that cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--prompts-file {path}: there is no such file. It holds {FORMAT}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = line if Path(path).suffix == ".txt" else json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"--prompts-file {path}, line {number}: not JSON ({error.msg})"
                raise ValueError(f"{problem}; write {FORMAT}, or call a file of plain lines .txt.") from None
            value = {"prompt": value} if isinstance(value, str) else value
            if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
                raise ValueError(f'--prompts-file {path}, line {number}: no text under "prompt"; write {FORMAT}.')
            prompts.append((number, value))
    if not prompts:
        raise ValueError(f"--prompts-file {path} holds no prompt: write {FORMAT}.")
    return prompts


def _item(value: dict[str, Any], number: int, render: Callable[[str], str]) -> Item:
    answer, choices, group = value.get("answer"), value.get("choices"), value.get("group", f"line {number}")
    if not isinstance(group, str):
        raise ValueError('"group" is not a text: name the group with a string.')
    if choices is not None:
        return Item(render(value["prompt"]), _choices(choices, answer), group)
    accepted = [] if answer is None else [answer] if isinstance(answer, str) else answer
    if not isinstance(accepted, list) or not all(isinstance(text, str) and text for text in accepted):
        raise ValueError('"answer" is not a text: give a string, a list of accepted strings, or leave it out.')
    return Item(render(value["prompt"]), tuple(accepted), group)


def _choices(choices: Any, answer: Any) -> Choices:
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError('"choices" must be a list of two or more texts.')
    right = choices.index(answer) if answer in choices else answer
    if not is_int(right) or not 0 <= right < len(choices):
        raise ValueError(f'"answer" must be one of the choices, or its number from 0 to {len(choices) - 1}.')
    return Choices(tuple(choices), right)


def _grade_choice(item: Item, scores: list[float]) -> dict[str, tuple[float, float]]:
    """scores: the summed log-probability of every choice. Of equal ones the first counts, as numpy's argmax has it."""
    gold = item.gold
    per_character = [score / len(text) for score, text in zip(scores, gold.texts)]
    best = max(scores)
    mass = [math.exp(score - best) for score in scores]
    return {
        "right": (scores.index(best) == gold.right, 1),
        "right, per character": (per_character.index(max(per_character)) == gold.right, 1),
        "share of the right one": (mass[gold.right] / sum(mass), 1),
    }


def _grade_text(item: Item, text: str) -> dict[str, tuple[float, float]]:
    """Without an answer only the repetition counts. An answer counts as whole words, in any case."""
    said, known = _plain(text), [_plain(answer) for answer in item.gold]
    contains = any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", said) for answer in known)
    asked = 1 if known else 0
    distinct, total = ngram_counts(text, 2)
    return {
        "contains the answer": (contains, asked),
        "is the answer": (said in known, asked),
        "rep-2": (total - distinct, total),
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")
