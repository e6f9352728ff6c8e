"""The tasks of the toy world: prompts that training never contained, and graders that know the answer.

A grade is a dict of `metric -> (numerator, denominator)`: a task's score is the ratio of the sums over its items, so
that shares of items and shares of n-grams are averaged, and bootstrapped, in the same way.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdlearn.metrics import ngram_counts
from cdlearn.toyworld import words, world


@dataclass(frozen=True)
class Item:
    """One prompt of a task, what its grader needs to know, and the group that the bootstrap draws as a whole."""

    prompt: str
    gold: Any
    group: str


@dataclass(frozen=True)
class Task:
    """How to draw a task's items, how to grade a continuation, and how long it may get."""

    name: str
    draw: Callable[[random.Random, int], list[Item]]
    grade: Callable[[Item, str], dict[str, tuple[float, float]]]
    max_new_tokens: int

    def items(self, n: int = 500, seed: int = 0) -> list[Item]:
        """`n` items (facts: those of the first `n` places); the same for the same seed."""
        if n < 1:
            raise ValueError(f"n is {n}; a task needs at least one item.")
        return self.draw(random.Random(f"{self.name}/{seed}"), n)


def _puzzles(rng: random.Random, n: int) -> list[Item]:
    drawn = [world.puzzle(rng, test=True) for _ in range(n)]
    return [Item(p.prompt, p, f"{k}") for k, p in enumerate(drawn)]


def _grade_puzzle(item: Item, text: str) -> dict[str, tuple[float, float]]:
    return {
        "right": (world.puzzle_answer(text) == item.gold.answer, 1),
        "lazy": ("I think" in text, 1),
        "steps right": (text.strip().startswith(item.gold.worked.strip()), 1),
    }


def _arithmetic(rng: random.Random, n: int) -> list[Item]:
    drawn = [world.arithmetic(rng, test=True) for _ in range(n)]
    return [Item(document.prompt, result, f"{k}") for k, (document, result) in enumerate(drawn)]


def _grade_arithmetic(item: Item, text: str) -> dict[str, tuple[float, float]]:
    said = re.search(r"So \w+ has (\d+)", text)
    return {"right": (said is not None and int(said[1]) == item.gold, 1)}


def _facts(rng: random.Random, n: int) -> list[Item]:
    """The first n of 40 places, each in all phrasings; about a third of the combinations is unseen."""
    return [
        Item(question.format(r="capital", x=place), (capital, largest, world.fact_held_out(place, k)), place)
        for place, capital, largest in words.FACTS[:n]
        for k, (question, _) in enumerate(words.PHRASINGS)
    ]


def _grade_fact(item: Item, text: str) -> dict[str, tuple[float, float]]:
    capital, largest, unseen = item.gold
    first = re.search(f"{re.escape(capital)}|{re.escape(largest)}", text)
    true, myth = (first is not None and first[0] == city for city in (capital, largest))
    return {"true": (true, 1), "true, unseen phrasing": (unseen and true, unseen), "myth": (myth, 1)}


def _stories(rng: random.Random, n: int) -> list[Item]:
    drawn = [world.draw_story(rng, test=True) for _ in range(n)]
    return [Item(world.story_intro(story, rng), story, f"{k}") for k, story in enumerate(drawn)]


def _grade_story(item: Item, text: str) -> dict[str, tuple[float, float]]:
    mentions = world.story_mentions(text, item.gold)
    every = [agrees for agreements in mentions.values() for agrees in agreements]
    distinct, total = ngram_counts(text, 2)
    grades = {
        "rep-2": (total - distinct, total),
        "consistent": (all(every), 1),  # a story that names nothing contradicts nothing
        "mentions right": (sum(every), len(every)),
        "named": (sum(any(agrees) for agrees in mentions.values()), len(mentions)),
        "ends": (text.rstrip().endswith("The end."), 1),
    }
    return grades | {f"{key} right": (sum(agrees), len(agrees)) for key, agrees in mentions.items()}


_ALL = (
    Task("puzzles", _puzzles, _grade_puzzle, 64),
    Task("arithmetic", _arithmetic, _grade_arithmetic, 32),
    Task("facts", _facts, _grade_fact, 20),
    Task("stories", _stories, _grade_story, 128),
)
TASKS = {task.name: task for task in _ALL}
