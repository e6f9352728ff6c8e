"""The checks of notebooks 07 to 12: the printed solution is right, and every wrong answer hears its own reason."""

import ast
import json
import linecache
import math
import re
from pathlib import Path

import pytest
import torch

from cdlearn.classroom.exercises import methods

FOLDER = Path(__file__).parent.parent / "notebooks"
NUMBERS = {"best_gamma": "07", "speed_up": "08", "repeats": "09", "fragile": "10", "sign_test": "11", "memory": "12"}


def cells(name: str) -> list[dict]:
    (path,) = FOLDER.glob(f"{NUMBERS[name]}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def made(name: str, source: str):
    """The function `name` of a cell, with a file of its own, as in a notebook."""
    file, names = f"<cell {hash(source)}>", {"math": math, "torch": torch}
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    for cell in cells("memory") if name == "memory" else []:
        if cell["cell_type"] == "code" and "def cache_bytes" in (text := "".join(cell["source"])):
            tree = ast.parse(text)
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            exec(compile(tree, "<notebook>", "exec"), names)
    exec(compile(source, file, "exec"), names)
    return names[name]


def said(name: str, source: str) -> str:
    return getattr(methods, f"check_{name}")(made(name, source))


def solutions(name: str) -> list[str]:
    texts = ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown"]
    (text,) = [text for text in texts if "<summary>Solution</summary>" in text]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_printed_solutions_are_right_and_the_stub_is_not_yet(name):
    assert solutions(name) and {said(name, source) for source in solutions(name)} == {"Right."}
    head = solutions(name)[0].splitlines()[0]
    assert said(name, f"{head}\n    return None") == (
        f"Not yet: {name} returns None. Fill it in, run its cell, then this one."
    )


GAMMA = "def best_gamma(a, c, v=1.0):\n    return max(range(21), key=lambda g: {})"
MADE = "sum(a**k for k in range(g + 1))"
GAMMAS = {
    "sum(a**k for k in range(g)) / (g * c + v) if g else 1": "token that follows",
    "sum(a**k for k in range(1, g + 1)) / (g * c + v) if g else 1": "token that follows",
    "sum(a**k for k in range(g)) / (g * c + v)": "token that follows",
    f"{MADE} / (g * c + v)": "Gamma 0 is plain",
    f"{MADE} / (g * c + 1) if g else 1": "Is v missing",
    f"{MADE} / v if g else 1": "Each costs c",
    "sum(0.7**k for k in range(g + 1)) / (g * c + v) if g else 1": "change with `a`",
    MADE: "Divide by the cost",
    f"{MADE} / (g * v + c) if g else 1": "the target's pass `v`",
    f"{MADE} / ((g + 1) * c + v) if g else 1": "not gamma + 1",
    "(1 - a ** (g + 1)) / (1 - a) / (g * c + v) if g else 1": "return max(range(21)",
    "3": "change with `a`",
    f"{MADE} / (g * c * v + 1) if g else 1": "Print your speed-up",
}
SPEED = "def speed_up(acceptance, gamma, cost):\n    a, g, c = acceptance, gamma, cost\n    return {}"
SPEEDS = {
    f"{MADE} / (1 + g * c)": "notebook 07's formula",
    f"{MADE} / (1 + (g + 1) * c)": "A plain token costs 1 + cost",
    f"{MADE} * (1 + c) / (1 + g * c)": "reads its last draft",
    f"({MADE} - 1) * (1 + c) / (1 + (g + 1) * c)": "token that follows",
    "sum(a**k for k in range(g)) * (1 + c) / (1 + (g + 1) * c)": "token that follows",
    "(1 + g * a) * (1 + c) / (1 + (g + 1) * c)": "powers of the rate",
    MADE: "what do they cost",
    f"(1 + (g + 1) * c) / {MADE} / (1 + c)": "Upside down",
    f"{MADE} * 1.3 / (1 + (g + 1) * 0.3)": "change with `cost`",
    "sum(0.7**k for k in range(g + 1)) * (1 + c) / (1 + (g + 1) * c)": "change with `acceptance`",
    "sum(a**k for k in range(5)) * (1 + c) / (1 + 5 * c)": "change with `gamma`",
    "(1 - a ** (g + 1)) / (1 - a) * (1 + c) / (1 + (g + 1) * c)": "Add up the powers instead of dividing",
    "'fast'": "Return a number",
    "torch.tensor([1.0, 2.0])": "Return a number",
    f"{MADE} / (1 + g * c) / 2": "Compute the tokens",
}
REPEATS = "def repeats(tokens, size):\n    n, tail = len(tokens), tokens[len(tokens) - size + 1 :]\n    {}"
FOUND = "{tokens[k + size - 1] for k in range(n - size + 1) if tokens[k : k + size - 1] == tail}"
REPEATED = {
    f"return set({FOUND.replace('{', '[').replace('}', ']')}[:1])": "stop at the first",
    f"return set({FOUND.replace('{', '[').replace('}', ']')}[-1:])": "only the last",
    FOUND.replace("{", "return {", 1).replace("size", "(size + 1)").replace("tail", "tokens[n - size :]"): "not size.",
    f"return {FOUND.replace('n - size + 1', 'n - size')}": "range ends early",
    f"return {FOUND.replace('n - size + 1', 'n - 2 * size + 2')}": "overlap",
    f"tail = tokens[-(size - 1) :]\n    return {FOUND}": "tokens[-0:]",
    "return {*tokens}": "Only what followed",
    f"size, tail = 3, tokens[-2:]\n    return {FOUND}": "change with `size`",
    "return {k + size - 1 for k in range(n - size + 1) if tokens[k : k + size - 1] == tail}": "what follows there",
    "return {tokens[k + size - 1] for k in range(n) if tokens[k : k + size - 1] == tail}": "IndexError",
    "return set()": "None is found",
    "return {3}": "change with `tokens`",
    "return {tuple(tail)} if tail else set()": "Return a set of token ids",
    "return {tokens[k + size - 1] for k in range(n - size + 1) if {*tokens[k : k + size - 1]} == {*tail}}": "order",
}
FRAGILE = "def fragile(trace, low, high):\n    {}"
PICKS = "trace.rescore(strength={}).token_ids"
APART = "return [k for k, (x, y) in enumerate(zip({}, {})) if x {} y]"
FLIPS = "return [k for k in range(len(trace)) if len(trace.flip_points(k).strength) > 1]"
FRAGILES = {
    APART.format(PICKS.format("low"), PICKS.format("high"), "=="): "the firm ones",
    APART.format("trace.token_ids", PICKS.format("high"), "!="): "not with the recorded",
    APART.format(PICKS.format("low"), "trace.token_ids", "!="): "not with the recorded",
    APART.format(PICKS.format(0), PICKS.format("high"), "!="): "`low` is not always 0",
    APART.format(PICKS.format("low"), PICKS.format(0.9), "!="): "change with `high`",
    FLIPS: "only between",
    "return [0, 1]": "change with `trace`",
    "return []": "None is found",
    APART.format(PICKS.format("low"), PICKS.format("high"), "!=") + "[:1]": "only the first",
    "return [x != y for x, y in zip(trace.token_ids, trace.token_ids)]": "Return a list of positions",
    "return trace.rescore(strength=low, depth=3)": "return trace.rescore(strength=low, depth=3)",
}
SIGN = (
    "def sign_test(a, b):\n    w, l = (sum(x == y + d for x, y in zip(a, b)) for d in (1, -1))\n    n = w + l\n    {}"
)
TAIL = "return w, l, min(1.0, {sides} * sum(math.comb(n, k) for k in range({upto} + 1)) / 2**n)"
SIGNS = {
    TAIL.format(sides=2, upto="max(w, l)"): "smaller of wins and losses",
    TAIL.format(sides=2, upto="max(w, l)").replace("1.0", "9"): "smaller of wins and losses",
    TAIL.format(sides=2, upto="w"): "smaller of wins and losses",
    TAIL.format(sides=2, upto="l"): "smaller of wins and losses",
    TAIL.format(sides=1, upto="min(w, l)"): "double the sum",
    TAIL.format(sides=2, upto="min(w, l)").replace("1.0", "99"): "at most 1",
    "n = len(a)\n    " + TAIL.format(sides=2, upto="min(w, l)"): "Ties are no coins",
    TAIL.format(sides=2, upto="min(w, l) - 1"): "last term",
    "return w, l, min(1.0, 2 * math.comb(n, min(w, l)) / 2**n)": "add up from 0",
    "w, l = l, w\n    " + TAIL.format(sides=2, upto="min(w, l)"): "a is right and b is wrong",
    TAIL.format(sides=2, upto="min(w, l)").replace("w, l, min(1.0", "sum(a), sum(b), min(1.0"): "only one is right",
    TAIL.format(sides=2, upto="min(w, l)").replace(" / 2**n", ""): "2 ** (w + l)",
    "return w, l": "Return three things",
    "return w, l, w / (n * 0)": "return w, l, w / (n * 0)",
    "return sum(a), 0, 0.5": "change with `b`",
    "return w, l, 0.5": "terms of your sum",
    "return 2, 0, 0.5": "change with `a`",
}
MEMORY = "def memory(expert, amateur, tokens=4096, batch=1, bytes_each=2):\n    {}"
LOOP = "return sum(m.num_parameters() * {w} + {c} for m in ({who})) / {unit}"
CACHE = "tokens * batch * cache_bytes(m.config, bytes_each)"


def need(w="bytes_each", c=CACHE, who="expert, amateur", unit="1e9"):
    return LOOP.format(w=w, c=c, who=who, unit=unit)


MEMORIES = {
    need(c="tokens * cache_bytes(m.config, bytes_each)"): "grows with the batch",
    need(w="bytes_each * batch"): "whatever the batch",
    need(w="2"): "for the weights, too",
    need(c="tokens * batch * cache_bytes(m.config)"): "for the cache, too",
    need(c=f"{CACHE} * bytes_each"): "counted the bytes already",
    need(c="0"): "caches are missing",
    need(w="0"): "weights are missing",
    need(unit="1"): "divide by 1e9",
    need(unit="2**30"): "not 2 ** 30",
    need(who="expert,"): "change with `amateur`",
    need(who="amateur,"): "change with `expert`",
    need(c=CACHE.replace("tokens", "4096")): "change with `tokens`",
    need(w="2", c=CACHE.replace(", bytes_each", "")): "change with `bytes_each`",
    need(c=f"{CACHE} * (m is expert)"): "amateur has a cache",
    need(w="bytes_each * (m is expert)"): "amateur has weights",
    need(w="3"): "four numbers",
    need(c="m.config.kv_width"): "AttributeError: ",
}
TABLES = {
    "best_gamma": (GAMMA, GAMMAS),
    "speed_up": (SPEED, SPEEDS),
    "repeats": (REPEATS, REPEATED),
    "fragile": (FRAGILE, FRAGILES),
    "sign_test": (SIGN, SIGNS),
    "memory": (MEMORY, MEMORIES),
}
ROWS = [(name, frame, body, word) for name, (frame, table) in TABLES.items() for body, word in table.items()]


@pytest.mark.parametrize(("name", "frame", "body", "word"), ROWS)
def test_a_wrong_answer_hears_its_reason(name, frame, body, word):
    assert word in said(name, frame.replace("{}", body))


def test_an_answer_of_another_kind_or_shape():
    assert "a draft length, not its speed-up" in said("best_gamma", "def best_gamma(a, c, v=1.0):\n    return 1.53")
    assert "TypeError" in said("best_gamma", "def best_gamma(a, c):\n    return 4")
    assert said("best_gamma", solutions("best_gamma")[0].replace("return max(", "return 1.0 * max(")) == "Right."
    assert "the function itself" in methods.check_best_gamma(None)
    assert (
        said("repeats", solutions("repeats")[0].replace("{tokens[at", "[tokens[at").replace("tail}", "tail]"))
        == "Right."
    )


def test_ranges_that_end_too_early():
    for range_, word in (("range(20)", "may be 20"), ("range(1, 21)", "may be 0")):
        assert word in said("best_gamma", solutions("best_gamma")[0].replace("range(21)", range_))
