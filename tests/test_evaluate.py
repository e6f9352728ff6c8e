"""`cdlearn eval`: intervals, prompts files, run folders that survive a kill, the whole command."""

import csv
import functools
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
import torch
from conftest import character_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

import cdlearn
from cdlearn import methods
from cdlearn.cli.evaluate import main
from cdlearn.evaluate import answers as asking
from cdlearn.evaluate import questions, report
from cdlearn.evaluate import toyworld as toy
from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import Choices, read_prompts, read_questions
from cdlearn.toyworld.tasks import TASKS, Item, Task

LINES = [
    {"prompt": f"{who} had a {colour} {thing}.", "answer": [thing, "happy"]}
    for who, colour, thing in itertools.product(("Ada", "Ben", "Zoe"), ("red", "blue"), ("ball", "kite"))
]
ARGUMENTS = ["--methods", "greedy", "sample top_p=0.95", "contrastive beta=0.5", "--batch", "3"]


@pytest.fixture
def prompts(tmp_path):
    return write_lines(tmp_path / "stories.jsonl", LINES)


def decoder(spec, pair=None):
    return methods.build(methods.Models(pair or cdlearn.load_pair()), *methods.parse(spec))


def items_of(count):
    return [Item("", None, str(k)) for k in range(count)]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_bootstrap_measures_a_ratio_of_sums_and_repeats_itself():
    grades = [{"m": (1, 2)}, {"m": (0, 0)}, {"m": (3, 4)}]
    values = report.bootstrap(grades, ["a", "b", "c"], "m")
    assert values[0] == pytest.approx(100 * 4 / 6)
    assert np.array_equal(values, report.bootstrap(grades, ["a", "b", "c"], "m"), equal_nan=True)
    assert np.nanmin(values) >= 0 and np.nanmax(values) <= 75 + 1e-9


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    groups = [str(k) for k in range(200)]
    hits = 0
    for _ in range(100):
        draws = rng.random(200) < 0.3
        span = report.interval(report.bootstrap([{"m": (float(d), 1)} for d in draws], groups, "m"))
        hits += span["low"] <= 30 <= span["high"]
    assert hits >= 88


def test_groups_are_drawn_as_a_whole():
    """Six copies of one item tell no more than the item."""
    once = [{"m": (k % 2, 1)} for k in range(40)]
    single = report.interval(report.bootstrap(once, [f"{k:02}" for k in range(40)], "m"))
    copies = [grade for grade in once for _ in range(6)]
    grouped = report.interval(report.bootstrap(copies, [f"{k:02}" for k in range(40) for _ in range(6)], "m"))
    assert grouped == single


def test_differences_are_paired():
    items = items_of(50)
    base = [{"m": (k % 2, 1)} for k in range(50)]
    rows = report.rows_of("puzzles", items, {"greedy": base, "same": base})
    assert "minus_greedy" not in rows[0]
    assert rows[1]["minus_greedy"] == {"value": 0, "low": 0, "high": 0}


def test_a_metric_that_a_strategy_never_had_is_no_zero():
    """A text that names no animal has no share of right animals, and nothing can be compared to it."""
    items = items_of(4)
    silent = [{"animal right": (0, 0), "ends": (1, 1)}] * 4
    speaks = [{"animal right": (k, k), "ends": (1, 1)} for k in (0, 0, 1, 2)]
    rows = report.rows_of("stories", items, {"greedy": silent, "s": speaks})
    assert [(r["strategy"], r["metric"]) for r in rows] == [("greedy", "ends"), ("s", "animal right"), ("s", "ends")]
    assert rows[1]["value"] == rows[1]["low"] == 100 and rows[1]["items"] == 2 and "minus_greedy" not in rows[1]
    lines = [line.split()[-1] for line in report.table(rows).splitlines() if line.lstrip().startswith(("greedy", "s "))]
    assert lines == ["4", "4", "2"]


def test_every_metric_is_explained():
    graded = {
        metric for task in TASKS.values() for item in task.items(3)[:3] for metric in task.grade(item, "The end.")
    }
    assert {metric for metric in graded if not metric.endswith(" right") or metric == "steps right"} <= set(
        report.LEGEND
    )
    rows = [{"metric": "rep-2"}, {"metric": "named"}, {"metric": "rep-2"}, {"metric": "hero right"}]
    assert [line.split()[0] for line in report.legend(rows).splitlines()] == ["rep-2", "named"]


# prompts files


