"""Prompts files: JSON lines with a prompt, and with an answer, or with choices and the right one; and their graders."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from cdlearn.checks import is_int
from cdlearn.metrics import UNSPACED, Text, diversity, ngram_counts
from cdlearn.toyworld.tasks import Item, Task

FORMAT = 'lines like {"prompt": "2 + 2 =", "answer": "4"} or {"prompt": ..., "choices": ["3", "4"], "answer": 1}'
# how an answer is graded -> the metric; a line without "grade" is graded by the first two
GRADES = {"contains": "contains the answer", "exact": "is the answer", "last number": "last number"}

_JOINED = UNSPACED + "\uac00-\ud7af"  # no spaces between words, or endings joined to them (Hangul)
_SMALL = "[²³¹⁰-₎¼-¾⅐-⅟↉]"  # exponents, indices, fractions
# -$1,234.5 or .5 or 3/4, but not the 2 of x2, the 3 of 1.2.3 or of 3², the minus of 7-2 or of x-2
_DIGITS = r"(?>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)"
_BEFORE = rf"(?<![^\W{_JOINED}]|\d)(?<!\d[./])"  # no letter, no digit
_NUMBER = re.compile(rf"{_BEFORE}((?<![)\]])[-+])?[$€£¥]?({_DIGITS}(?:/{_DIGITS})*+)(?!\.\d|{_SMALL})")
# signs with a plain twin that NFKC leaves (minus, fraction slash, Arabic points, apostrophe), and what nobody sees
_TWINS = str.maketrans("−‐⁄٫٬’", "--/.,'", "\0\xad\u200b\ufe0e\ufe0f\ufeff")


@dataclass(frozen=True)
class Choices:
    """The texts to choose from, and which is right."""

    texts: tuple[str, ...]
    right: int


def read_questions(
    path: str | Path, *, n: int | None = None, max_new_tokens: int = 64, render: Callable[[str], str] = str,
    grade: str | None = None,
) -> dict[str, tuple[Task, list[Item]]]:  # fmt: skip
    """The tasks of a prompts file: name -> (task, items). Multiple choice and free text are two tasks.

    path: see `read_prompts`. "choices" is a list of two or more strings, and "answer" then the right one or its number
    from 0; without choices "answer" is a string or a list of accepted strings, or left out: then only repetition is
    measured. "grade" says when a text is right: "contains" the answer (as whole words, where its script has spaces),
    "exact" (it is the answer), or "last number" (its last number is the answer's). Case and variants of characters do
    not matter. Numbers are compared as numbers: 1,200.0 is 1200, 12.5 holds no 12, and 3/4 is neither 3 nor 0.75.
    "group" (a string) names items that belong together: the bootstrap draws them as one. n: the first n lines only.
    render: what becomes of a prompt, a chat template for instance. grade: of lines that do not say theirs (None:
    "contains" and "exact"). Raises ValueError naming file, line and key; OSError for a file that cannot be read.
    """
    kinds: dict[str, list[Item]] = {"choices": [], "text": []}
    for number, value in read_prompts(path)[:n]:
        try:
            item = _item(value, number, render, grade)
        except ValueError as error:
            raise ValueError(f"--prompts-file {path}, line {number}: {error}") from None
        kinds["choices" if isinstance(item.gold, Choices) else "text"].append(item)
    tasks = {}
    for kind, grader in (("choices", _grade_choice), ("text", _grade_text)):
        name = Path(path).stem + (f", {kind}" if all(kinds.values()) else "")
        if items := kinds[kind]:
            tasks[name] = (Task(name, lambda rng, n, items=items: items[:n], grader, max_new_tokens), items)
    return tasks


def read_prompts(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, {"prompt": text, ...}) of a UTF-8 file: .txt has one prompt a line, others a JSON value a line.

    A JSON value is an object with a "prompt", or a string. Raises ValueError naming file and line; OSError for a file
    that cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise type(error)(f"--prompts-file {path}: {error.strerror}; a prompts file holds {FORMAT}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = line if Path(path).suffix == ".txt" else json.loads(line)
                json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
            except (ValueError, RecursionError) as error:
                problem = f"--prompts-file {path}, line {number}: not JSON ({getattr(error, 'msg', error)})"
                raise ValueError(f"{problem}; write {FORMAT}, or call a file of plain lines .txt.") from None
            value = {"prompt": value} if isinstance(value, str) else value
            if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
                raise ValueError(f'--prompts-file {path}, line {number}: no text under "prompt"; write {FORMAT}.')
            prompts.append((number, value))
    if not prompts:
        raise ValueError(f"--prompts-file {path} holds no prompt: write {FORMAT}.")
    return prompts


def _item(value: dict[str, Any], number: int, render: Callable[[str], str], default: str | None) -> Item:
    answer, choices, group = value.get("answer"), value.get("choices"), value.get("group", f"line {number}")
    if not isinstance(group, str):
        raise ValueError('"group" is not a text: name the group with a string.')
    if "grade" in value and (value["grade"] not in list(GRADES) or answer is None or choices is not None):
        raise ValueError(f'"grade" is {value["grade"]!r}: beside a text\'s "answer" give one of {", ".join(GRADES)}.')
    if choices is not None:
        texts = isinstance(choices, list) and [text for text in choices if isinstance(text, str) and text.strip()]
        if not texts or len(choices) < 2 or len(texts) < len(choices):
            raise ValueError('"choices" must be a list of two or more texts.')
        right = choices.index(answer) if answer in choices else answer
        if not is_int(right) or not 0 <= right < len(choices):
            raise ValueError(f'"answer" must be one of the choices, or its number from 0 to {len(choices) - 1}.')
        return Item(render(value["prompt"]), Choices(tuple(choices), right), group)
    accepted = [] if answer is None else [answer] if isinstance(answer, str) else answer
    if answer == [] or not isinstance(accepted, list) or not all(isinstance(text, str) for text in accepted):
        raise ValueError('"answer" is not a text: give a string, a list of accepted strings, or leave it out.')
    grade, plain = value.get("grade", default), list(map(_plain, accepted))
    for text in plain:
        if not any(unicodedata.category(c)[0] in "LNS" for c in text) and not (text and grade == "exact"):
            advice = 'give a text with one, or for "%" and the like "grade": "exact"'
            raise ValueError(f'"answer" {answer!r} holds no letter, number or symbol: {advice}.')
    known = {name: plain for name in ([grade] if grade else ["contains", "exact"]) if plain}
    if not all(map(_numbers, known.get("last number", ()))):
        raise ValueError(f'"answer" {answer!r} holds no number for the grade "last number".')
    return Item(render(value["prompt"]), known, group)


def _grade_choice(item: Item, scores: list[float]) -> dict[str, tuple[float, float]]:
    """scores: the summed log-probability of every choice. Of equal ones the first counts, as numpy's argmax has it."""
    right, sums = item.gold.right, np.array(scores)
    mass = np.exp(sums - sums.max())
    return {
        "right": (sums.argmax() == right, 1),
        "right, per character": ((sums / [len(text) for text in item.gold.texts]).argmax() == right, 1),
        "share of the right one": (mass[right] / mass.sum(), 1),
    }


def _grade_text(item: Item, text: str) -> dict[str, tuple[float, float]]:
    """The item's gold: the accepted answers, as `_plain` writes them, of each of its grades. Repetition counts too."""
    said, known = _plain(text), {name: item.gold.get(name, ()) for name in GRADES}
    right = {
        "contains": any(_holds(said, answer) for answer in known["contains"]),
        "exact": said in known["exact"],
        "last number": _numbers(said)[-1:] in [_numbers(answer)[-1:] for answer in known["last number"]],
    }
    grades = {GRADES[name]: (is_right, name in item.gold) for name, is_right in right.items()}
    return grades | repetition(text)


def repetition(text: Text) -> dict[str, tuple[float, float]]:
    """rep-2 and diversity of a text's words or token ids; one without two of them has no diversity."""
    distinct, total = ngram_counts(text, 2)
    return {"rep-2": (total - distinct, total), "diversity": (diversity([text]) * bool(total), total > 0)}


def _plain(text: str) -> str:
    """Text to compare: without case, runs of white space, full stops around it; numbers between two NUL, as 1234.5.

    Of variants of one character one is left (NFKC), but an exponent or fraction after a digit stays: 3² is no 32.
    """
    text = re.sub(r"\\[dt]?frac{(.+?)}{(.+?)}", r"\1/\2", text)
    parts = re.split(f"((?<=\\d){_SMALL}+)", text)
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    text = _NUMBER.sub(_number, "".join(parts).translate(_TWINS).casefold())
    return " ".join(text.split()).strip(" .。।۔።")


def _number(found: re.Match) -> str:
    parts = [f"{Decimal(part.replace(',', '')):f}" for part in found[2].split("/")]
    value = "/".join(part.rstrip("0").rstrip(".") if "." in part else part for part in parts)
    return f"\0{'-' if found[1] == '-' and value != '0' else ''}{value}\0"


def _numbers(plain: str) -> list[str]:
    return re.findall("\0(.+?)\0", plain)


def _holds(said: str, answer: str) -> bool:
    """Whether a text holds an answer as whole words, both as `_plain` writes them."""
    starts = [found.start() for found in re.finditer(f"(?={re.escape(answer)})", said)]
    before = [said[max(start - 1, 0) : start + 1] for start in starts]
    after = [said[start + len(answer) - 1 :][:2] for start in starts]
    return any(_parts(left) and _parts(right) for left, right in zip(before, after))


def _parts(two: str) -> bool:
    """Whether a word may end between two characters; at the end of a text there is one."""
    # an accent or a skin tone belongs to the character before it, a joiner to both
    bound = unicodedata.category(two[-1])[0] == "M" or re.search("[\u200c\u200d]|[\U0001f3fb-\U0001f3ff]$", two)
    inside = [c in "_\0" or unicodedata.category(c)[0] in "LMN" and not re.match(f"[{_JOINED}]", c) for c in two]
    return len(two) < 2 or not (bound or all(inside))
