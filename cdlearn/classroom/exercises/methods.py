"""Checks of the exercises of notebooks 07 to 12: a student's function in, one sentence out.

A wrong answer is explained by the mistake that gives the same answers in every case, else by an argument that makes no
difference: no reason is given that was not tried.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import cdlearn
from cdlearn.checks import short
from cdlearn.classroom.exercises.core import Wrong, called
from cdlearn.toyworld.tasks import TASKS

FOLLOWS = "Is the token that follows the drafts missing? A round gives 1 + a + ... + a ** gamma."
SMALLER = "Add up to the smaller of wins and losses."


def _judge(function, right, cases, asked, kind, mistakes, otherwise, names=()) -> str:
    """kind: an answer as something to compare; an error where it is not what is asked. mistakes: (reason, rule)."""
    shown = [", ".join(dict(names).get(id(x), short(x)) for x in case) for case in cases]
    mine, calls = [], [f"{getattr(function, '__name__', 'it')}({words})" for words in shown]
    for case, call in zip(cases, calls):
        try:
            answer = called(function, *([*x] if isinstance(x, list) else x for x in case))
        except Wrong as wrong:
            one = "ZeroDivisionError" in str(wrong) and case[0] == 1
            hint = " Add up the powers instead of dividing by 1 minus the rate." if one else ""
            return str(wrong) if str(wrong).startswith("Not yet") else f"{call}: {wrong}{hint}"
        try:
            mine.append(kind(answer))
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
            return f"{call} returns {short(answer)}. Return {asked}."
    expected = [kind(right(*case)) for case in cases]
    at = next((k for k, answer in enumerate(mine) if answer != expected[k]), None)
    if at is None:
        return "Right."
    reasons = [reason for reason, rule in mistakes if mine == [kind(rule(*case)) for case in cases]]
    for number, name in enumerate(inspect.signature(right).parameters):
        alike = [
            mine[j] == mine[k]
            for j, k in itertools.combinations(range(len(cases)), 2)
            if expected[j] != expected[k] and len(cases[j]) == len(cases[k]) > number
            if all((x is y or x == y) == (i != number) for i, (x, y) in enumerate(zip(cases[j], cases[k])))
        ]
        reasons += [f"What you return does not change with `{name}`."] * (bool(alike) and all(alike))
    return f"{calls[at]} is {expected[at]}, not {mine[at]}. {[*reasons, otherwise][0]}"


def _number(value, digits=6) -> float:
    return round(float(value + 0), digits)  # a text has no + 0


def _ints(value) -> list[int]:
    if True in [isinstance(x, bool) for x in value]:
        raise TypeError
    return [x.__index__() for x in value]


def _whole(value) -> int:
    return _ints([int(value) if value % 1 == 0 else value])[0]


def _powers(a, n) -> float:
    return sum(a**k for k in range(n))


def check_best_gamma(function: Callable) -> str:
    """Notebook 07: the draft length from 0 to 20 with the highest expected speed-up."""

    def speed(g, a, c, v):
        return _powers(a, g + 1) / (g * c + v) if g else 1.0

    def best(rule, low=0, high=20):
        return lambda a, c, v=1.0: max(range(low, high + 1), key=lambda g: rule(g, a, c, v))

    mistakes = [
        (FOLLOWS, best(lambda g, a, c, v: _powers(a, g) / (g * c + v) if g else 1.0)),
        (FOLLOWS, best(lambda g, a, c, v: a * _powers(a, g) / (g * c + v) if g else 1.0)),
        (FOLLOWS, best(lambda g, a, c, v: _powers(a, g) / (g * c + v))),
        ("Gamma 0 is plain decoding: its speed-up is 1.", best(lambda g, a, c, v: _powers(a, g + 1) / (g * c + v))),
        ("Is v missing? The pass over gamma + 1 columns costs v.", best(lambda g, a, c, v: speed(g, a, c, 1))),
        ("These are the most tokens per round. Divide by the cost.", best(lambda g, a, c, v: _powers(a, g + 1))),
        ("Do the drafts cost nothing? Each costs c.", best(lambda g, a, c, v: speed(g, a, 0, v))),
        ("A draft step costs `c`, the target's pass `v`.", best(lambda g, a, c, v: speed(g, a, v, c))),
        ("A round has gamma draft steps, not gamma + 1.", best(lambda g, a, c, v: speed(g, a, c, v + c))),
        ("Gamma may be 20.", best(speed, high=19)),
        ("Gamma may be 0.", best(speed, low=1)),
    ]
    cases = [(0.72, 0.15, 1.2), (0.9, 0.15, 1.2), (0.72, 0.03, 1.2), (0.72, 0.15, 2.5), (0.8, 0.05, 1.5)]
    cases += [(0.4, 0.25, 1.3), (0.1, 0.5, 1.2), (0.9, 0.3, 1.0), (1.0, 0.1, 1.2), (0.8, 0.1)]
    asked, otherwise = "a draft length, not its speed-up", "Print your speed-up for every gamma from 0 on."
    return _judge(function, best(speed), cases, asked, _whole, mistakes, otherwise)


def check_speed_up(function: Callable) -> str:
    """Notebook 08: how many times as fast speculative contrastive decoding is, by the formula with v = 1."""

    def right(acceptance, gamma, cost, made=lambda a, g: _powers(a, g + 1)):
        return made(acceptance, gamma) * (1 + cost) / (1 + (gamma + 1) * cost)

    two = "A plain token needs both models, and the amateur also reads its last draft."
    mistakes = [
        (f"That is notebook 07's formula. {two}", lambda a, g, c: _powers(a, g + 1) / (1 + g * c)),
        ("A plain token costs 1 + cost: both models run.", lambda a, g, c: right(a, g, c) / (1 + c)),
        ("The amateur also reads its last draft.", lambda a, g, c: _powers(a, g + 1) * (1 + c) / (1 + g * c)),
        (FOLLOWS, lambda a, g, c: right(a, g, c, _powers)),
        (FOLLOWS, lambda a, g, c: right(a, g, c, lambda a, g: a * _powers(a, g))),
        ("Take powers of the rate, not multiples.", lambda a, g, c: right(a, g, c, lambda a, g: 1 + g * a)),
        ("These are the tokens per round: what do they cost?", lambda a, g, c: _powers(a, g + 1)),
        ("Upside down: the plain cost comes first.", lambda *case: 1 / right(*case)),
    ]
    cases = [(0.7, 4, 0.3), (0.5, 4, 0.3), (0.7, 2, 0.3), (0.7, 4, 0.1), (0.0, 1, 0.0), (1.0, 4, 0.1)]
    otherwise = "Compute the tokens of a round, what that many plain tokens cost, and what the round costs."
    return _judge(function, right, cases, "a number", _number, mistakes, otherwise)


def check_repeats(function: Callable) -> str:
    """Notebook 09: the tokens that would complete an n-gram which the text already has."""

    def right(tokens, size, stop=0, same=list.__eq__):
        runs = [(tokens[at : at + size - 1], tokens[at + size - 1]) for at in range(len(tokens) - size + 1 - stop)]
        return [token for run, token in runs if same(run, tokens[len(tokens) - size + 1 :])]

    tail = "With size 1 the tail is empty, but tokens[-0:] is the whole list."
    mistakes = [
        ("One is missing: do you stop at the first match?", lambda t, n: right(t, n)[:1]),
        ("One is missing: do you keep only the last match?", lambda t, n: right(t, n)[-1:]),
        ("The tail is size - 1 tokens long, not size.", lambda t, n: right(t, n + 1)),
        ("The run before the last token counts, too: your range ends early.", lambda t, n: right(t, n, 1)),
        ("A run may overlap with the tail.", lambda t, n: right(t, n, n - 1)),
        (tail, lambda t, n: right(t, n) if n > 1 else []),
        ("The order counts.", lambda t, n: right(t, n, 0, lambda x, y: sorted(x) == sorted(y))),
        ("Only what followed a run equal to the tail is forbidden.", lambda t, n: t),
        ("None is found: compare every run of size - 1 tokens with the last size - 1.", lambda t, n: []),
    ]
    cases = [([1, 2, 3, 1, 2], n) for n in (3, 2, 4)] + [([2, 1, 3, 1, 2], 3), ([1, 2, 3, 1, 2, 4, 1, 2], 3)]
    cases += [([5, 5, 5], 2), ([4, 4], 2), ([7, 8], 1), ([1], 3)]
    otherwise = "Look for the last size - 1 tokens earlier in the list: what follows there?"
    return _judge(function, right, cases, "a set of token ids", lambda x: set(_ints(x)), mistakes, otherwise)


@functools.cache
def _traces() -> dict:
    """Three texts of the contrast, each with the spans of all its positions: a story, a puzzle, a capital."""
    pair = cdlearn.load_pair()
    source = cdlearn.Contrast(pair.expert, pair.amateur, strength=1 / 3)
    prompts = [TASKS["stories"].items(40)[3].prompt, TASKS["puzzles"].items(40)[0].prompt]
    prompts += ["Tell me the capital of Canada."]
    runs = cdlearn.generate(source, prompts, tokenizer=pair.tokenizer, max_new_tokens=20)
    return {run.trace: [run.trace.flip_points(k).strength for k in range(len(run.trace))] for run in runs}


def check_fragile(function: Callable) -> str:
    """Notebook 10: the positions where greedy's pick is not the same for every strength from low to high."""

    def right(trace, low, high):
        spans = enumerate(_traces()[trace])
        return [k for k, found in spans if not any(s.start <= low and high < s.stop for s in found)]

    def moved(trace, strength):
        return [k for k, token in enumerate(trace.rescore(strength=strength).token_ids) if token != trace.token_ids[k]]

    recorded = "Compare the picks at `low` and at `high`, not with the recorded token."
    mistakes = [
        ("These are the firm ones.", lambda t, low, high: sorted({*range(len(t))} - {*right(t, low, high)})),
        ("A flip counts only between `low` and `high`.", lambda t, low, high: right(t, 0, 1e9)),
        ("`low` is not always 0.", lambda t, low, high: right(t, 0, high)),
        (recorded, lambda t, low, high: moved(t, high)),
        (recorded, lambda t, low, high: moved(t, low)),
        ("This is only the first one.", lambda *case: right(*case)[:1]),
        ("None is found: one and the same span must hold both ends.", lambda *case: []),
    ]
    story, puzzle, capital = _traces()
    cases = [(story, 0, 0.9), (story, 0.2, 0.9), (story, 0.2, 0.5), (puzzle, 0.2, 0.9)]
    cases += [(capital, 0, 0.6), (capital, 0.6, 0.9)]
    otherwise = "Look at `flip_points` of a position that only one of the lists has."
    names = {id(trace): f"the {name}'s trace" for trace, name in zip(_traces(), ("story", "puzzle", "capital"))}
    return _judge(function, right, cases, "a list of positions", lambda x: sorted(_ints(x)), mistakes, otherwise, names)