def test_a_prompts_file_becomes_two_tasks(tmp_path):
    lines = [
        {"prompt": "a", "answer": "b"},
        {"prompt": "c", "choices": ["x", "yy"], "answer": "yy", "group": "g", "id": 7},
        {"prompt": "d"},
        {"prompt": "e", "choices": ["x", "yy"], "answer": 0},
    ]
    path = write_lines(tmp_path / "quiz.jsonl", lines)
    tasks = read_questions(path, max_new_tokens=5, render=lambda prompt: f"<{prompt}>")
    assert list(tasks) == ["quiz, choices", "quiz, text"]
    choices, text = (items for _, items in tasks.values())
    assert choices == [Item("<c>", Choices(("x", "yy"), 1), "g"), Item("<e>", Choices(("x", "yy"), 0), "line 4")]
    known = [{"contains": ["b"], "exact": ["b"]}, {}]
    assert text == [Item("<a>", known[0], "line 1"), Item("<d>", known[1], "line 3")]
    assert tasks["quiz, text"][0].max_new_tokens == 5
    assert list(read_questions(path, n=1)) == ["quiz"]  # one kind, no suffix


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not JSON"),
        ('{"prompt": "a", "answer": ["\\ud800"]}', "not JSON .*surrogate"),
        ("3", 'no text under "prompt"'),
        ("null", 'no text under "prompt"'),
        ('["a"]', 'no text under "prompt"'),
        ('{"prompt": 3}', 'no text under "prompt"'),
        ('{"prompt": "a", "answer": 3}', '"answer" is not a text'),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "two or more texts"),
        ('{"prompt": "a", "choices": ["b", " "], "answer": 0}', "two or more texts"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "one of the choices, or its number from 0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "one of the choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "one of the choices"),
        ('{"prompt": "a", "group": 3}', '"group" is not a text'),
        ('{"prompt": "a", "answer": []}', '"answer" is not a text'),
        ('{"prompt": "a", "answer": [null]}', '"answer" is not a text'),
        ('{"prompt": "a", "answer": "..."}', "\"answer\" '...' holds no letter"),
        ('{"prompt": "a", "answer": ["4", "。"]}', "'。'\\] holds no letter"),
        ('{"prompt": "a", "answer": "…", "grade": "exact"}', "holds no letter"),
        ('{"prompt": "a", "answer": "%"}', 'holds no letter, .* "grade": "exact"'),
        ('{"prompt": "a", "answer": "\\u200b\\u0301"}', "holds no letter"),
        ('{"prompt": "a", "answer": "b", "grade": "f1"}', "\"grade\" is 'f1': .* contains, exact, last number"),
        ('{"prompt": "a", "answer": "b", "grade": ["exact"]}', '"grade" is'),
        ('{"prompt": "a", "grade": "exact"}', '"grade" is'),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 1, "grade": "exact"}', '"grade" is'),
        ('{"prompt": "a", "answer": "b", "grade": "last number"}', "holds no number"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, says):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine\u2028"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"--prompts-file .*, line 2: .*{says}"):
        read_questions(path)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_files_that_hold_nothing_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match="--prompts-file"):
        read_prompts(path)
    for content, says in ((b"", "no prompt"), (b"\n \n", "no prompt"), (b'{"prompt": "\xe9"}', "is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--prompts-file .*{says}"):
            read_prompts(path)
    with pytest.raises(OSError, match="--prompts-file .*holds lines like"):
        read_prompts(tmp_path)


def test_lines_may_be_plain_texts(tmp_path):
    (tmp_path / "p.txt").write_text("Hi\n\n{Ho\n", encoding="utf-8-sig")
    assert read_prompts(tmp_path / "p.txt") == [(1, {"prompt": "Hi"}), (3, {"prompt": "{Ho"})]
    (tmp_path / "p.jsonl").write_text('"Hi\\nyou"\n{"prompt": "Ho", "id": 7}\n')
    assert read_prompts(tmp_path / "p.jsonl") == [(1, {"prompt": "Hi\nyou"}), (2, {"prompt": "Ho", "id": 7})]


def test_free_answers_are_graded_by_whole_words(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "", "answer": ["4", "New Delhi"]}, {"prompt": ""}])
    ((task, (item, free)),) = read_questions(path).values()
    grades = {text: task.grade(item, text) for text in ("It is 4.", "It is 14.", " 4. ", "new\ndelhi", "", "a b a b")}
    assert [g["contains the answer"] for g in grades.values()] == [(x, 1) for x in (1, 0, 1, 1, 0, 0)]
    assert [g["is the answer"] for g in grades.values()] == [(x, 1) for x in (0, 0, 1, 1, 0, 0)]
    assert grades["a b a b"]["rep-2"] == (1, 3) and grades[""]["rep-2"] == (0, 0)
    assert task.grade(free, "4")["contains the answer"] == (False, 0)


RIGHT = [
    ("答案是42个苹果。", "42"), ("法国的首都是巴黎。", "巴黎"), ("東京です", "東京"), ("서울은 크다", "서울"),
    ("เมืองหลวงคือกรุงเทพมหานคร", "กรุงเทพ"), ("คำตอบคือ๔๒", "42"), ("คำตอบคือ-4ครับ", "-4"), ("राजधानी दिल्ली है", "दिल्ली"),
    ("return x + 1;", "x + 1"), ("f(x)", "(x)"), ("a[-1]", "-1"), ("int n=１２;", "12"), ("E\u0301te\u0301.", "été"),
    ("10-4=6", "4"), ("1,2,3", "2"), ("1,234 people", "1234"), ("it is 4.0.", "4"), ("$48.00.", "48"), ("-$4", "-4"),
    ("so...4", "4"), ("−4", "-4"), ("COVID-19", "19"), ("It is 12.", "12"), ("3/4 of it", "3/4"), ("½ cup", "1/2"),
    ("+4", "4"), ("4", "+4.0"), ("٣٫٥ كيلو", "3.5"), ("١٬٢٠٠", "1200"), ("عاصمة فرنسا باريس.", "باريس"),
    ("Ｐａｒｉｓ", "paris"), ("STRASSE", "Straße"), ("H₂O", "h2o"), ("ﬁne", "FINE"), ("don’t", "don't"),
    ("दिल्ली।", "दिल्ली"), ("well‑known", "well-known"),
    ("ok 👍🏽!", "👍🏽"), ("❤️", "❤"), ("👨‍👩‍👧 ja", "👨‍👩‍👧"), ("a\0b", "ab"), ("3²", "3²"), ("\\frac{3}{4}", "3/4"),
]  # fmt: skip
WRONG = [
    ("It is 12.5", "12"), ("-4", "4"), ("10-4=6", "-4"), ("the 4th", "4"), ("x2", "2"), ("v1.2.3", "3"), ("1e5", "1"),
    ("2.4 apples", "4 apples"), ("1,234", "234"), ("foo_bar", "foo"), ("cathedral", "cat"), ("दिल्ली", "दिल"), ("", "a"),
    ("3/4", "3"), ("3/4", "4"), ("3/4", "0.75"), ("1/2/2024", "2"), ("1.2.3", "1.2"), ("12.34.56", "12.3"),
    ("3²", "3"), ("3²", "32"), ("10⁻³", "10"), ("3½", "3"), ("½", "2"), ("１２．５", "12"), ("答案是-4", "4"),
    ("👍🏽", "👍"), ("👨‍👩‍👧", "👨"), ("می‌خواهم", "می"), ("e\u0301te\u0301", "ete"), ("Ａ１", "1"), ("١٢٫٥", "12"),
    ("+12.5", "+12"),
]  # fmt: skip


@pytest.mark.parametrize("text, answer, right", [(*r, True) for r in RIGHT] + [(*w, False) for w in WRONG])
def test_answers_are_found_in_any_script_and_numbers_as_numbers(tmp_path, text, answer, right):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "", "answer": answer, "grade": "contains"}])
    ((task, (item,)),) = read_questions(path).values()
    grade = task.grade(item, text)
    assert grade["contains the answer"] == (right, 1) and grade["is the answer"] == (0, 0) == grade["last number"]


@pytest.mark.parametrize(
    "text, answer, right",
    [
        ("18 * 3 = 54, so $1,200.", "1200", 1), ("so **42**", "42.0", 1), ("#### 48\n", "a + b\n#### 48", 1),
        ("about 12km.", "12", 1),
        ("答案：1,000元。", "1000", 1), ("คำตอบคือ ๔๒ ครับ", "42", 1), ("x = -3;", "-3", 1), ("\\boxed{7}", "7", 1),
        ("so \\frac{3}{4}", "3/4", 1), ("3/4", "4", 0), ("x = 2²", "2", 0), ("so １，２００．", "1200", 1),
        ("٣٫٥", "3.5", 1),
        ("48, not 47", "48", 0), ("x = -3;", "3", 0), ("four", "4", 0), ("", "4", 0), ("1" * 6000, "1", 0),
    ],
)  # fmt: skip
def test_the_last_number_counts(tmp_path, text, answer, right):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "", "answer": answer}, {"prompt": "", "answer": answer}])
    ((task, items),) = read_questions(path, grade="last number").values()
    grade = task.grade(items[0], text)
    assert grade["last number"] == (right, 1) and grade["contains the answer"] == (0, 0)


@pytest.mark.parametrize("answer", ["%", "()", "é", "straße", "Ｙ", "👍🏽", "３/４", "서울", "x += 1", "ไทย"])
def test_a_text_is_its_own_answer_however_it_is_written(tmp_path, answer):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "", "answer": answer, "grade": "exact"}])
    ((task, (item,)),) = read_questions(path).values()
    for form, change in itertools.product(("NFC", "NFD", "NFKC", "NFKD"), (str.upper, str.casefold, str)):
        assert task.grade(item, f" {unicodedata.normalize(form, change(answer))}.\n")["is the answer"] == (True, 1)
    assert task.grade(item, answer + answer)["is the answer"] == (False, 1)


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_a_text_holds_itself_and_composing_changes_nothing(text):
    said = questions._plain(text)
    assert said == questions._plain(unicodedata.normalize("NFD", text)) == questions._plain(f"\t{text} . ")
    assert not said or questions._holds(said, said) or unicodedata.category(said[0])[0] == "M"