def check_sign_test(function: Callable) -> str:
    """Notebook 11: the exact two-sided sign test of two lists of 0 or 1."""

    def right(a, b, upto=min, sides=2, most=1.0, ties=0, start=None):
        wins, losses = sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b))
        n, k = wins + losses + ties * (len(a) - wins - losses), upto(wins, losses)
        ways = sum(math.comb(n, i) for i in range(k if start else 0, k + 1))
        return wins, losses, min(most, sides * ways / 2**n)

    but = functools.partial
    mistakes = [
        (f"p is 1 whatever the counts. {SMALLER} Divide by 2 ** (w + l).", but(right, upto=max)),
        (SMALLER, but(right, upto=max, most=9)),
        (SMALLER, but(right, upto=lambda *counts: counts[0])),
        (SMALLER, but(right, upto=lambda *counts: counts[1])),
        ("Both directions count: double the sum.", but(right, sides=1)),
        ("A probability is at most 1: that is what the `min` is for.", but(right, most=9)),
        ("Ties are no coins: there are wins + losses.", but(right, ties=1)),
        ("The last term is missing: up to min(w, l), included.", but(right, upto=lambda *counts: min(counts) - 1)),
        ("Less even splits count, too: add up from 0.", but(right, start=1)),
        ("A win is an item where a is right and b is wrong.", lambda a, b: right(b, a)),
        ("Count where only one is right.", lambda a, b: (sum(a), sum(b), right(a, b)[2])),
    ]
    splits = [(0, 3, 4, 3), (2, 9, 3, 2), (5, 5, 3, 0), (8, 0, 1, 1), (0, 0, 2, 1)]  # wins, losses, both, neither
    cases = [([1] * w + [0] * m + [1] * b + [0] * n, [0] * w + [1] * m + [1] * b + [0] * n) for w, m, b, n in splits]
    cases += [([1, 1, k, 0, 1], [0, 1, m, m, 1]) for k, m in ((0, 1), (1, 1), (0, 0))]
    asked, kind = "three things: wins, losses and p", lambda x: (*_ints(x[:2]), _number(x[2], 4), *x[3:])
    return _judge(function, right, cases, asked, kind, mistakes, "Print the terms of your sum.")