def test_a_file_may_hold_several_grades_and_any_character(tmp_path):
    path = tmp_path / "p.jsonl"  # line separators of Unicode are text inside a JSON string
    lines = ['{"prompt": "a\u2028b\x85c\u2029", "answer": "Yes", "grade": "exact"}', '{"prompt": "", "answer": "4"}']
    path.write_bytes("".join(["\ufeff", *(f"{line}\r\n" for line in lines)]).encode())
    ((task, items),) = read_questions(path).values()
    assert items[0].prompt == "a\u2028b\x85c\u2029" and [item.group for item in items] == ["line 1", "line 2"]
    grades = [
        {name: asked for name, (_, asked) in task.grade(item, "yes.").items() if asked and "answer" in name}
        for item in items
    ]
    assert grades == [{"is the answer": 1}, {"contains the answer": 1, "is the answer": 1}]
    assert task.grade(items[0], "yes.")["is the answer"] == (1, 1)


def test_choices_are_graded_by_the_best_sum(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "", "choices": ["ab", "abcdefgh"], "answer": 1}])
    ((task, (item,)),) = read_questions(path).values()
    grade = task.grade(item, [-4.0, -8.0])
    assert grade["right"] == (False, 1) and grade["right, per character"] == (True, 1)  # -2 against -1 a character
    assert grade["share of the right one"][0] == pytest.approx(math.exp(-8) / (math.exp(-4) + math.exp(-8)))
    assert task.grade(item, [-2000.0, -1000.0])["share of the right one"][0] == pytest.approx(1)
    assert task.grade(item, [-1.0, -1.0])["right"] == (False, 1)  # of equal ones the first


# answers


def choices_task(count=1):
    texts = tuple("".join(pair) for pair in itertools.product("abc", repeat=2))
    items = [Item("Who?"[: 4 - k], Choices(texts, 4), str(k)) for k in range(count)]
    return Task("quiz", None, None, 0), items


@pytest.mark.parametrize("spec", ["contrastive", "contrastive strength=1 alpha=0.01", "dola alpha=0.3"])
def test_multiple_choice_is_exact_enumeration(spec):
    """All texts of two letters: each sum is what a decoder meets that is led along the text, token by token."""
    tokenizer = character_tokenizer()
    models = [tiny_model("llama", seed=seed, num_hidden_layers=4) for seed in (1, 2)]
    method = decoder(spec, cdlearn.Pair(*models, tokenizer, 97))
    task, (item,) = choices_task()
    record = asking.answers(task, [item], spec, method, tokenizer=tokenizer, records=Records())[0]
    ids = tokenizer("Who?").input_ids
    for text, value in zip(item.gold.texts, record["answer"]):
        total, seen = 0.0, list(ids)
        for token in tokenizer(" " + text).input_ids:  # step by step, as a decoder walks
            probs = cdlearn.scores.sampling_probs(method.source(torch.tensor([seen]))[0, -1])
            total += math.log(probs[token]) if probs[token] > 0 else -1000.0
            seen.append(token)
        assert value == pytest.approx(total, abs=1e-3)
    assert len(set(record["answer"])) > 2  # all nine would tie at -inf where each holds a masked token


def test_choices_reference_changes_the_normalisation_only():
    tokenizer, (task, items) = character_tokenizer(), choices_task()
    pair = cdlearn.Pair(tiny_model("llama", seed=1), tiny_model("llama", seed=2), tokenizer, 97)
    plain, official = (
        asking.answers(task, items, spec, decoder(spec, pair), tokenizer=tokenizer, records=Records())[0]["answer"]
        for spec in ("contrastive", "contrastive choices=reference")
    )
    for a, b in zip(plain, official):
        assert round(a / 1000) == round(b / 1000)  # the same tokens are masked
        assert b <= a + 1e-6  # over more tokens, every kept one gets less


def test_multiple_choice_is_asked_of_every_source_once(tmp_path):
    """`sample` would choose as `greedy` does."""
    path = write_lines(tmp_path / "quiz.jsonl", [{"prompt": "Ada had a", "choices": ["red", "dog"], "answer": 0}])
    specs = ["greedy", "sample", "contrastive", "contrastive temperature=1", "speculative"]
    tasks = read_questions(path)
    models, records = methods.Models(cdlearn.load_pair()), Records()
    rows = asking.evaluate(tasks, {"quiz": specs}, models, records=records)
    assert {row["strategy"] for row in rows} == {"greedy", "contrastive"} and len(records) == 2


def test_answers_are_found_again_and_batches_stay_as_they_are(monkeypatch):
    pair = cdlearn.load_pair()
    task, items = TASKS["facts"], TASKS["facts"].items(2)[:7]
    settings = {"tokenizer": pair.tokenizer, "batch": 3, "seed": 5}
    ask = functools.partial(asking.answers, task, items, "s", decoder("sample", pair), **settings)
    whole = Records()
    expected = ask(records=whole)
    assert [r["answer"] for r in ask(records=Records(), seed=6)] != [r["answer"] for r in expected]
    part = Records()
    for record in expected[:2] + expected[5:]:
        part.add(record)
    calls = []
    generate = methods.generate
    monkeypatch.setattr(methods, "generate", lambda *a, **k: calls.append(len(a[1])) or generate(*a, **k))
    assert ask(records=part) == expected
    assert calls and sum(calls) < 7 + 1 and len(part) == 7
    # row r of a batch draws with seed + r: every text can be had alone
    fifth = sorted(range(7), key=lambda k: len(items[k].prompt))[4]
    draw = {"max_new_tokens": 20, "seed": 5 + 4, "temperature": 1.0}
    alone = cdlearn.generate(pair.expert, items[fifth].prompt, tokenizer=pair.tokenizer, **draw)
    assert alone.token_ids == expected[fifth]["token_ids"]


def test_an_interrupt_keeps_what_is_finished_and_nothing_else(monkeypatch):
    pair, generate, records = cdlearn.load_pair(), methods.generate, Records()

    def interrupted(*args, **options):
        made = generate(*args, **options)
        made[0].finish_reason = "interrupted"
        return made

    monkeypatch.setattr(methods, "generate", interrupted)
    settings = {"tokenizer": pair.tokenizer, "records": records, "batch": 2}
    with pytest.raises(KeyboardInterrupt):
        asking.answers(TASKS["facts"], TASKS["facts"].items(1)[:4], "s", decoder("greedy", pair), **settings)
    assert len(records) == 1


# the run folder


def record(item, answer="x"):
    return {"task": "t", "strategy": "s", "item": item, "answer": answer, "token_ids": [5]}


def test_a_folder_remembers_and_every_answer_is_on_disk_at_once(tmp_path):
    with Records(tmp_path / "deep" / "run", {"n": 3}) as folder:
        folder.add(record(0, "ä\n\ud800"))
        path = tmp_path / "deep" / "run" / "answers.jsonl"
        assert json.loads(path.read_text(encoding="utf-8"))["answer"][:2] == "ä\n"  # before anything is closed
        folder.add(record(0, "another"))  # known already
        folder.add(record(1))
    with Records(tmp_path / "deep" / "run", {"n": 3}) as folder:
        assert len(folder) == 2 and folder["t", "s", 1] == record(1)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("torn", ['{"task": "t", "strat', '{"task"', "\ufffd", json.dumps(record(2))])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    with Records(tmp_path, {}) as folder:
        folder.add(record(0))
        folder.add(record(1))
    path = tmp_path / "answers.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + torn.encode())
    with Records(tmp_path, {}) as folder:
        assert len(folder) == 2 and path.read_bytes() == good
        folder.add(record(2, "again"))
    with Records(tmp_path, {}) as folder:
        assert folder["t", "s", 2]["answer"] == "again"


ODD = [
    "{half",
    "[]",
    "{}",
    "null",
    "[" * 100_000,
    "\0" * 9,
    "\ufffd",
    '{"task": "t"}',
    json.dumps(record(0))[:9] + "{}",
]
ODD += [
    json.dumps(record(0) | change)
    for change in (
        {"task": ["t"]}, {"task": 3}, {"strategy": None}, {"item": False}, {"item": 0.0}, {"item": "0"}, {"answer": 3},
        {"answer": None}, {"answer": ["a"]}, {"answer": {"a": 1}}, {"token_ids": None}, {"token_ids": ["5"]},
        {"token_ids": [5.0]}, {"token_ids": 5},
    )
]  # fmt: skip
ODD += [json.dumps({key: value for key, value in record(0).items() if key != left}) for left in record(0)]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_counts_for_nothing_and_stays(tmp_path, odd):
    with Records(tmp_path, {}) as folder:
        folder.add(record(1))
    path = tmp_path / "answers.jsonl"
    path.write_bytes(odd.encode() + b"\n" + path.read_bytes())
    with Records(tmp_path, {}) as folder:
        assert dict(folder) == {("t", "s", 1): record(1)} and folder.odd == [1]
        folder.add(record(0))
    with Records(tmp_path, {}) as folder:
        assert len(folder) == 2 and folder.odd == [1] and path.read_bytes().startswith(odd.encode())


def test_other_settings_are_refused_in_one_sentence(tmp_path):
    Records(tmp_path, {"n": 5}).__exit__()  # nothing depends on them yet
    with Records(tmp_path, {"n": 3, "stop": None}) as folder:
        folder.add(record(0))
    with pytest.raises(ValueError, match=r"was begun with n = 3, and this run has 4: give the same settings, or ano"):
        Records(tmp_path, {"n": 4, "stop": None})
    with pytest.raises(ValueError, match="was begun with stop = None, and this run has"):
        Records(tmp_path, {"n": 3, "stop": ["Q:"]})
    Records(tmp_path, {"n": 3, "stop": None}).__exit__()
    for broken in ("", "{", "3", '"ab"', None):  # whose answers these are, nobody knows
        path = tmp_path / "settings.json"
        path.unlink() if broken is None else path.write_text(broken)
        with pytest.raises(ValueError, match="--out .* holds no settings.json"):
            Records(tmp_path, {"n": 3, "stop": None})