@functools.cache
def _models() -> list:
    """Qwen2.5 with 3B, 1.5B and 0.5B parameters on the meta device: shapes, no memory."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    rest = {"vocab_size": 151936, "tie_word_embeddings": True, "num_key_value_heads": 2}
    sizes = [(2048, 36, 16, 11008), (1536, 28, 12, 8960), (896, 24, 14, 4864)]
    with torch.device("meta"):
        return [Qwen2ForCausalLM(Qwen2Config(**dict(zip(names, row)), **rest)) for row in sizes]


_size = functools.cache(lambda model: model.num_parameters())


def check_memory(function: Callable) -> str:
    """Notebook 12: gigabytes for the weights and the caches of two models."""

    def right(expert, amateur, tokens=4096, batch=1, bytes_each=2, w=(1, 1), c=(1, 1), wb=0, wx=1, cb=1, cx=1):
        total = 0
        for m, weights, caches in zip((expert, amateur), w, c):
            wide = m.config.num_hidden_layers * m.config.hidden_size // m.config.num_attention_heads
            total += weights * _size(m) * batch**wb * (bytes_each / 2) ** wx
            total += caches * wide * 2 * m.config.num_key_value_heads * tokens * batch**cb * (bytes_each / 2) ** cx
        return 2 * total / 1e9

    but = functools.partial
    mistakes = [
        ("The cache grows with the batch, too.", but(right, cb=0)),
        ("The weights are there once, whatever the batch.", but(right, wb=1)),
        ("The bytes per number count for the weights, too.", but(right, wx=0)),
        ("The bytes per number count for the cache, too.", but(right, cx=0)),
        ("`cache_bytes` has counted the bytes already.", but(right, cx=2, c=(2, 2))),
        ("The caches are missing.", but(right, c=(0, 0))),
        ("The amateur has a cache, too.", but(right, c=(1, 0))),
        ("The amateur has weights, too.", but(right, w=(1, 0))),
        ("The weights are missing.", but(right, w=(0, 0))),
        ("These are bytes: divide by 1e9.", lambda *case: 1e9 * right(*case)),
        ("A gigabyte is 1e9 bytes here, not 2 ** 30.", lambda *case: 1e9 / 2**30 * right(*case)),
    ]
    big, middle, small = _models()
    names = {id(big): "Qwen 3B", id(middle): "1.5B", id(small): "0.5B"}
    cases = [(big, small), (big, small, 4096, 1, 2), (middle, small, 4096, 1, 2), (big, middle, 4096, 1, 2)]
    cases += [(big, small, *rest) for rest in ((1024, 1, 2), (4096, 16, 2), (4096, 1, 4), (4096, 16, 4))]
    otherwise = "Add up four numbers: the weights and the cache of both models."
    return _judge(function, right, cases, "a number", lambda x: _number(x, 2), mistakes, otherwise, names)