def test_what_cannot_be_written_is_named_by_its_flag(prompts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    ask = ["--prompts-file", prompts, "--methods", "greedy"]
    monkeypatch.setattr(methods, "generate", lambda *a, **k: pytest.fail("asked before it was checked"))
    for flag, path in itertools.product(("--out", "--json"), (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y")):
        with pytest.raises(OSError, match=f"{flag} .*; give a"):
            main([*ask, flag, str(path)])
    with pytest.raises(OSError, match="--json .*; give a file"):
        main([*ask, "--json", str(tmp_path)])
    with pytest.raises(OSError, match="--out .*; give a folder"):
        main([*ask, "--out", str(tmp_path / "file")])


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_writers_do_not_share_a_folder(tmp_path):
    with Records(tmp_path, {}):
        with pytest.raises(ValueError, match="in use by another process"):
            Records(tmp_path, {})
    Records(tmp_path, {}).__exit__()


def test_a_fingerprint_knows_other_weights():
    model = tiny_model("llama", seed=1)
    assert asking.fingerprint(model) == asking.fingerprint(tiny_model("llama", seed=1))
    assert asking.fingerprint(model) != asking.fingerprint(tiny_model("llama", seed=2))
    assert asking.fingerprint(None) is None


# killed


KILLED = """
import os, signal, sys
from cdlearn import methods
generate, calls = methods.generate, 0

def killed(*args, **options):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return generate(*args, **options)

methods.generate = killed
from cdlearn.cli.evaluate import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder and the arguments of a run that nobody disturbed."""
    home = tmp_path_factory.mktemp("whole")
    path = write_lines(home / "stories.jsonl", LINES)
    arguments = ["--prompts-file", path, "--max-new-tokens", "16", *ARGUMENTS]
    assert main([*arguments, "--out", str(home / "out")]) == 0
    return home / "out", arguments


@pytest.mark.slow
def test_kill_9_in_the_fourth_batch_loses_the_fourth_batch_and_nothing_else(uninterrupted, tmp_path, monkeypatch):
    whole, arguments = uninterrupted
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments, "--out", str(tmp_path)], capture_output=True)
    assert done.returncode in (-signal.SIGTERM, -getattr(signal, "SIGKILL", 9), signal.SIGTERM), done.stderr
    kept = (tmp_path / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") == 3 * 3 and kept.endswith(b"\n")  # three batches of three
    assert not (tmp_path / "results.csv").exists()
    asked, generate = [], methods.generate
    monkeypatch.setattr(methods, "generate", lambda *a, **k: asked.append(len(a[1])) or generate(*a, **k))
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert sum(asked) == 12 * 3 - 9  # what was there is not asked again
    for name in ("answers.jsonl", "results.csv", "settings.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_kill_9_from_outside_at_any_moment(uninterrupted, tmp_path):
    """As `kill -9 PID` in a terminal, twice, and with the torn line that a full disk or a power cut may leave."""
    whole, arguments = uninterrupted
    path, expected = tmp_path / "answers.jsonl", (whole / "answers.jsonl").read_bytes()
    command = [sys.executable, "-m", "cdlearn", "eval", *arguments, "--out", str(tmp_path)]
    before = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        limit = time.monotonic() + 120
        while (path.stat().st_size if path.exists() else 0) <= before and process.poll() is None:
            assert time.monotonic() < limit, "no answer in two minutes"
            time.sleep(0.005)
        process.kill()
        error = process.communicate()[1].decode()
        assert process.returncode != 0, f"it finished before it could be killed: {error}"
        kept = path.read_bytes()
        assert len(kept) > before and expected.startswith(kept), error
        path.write_bytes(kept + b'{"task": "stories", "strat')
        before = len(kept) + 26
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == expected
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


# the command


def test_command_prints_the_table_and_writes_the_rows(tmp_path, capsys):
    file = tmp_path / "deep" / "rows.json"
    assert main(["--tasks", "puzzles", "facts", "-n", "2", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    for task in ("puzzles", "puzzles, every setting", "facts", "drafting"):
        assert f"\n{task}: " in f"\n{out}"
    names = {task: {r["strategy"] for r in rows if r["task"] == task and "low" in r} for task in ("puzzles", "facts")}
    assert names["puzzles"] == {*toy.USUAL, "early beta=0.5"} and names["facts"] == names["puzzles"] | {*toy.ALSO}
    right = [r for r in rows if r["metric"] == "right"]
    assert all(r["low"] <= r["value"] <= r["high"] and r["items"] == 2 for r in right)
    grid = [r for r in rows if r["task"] == "puzzles, every setting"]
    assert [r["strategy"] for r in grid] == ["greedy", *toy.GRID] and grid[0]["value"] == right[0]["value"]
    assert {r["items"] for r in rows if (r["task"], r["metric"]) == ("facts", "true")} == {12}  # 2 places


def test_a_method_added_to_the_registry_is_found(prompts, monkeypatch, capsys):
    class Doubled(cdlearn.CachedLM):
        def scores(self, ids, mask, n):
            return 2 * super().scores(ids, mask, n)

    made = methods.Method("twice as sure", lambda models, numbers: Doubled(models.pair.expert), methods.DRAW)
    monkeypatch.setitem(methods.METHODS, "mine", made)
    assert main(["--prompts-file", prompts, "-n", "2", "--methods", "mine", "mine temperature=0.5", "greedy"]) == 0
    out = capsys.readouterr().out
    block = next(part for part in out.split("\n\n") if part.splitlines()[0].endswith(": contains the answer"))
    assert [line.split()[0] for line in block.splitlines()[2:]] == ["mine", "mine", "greedy"]
    assert block.splitlines()[2].split()[-4:] == ["+0.0", "[+0.0,", "+0.0]", "2"]


def test_results_are_tidy(uninterrupted):
    rows = list(csv.DictReader((uninterrupted[0] / "results.csv").open(encoding="utf-8")))
    names = ["greedy", "sample top_p=0.95", "contrastive beta=0.5"]
    metrics = ["contains the answer", "is the answer", "rep-2", "diversity", "ended"]
    metrics += ["rep-2, tokens", "diversity, tokens"]
    assert [(r["strategy"], r["metric"]) for r in rows] == list(itertools.product(names, metrics))
    assert {r["task"] for r in rows} == {"stories"} and {r["items"] for r in rows} == {"12"}
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows)
    assert all(float(r["minus_greedy_low"]) <= float(r["minus_greedy"]) for r in rows[7:])


def test_a_folder_grows_by_methods_and_refuses_other_items(prompts, tmp_path):
    out = ["--max-new-tokens", "6", "--batch", "9", "--out", str(tmp_path / "run")]
    assert main(["--prompts-file", prompts, *out, "--methods", "amateur"]) == 0
    assert main(["--prompts-file", prompts, *out, "--methods", "amateur", "sample top_p=0.9"]) == 0
    lines = (tmp_path / "run" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12 * 2
    changed = write_lines(tmp_path / "stories2.jsonl", LINES[::-1])
    with pytest.raises(ValueError, match="was begun with prompts"):
        main(["--prompts-file", changed, *out, "--methods", "amateur"])
    with pytest.raises(ValueError, match="was begun with seed = 0, and this run has 1"):
        main(["--prompts-file", prompts, *out, "--methods", "amateur", "--seed", "1"])


def test_numbers_from_flags_are_part_of_the_methods_name(prompts, tmp_path, capsys):
    flags = ["--prompts-file", prompts, "-n", "2", "--max-new-tokens", "4", "--repetition-penalty", "1.2"]
    assert main([*flags, "--methods", "greedy", "dola", "--layers", "2, 4", "--out", str(tmp_path)]) == 0
    kept = [json.loads(line)["strategy"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert set(kept) == {"greedy repetition_penalty=1.2", "dola layers=2,4 repetition_penalty=1.2"}


def test_loops_without_spaces_show_in_the_tokens(tmp_path):
    task = Task("t", None, lambda item, text: {"rep-2": (0, 0)}, 0)
    record = {"answer": "天天天天", "token_ids": [7, 7, 7, 7]}
    assert asking._graded(task, items_of(1)[0], record) == {"rep-2": (0, 0), "rep-2, tokens": (2, 3)}
    ((task, (item,)),) = read_questions(write_lines(tmp_path / "p.jsonl", ["Say it."])).values()
    made = asking._graded(task, item, record | {"answer": "BlueBlueBlueBlue"})  # one word: nothing is said of words
    assert made["rep-2"] == made["diversity"] == (0, 0)
    assert made["rep-2, tokens"] == (2, 3) and made["diversity, tokens"] == (pytest.approx(1 / 3 * 1 / 2), 1)
    assert asking._graded(task, item, record)["rep-2"] == (2, 3)  # four characters of a script without spaces
    for reason, ended in (("length", 0), ("eos", 1), ("stop", 1)):
        assert asking._graded(task, item, record | {"finish_reason": reason})["ended"] == (ended, 1)


def test_an_odd_line_does_not_change_a_resumed_run(uninterrupted, tmp_path, capsys):
    whole, arguments = uninterrupted
    shutil.copytree(whole, tmp_path / "out")
    lines = (whole / "answers.jsonl").read_bytes().splitlines(keepends=True)
    foreign = json.dumps(json.loads(lines[4]) | {"item": False, "answer": "ball happy"}).encode() + b"\n"
    (tmp_path / "out" / "answers.jsonl").write_bytes(
        b"".join([foreign, *lines[:4], lines[4][:20] + lines[5], *lines[6:]])
    )
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert re.search(f"--out {re.escape(str(tmp_path))}.*answers.jsonl.* 1, 6\\D", capsys.readouterr().err)
    assert (tmp_path / "out" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    kept = {tuple(sorted(map(str, json.loads(line).items()))) for line in lines}
    new = (tmp_path / "out" / "answers.jsonl").read_bytes().splitlines()[-2:]
    assert all(tuple(sorted(map(str, json.loads(line).items()))) in kept for line in new)  # the same two again


def test_a_folder_is_graded_again_with_another_grade(tmp_path, capsys, monkeypatch):
    path = write_lines(tmp_path / "q.jsonl", [{"prompt": "Ada had 3 balls.", "answer": "3"}])
    arguments = ["--prompts-file", path, "--max-new-tokens", "4", "--methods", "greedy", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0 and "contains the answer" in capsys.readouterr().out
    monkeypatch.setattr(methods, "generate", lambda *a, **k: pytest.fail("asked again"))
    assert main([*arguments, "--grade", "last number"]) == 0
    out = capsys.readouterr().out
    assert "last number" in out and "contains" not in out


def test_stop_strings_end_an_answer(prompts, tmp_path):
    arguments = ["--prompts-file", prompts, "--max-new-tokens", "12", "--methods", "greedy", "-n", "3"]
    assert main([*arguments, "--stop", ".", "--out", str(tmp_path / "o")]) == 0
    found = [json.loads(line) for line in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    assert len(found) == 3 and all("." not in one["answer"] for one in found)
    assert "stop" in {one["finish_reason"] for one in found}


def test_a_chat_template_is_put_around_the_prompts(prompts, tmp_path):
    arguments = ["--prompts-file", prompts, "--max-new-tokens", "4", "--methods", "greedy", "-n", "2"]
    plain, chat = tmp_path / "plain", tmp_path / "chat"
    assert main([*arguments, "--out", str(plain)]) == main([*arguments, "--chat-template", "--out", str(chat)]) == 0
    settings = [json.loads((folder / "settings.json").read_text())["prompts"] for folder in (plain, chat)]
    assert settings[0] != settings[1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-n", "0"], "at least 1"),
        (["--tasks", "riddles"], "riddles"),
        (["--tasks", "facts", "--prompts-file", "x"], "not allowed with"),
        (["--methods", "beam"], "'beam' is unknown"),
        (["--methods", "greedy alpha=0.1"], "changes nothing with greedy"),
        (["--max-new-tokens", "4"], "--max-new-tokens belongs to --prompts-file"),
        (["--stop", "x"], "--stop belongs to --prompts-file"),
        (["--prompts-file", "x", "--stop", ".", ""], "--stop"),
        (["--grade", "exact"], "--grade belongs to --prompts-file"),
        (["--prompts-file", "x", "--system-prompt", "y"], "add --chat-template"),
        (["--prompts-file", "x", "--no-grid"], "--no-grid changes nothing"),
        (["--beta", "1"], "--beta needs --methods"),
        (["--methods", "greedy", "--layers", "low"], "--layers low changes nothing with greedy"),
        (["--methods", "greedy", "--repetition-penalty", "0"], "more than 0"),
    ],
)
def test_command_refuses_bad_arguments(argv, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


# the toy world's table


def written(pair, items, count=8):
    """(prompt ids, new ids) of greedy texts."""
    made = [cdlearn.generate(pair.expert, i.prompt, tokenizer=pair.tokenizer, max_new_tokens=count) for i in items]
    return [(pair.tokenizer(item.prompt).input_ids, list(one.token_ids)) for item, one in zip(items, made)]


def test_overlap_of_a_model_with_itself_is_one():
    pair = cdlearn.load_pair()
    twin = cdlearn.Pair(pair.expert, pair.expert, pair.tokenizer, pair.vocab_size)
    texts = written(twin, TASKS["puzzles"].items(4))
    rows = {r["strategy"]: r["value"] for r in toy.drafting(twin, {"puzzles": texts})}
    assert rows["amateur"] == 100
    assert all(0 < value < 100 for draft, value in rows.items() if draft.startswith("exit"))
    assert toy.agreement(twin, "puzzles", texts, "greedy")["value"] == 100


def test_drafts_of_other_architectures_are_the_amateur_alone():
    models = tiny_model("gpt2", seed=1), tiny_model("gpt2", vocab_size=99, seed=2)
    pair = cdlearn.Pair(*models, character_tokenizer(), 97)
    rows = toy.drafting(pair, {"puzzles": written(pair, [Item("Who has it?", None, "0")])})
    assert {r["strategy"] for r in rows} == {"amateur"} and all(0 < r["value"] < 100 for r in rows)


def test_the_table_finds_its_answers_again(tmp_path, monkeypatch):
    def rows():
        with Records(tmp_path, {}) as records:
            settings = {"early": False, "grid": False, "records": records}
            return toy.table_rows({"arithmetic": (task, task.items(2))}, models, **settings)

    models, task = methods.Models(cdlearn.load_pair()), TASKS["arithmetic"]
    first = rows()
    monkeypatch.setattr(methods, "generate", lambda *a, **k: pytest.fail("asked again"))
    assert rows() == first
