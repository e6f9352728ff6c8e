"""The checks of notebooks 00 to 06: the notebook's own solution passes, and a wrong answer is told its own reason."""

import ast
import contextlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import cdlearn
from cdlearn.classroom.exercises import decoding
from cdlearn.toyworld.tasks import TASKS

FOLDER = Path(__file__).parent.parent / "notebooks"
INF = -math.inf


def cells(number):
    path = next(FOLDER.glob(f"{number}_*.ipynb"))
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def solution(number, name):
    """What the Solution cell of a notebook defines, in a world of the notebook's own functions."""
    pair = decoding.pair()
    names = {"pair": pair, "expert": pair.expert, "tokenizer": pair.tokenizer, "TASKS": TASKS, "cdlearn": cdlearn}
    names["another"] = TASKS["puzzles"].items(40)[7]
    for cell in cells(number):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and cell["id"] != "setup":
            for node in ast.parse(source).body:
                if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
                    with contextlib.suppress(NameError):  # a default that is made in another cell
                        exec(compile(ast.Module([node], []), "notebook", "exec"), names)
        elif "<summary>Solution" in source:
            exec(re.search(r"```python\n(.*?)```", source, re.S)[1], names)
    return names[name]


CHECKS = {
    "00": ("my_strength", decoding.check_my_strength),
    "01": ("my_scores", decoding.check_my_scores),
    "02": ("score_endings", decoding.check_score_endings),
    "03": ("my_choice", decoding.check_my_choice),
    "04": ("two_numbers", decoding.check_two_numbers),
    "05": ("translate", decoding.check_translate),
    "06": ("dola_batch", decoding.check_dola_batch),
}


@pytest.mark.parametrize("number", CHECKS)
def test_the_notebooks_solution_passes_and_its_stub_is_not_yet(number, monkeypatch):
    name, check = CHECKS[number]
    monkeypatch.setattr("builtins.print", lambda *words: None)
    assert check(solution(number, name)).startswith("Right")
    stub = None if number == "00" else lambda *arguments, **options: None
    assert check(stub).startswith("Not yet")


@pytest.mark.parametrize(
    "strength, word",
    [(0.2, "Right"), (0.3 - 0.1, "Right"), (0, "more"), (0.1, "more"), (1.0, "less"), (3 * 0.1, "less")]
    + [(0.15, "steps"), (1.5, "steps"), (math.inf, "steps"), (True, "Not yet"), ("0.1", "Not yet"), ([0.1], "Not yet")],
)
def test_00_only_the_smallest_strength(strength, word):
    assert word in decoding.check_my_strength(strength)


MY_SCORES = """
def answer(expert_logits, amateur_logits, alpha=0.1, strength=1.0, tau=1.0):
    log_e = expert_logits.log_softmax(-1)
    log_a = (amateur_logits / tau).log_softmax(-1)
    keep = log_e >= log_e.max(-1, keepdim=True).values + math.log(alpha)
    return (log_e - strength * log_a).masked_fill(~keep, -math.inf)
"""
SCORE_ENDINGS = """
def answer(model, prompt, endings):
    cache = DynamicCache(config=model.config)
    last = model(input_ids=prompt, past_key_values=cache, use_cache=True).logits[:, -1:]
    scores = []
    for ending in endings:
        logits = model(input_ids=ending, past_key_values=cache, use_cache=True).logits
        log_p = torch.cat([last, logits[:, :-1]], dim=1).log_softmax(-1)
        scores.append(log_p.gather(-1, ending[..., None]).sum().item())
        cache.crop(-ending.shape[1])
    return scores
"""
MY_CHOICE = """
def answer(expert_logits, amateur_logits, alpha=0.1):
    e, a = expert_logits.float(), amateur_logits.float()
    threshold = e.max(-1, keepdim=True).values + math.log(alpha)
    return (e - a).masked_fill(e < threshold, -math.inf).argmax(-1)
"""
TWO_NUMBERS = """
def answer(strength, tau, expert_temperature):
    return strength * expert_temperature / tau, expert_temperature
"""
TRANSLATE = """
def answer(beta, temperature):
    return beta / (1 + beta), temperature / (1 + beta)
"""
DOLA_BATCH = """
def answer(final, early, alpha=0.1):
    chosen = jsd(final[:, None], early).argmax(-1)
    premature = early[torch.arange(len(early)), chosen]
    return dola_scores(final, premature, alpha=alpha), chosen
"""
ACCEPTED = [
    (MY_SCORES, "(amateur_logits / tau).log_softmax(-1)", "amateur_logits.log_softmax(-1) / tau"),
    (MY_SCORES, ".log_softmax(-1)", ""),  # a constant per row
    (SCORE_ENDINGS, "input_ids=prompt, ", "prompt, "),
    (SCORE_ENDINGS, "return scores", "return tuple(scores)"),
    (SCORE_ENDINGS, "input_ids=ending, ", "ending, "),
    (MY_CHOICE, ".float()", ".float().log_softmax(-1)"),
    (TWO_NUMBERS, "return strength", "return 1.0 * strength"),
]
WRONG = [
    (MY_SCORES, "strength * ", "", "strength is not used"),
    (MY_SCORES, "math.log(alpha)", "math.log(0.1)", "alpha is not used"),
    (MY_SCORES, " / tau", "", "tau is not used"),
    (MY_SCORES, "amateur_logits / tau", "expert_logits / tau", "inside"),
    (MY_SCORES, "/ tau", "* tau", "divide"),
    (MY_SCORES, "expert_logits.log", "(expert_logits / tau).log", "too"),
    (MY_SCORES, ".masked_fill(~keep, -math.inf)", "", "no mask"),
    (MY_SCORES, "math.log(alpha)", "math.log10(alpha)", "log10"),
    (MY_SCORES, "+ math.log(alpha)", "+ alpha", "No token passes"),
    (MY_SCORES, "+ math.log(alpha)", "- alpha", "alpha is subtracted"),
    (MY_SCORES, "+ math.log(alpha)", "- math.log(alpha)", "above the best"),
    (MY_SCORES, "+ math.log(alpha)", "* alpha", "above the best"),
    (MY_SCORES, "log_e.max(-1, keepdim=True).values + ", "", "not a probability"),
    (MY_SCORES, "keep = log_e >= log_e", "keep = log_a >= log_a", "amateur's"),
    (MY_SCORES, ".max(-1, keepdim=True).values", ".max()", "each row"),
    (MY_SCORES, ">=", ">", ">="),
    (MY_SCORES, "~keep", "keep", "wrong way"),
    (MY_SCORES, "-math.inf)", "0.0)", "-inf"),
    (MY_SCORES, "-math.inf)", "-1e9)", "-inf"),
    (MY_SCORES, "return (log_e - strength * log_a)", "return (log_e.exp() - strength * log_a.exp())", "Probabilities"),
    (MY_SCORES, ".log_softmax(-1)", ".softmax(-1)", "mask differs"),
    (MY_SCORES, "log_e - strength", "log_e + strength", "added"),
    (MY_SCORES, "log_e - strength * log_a", "log_e", "missing"),
    (MY_SCORES, "log_e - strength * log_a", "strength * (log_e - log_a)", "difference"),
    (MY_SCORES, "log_e - strength * log_a", "log_a - strength * log_e", "swapped"),
    (MY_SCORES, "log_e.max(-1", "log_e.max(1", "last dimension"),
    (MY_SCORES, "-math.inf)", "-math.inf).argmax(-1)", "shape"),
    (MY_SCORES, "return (", "return 1.0 or (", "tensor"),
    (MY_SCORES, "return (", "return list(", "line 6"),
    (MY_SCORES, "(log_e - strength * log_a).masked_fill(~keep, -math.inf)", "(log_e - log_a) * (keep / keep)", "NaN"),
    (MY_SCORES, ", tau=1.0", "", "keep its arguments"),
    (MY_SCORES, "math.log(alpha)", "nothing(alpha)", "line 5"),
    (SCORE_ENDINGS, "        cache.crop(-ending.shape[1])\n", "", "crop"),
    (SCORE_ENDINGS, "cache.crop(-ending.shape[1])", "cache.crop(0)", "crop"),
    (SCORE_ENDINGS, "cache.crop(-ending.shape[1])", "cache.crop(ending.shape[1])", "line 10"),
    (SCORE_ENDINGS, "cache.crop(-ending.shape[1])", "cache.crop(-1)", "Ending"),
    (SCORE_ENDINGS, "torch.cat([last, logits[:, :-1]], dim=1)", "logits", "token after it"),
    (SCORE_ENDINGS, ".sum().item()", "[:, 1:].sum().item()", "first token"),
    (SCORE_ENDINGS, ".sum()", ".mean()", "mean"),
    (SCORE_ENDINGS, ".log_softmax(-1)", "", "Raw"),
    (SCORE_ENDINGS, ".log_softmax(-1)", ".softmax(-1)", "Probabilities"),
    (SCORE_ENDINGS, ".sum().item()", ".sum().exp().item()", "logarithm"),
    (SCORE_ENDINGS, ".sum().item()", ".sum()", ".item()"),
    (SCORE_ENDINGS, "return scores", "return torch.tensor(scores)", "of 4 values"),
    (SCORE_ENDINGS, "return scores", "return scores[0]", "of 4 values"),
    (SCORE_ENDINGS, "    cache =", "    model = pair.expert\n    cache =", "model is not used"),
    (SCORE_ENDINGS, "for ending in endings", "for ending in endings[:1] * 4", "Ending 1"),
    (SCORE_ENDINGS, "input_ids=prompt", "input_ids=prompt[:, -1:]", "Ending 0"),
    (
        SCORE_ENDINGS,
        "    for ending in endings:\n",
        "    for ending in endings:\n        model(input_ids=prompt)\n",
        "more than once",
    ),
    (SCORE_ENDINGS, "ending[..., None]", "ending", "line 9"),
    (SCORE_ENDINGS, "logits = model(input_ids=ending", "logits = model(input_ids=ending[0, 0]", "line 7"),
    (MY_CHOICE, ".masked_fill(e < threshold, -math.inf)", "", "no mask"),
    (MY_CHOICE, "e < threshold", "(e - a) < (e - a).max(-1, True).values + math.log(alpha)", "no mask, or it looks"),
    (MY_CHOICE, "math.log(alpha)", "math.log(0.1)", "alpha is not used"),
    (MY_CHOICE, "math.log(alpha)", "math.log10(alpha)", "log10"),
    (MY_CHOICE, "math.log(alpha)", "alpha", "No token passes"),
    (MY_CHOICE, "+ math.log(alpha)", "- alpha", "alpha is subtracted"),
    (MY_CHOICE, "+ math.log(alpha)", "* alpha", "factor"),
    (MY_CHOICE, "(-1, keepdim=True).values", "()", "each row"),
    (MY_CHOICE, "e < threshold", "e <= e.max(-1, keepdim=True).values * alpha", "A factor alpha"),
    (MY_CHOICE, "max(-1, k", "max(1, k", "last dimension"),
    (MY_CHOICE, "+ math.log(alpha)", "- math.log(alpha)", "above the best"),
    (MY_CHOICE, "e < threshold", "e <= threshold", ">="),
    (MY_CHOICE, "e < threshold", "a < a.max(-1, keepdim=True).values + math.log(alpha)", "amateur's"),
    (MY_CHOICE, "(e - a)", "e", "greedy"),
    (MY_CHOICE, "(e - a)", "a", "amateur chooses"),
    (MY_CHOICE, "(e - a)", "(a - e)", "swapped"),
    (MY_CHOICE, "(e - a)", "(e.softmax(-1) - a.softmax(-1))", "Probabilities"),
    (MY_CHOICE, "-math.inf)", "0.0)", "below 0"),
    (MY_CHOICE, "(e - a).masked_fill(e < threshold, -math.inf)", "((e - a) * (e >= threshold))", "below 0"),
    (MY_CHOICE, "(e - a).masked_fill(e < threshold, -math.inf)", "((e - a) + (e >= threshold).log())", "NaN"),
    (MY_CHOICE, ".float()", "", "16 bits"),
    (MY_CHOICE, ".argmax(-1)", ".argmax(1)", "dimensions"),
    (MY_CHOICE, ".argmax(-1)", "", "shape"),
    (TWO_NUMBERS, "strength * expert", "expert", "strength is not used"),
    (TWO_NUMBERS, " / tau", "", "tau is not used"),
    (
        TWO_NUMBERS,
        "return strength * expert_temperature / tau, expert_temperature",
        "return strength / tau, 1",
        "expert_temperature is",
    ),
    (TWO_NUMBERS, "/ tau", "* tau", "upside down"),
    (TWO_NUMBERS, "strength * expert_temperature", "strength", "make up"),
    (TWO_NUMBERS, "strength * expert_temperature", "strength / expert_temperature", "upside down in the strength"),
    (TWO_NUMBERS, ", expert_temperature\n", ", 1 / expert_temperature\n", "T is upside"),
    (TWO_NUMBERS, "return ", "return 0.5 * ", "another distribution"),
    (TWO_NUMBERS, ", expert_temperature\n", ", tau\n", "cold"),
    (TWO_NUMBERS, ", expert_temperature\n", "\n", "of 2 values"),
    (TRANSLATE, "temperature / (", "1 / (", "temperature is not used"),
    (TRANSLATE, "return ", "beta = 0.5; return ", "beta is not used"),
    (TRANSLATE, "temperature / (1 + beta)", "temperature", "warm"),
    (TRANSLATE, "temperature / (", "temperature * (", "warm"),
    (TRANSLATE, "beta / (1 + beta),", "beta,", "which share"),
    (TRANSLATE, "beta / (1 + beta),", "1 / (1 + beta),", "another distribution"),
    (TRANSLATE, "beta / (1 + beta), temperature / (1 + beta)", "temperature / (1 + beta), beta / (1 + beta)", "first"),
    (TRANSLATE, "return ", "return [*map(torch.tensor, (1, 2))] or ", "float"),
    (DOLA_BATCH, ", alpha=alpha)", ")", "alpha is not used"),
    (DOLA_BATCH, ", alpha=alpha)", ", alpha=0.3)", "mask differs"),
    (DOLA_BATCH, ", alpha=alpha)", ", alpha=None)", "no mask"),
    (DOLA_BATCH, ".argmax(-1)", ".argmin(-1)", "nearest"),
    (DOLA_BATCH, ".argmax(-1)", ".mean(0).argmax(-1).expand(len(final))", "over their mean"),
    (DOLA_BATCH, ".argmax(-1)", "[0].argmax(-1).expand(len(final))", "first row"),
    (DOLA_BATCH, ".argmax(-1)", ".argmax(0)", "line 4"),
    (DOLA_BATCH, ".argmax(-1)", ".argmax(-1, keepdim=True)", "shape"),
    (
        DOLA_BATCH,
        "dola_scores(final, premature, alpha=alpha)",
        "dola_scores(premature, final, alpha=alpha)",
        "mask differs",
    ),
    (DOLA_BATCH, "final, premature, alpha=alpha", "final, early.mean(1), alpha=alpha", "scores inside"),
    (DOLA_BATCH, "dola_scores(final, premature, alpha=alpha)", "final.log_softmax(-1)", "mask differs"),
    (DOLA_BATCH, ", chosen\n", "\n", "of 2 values"),
    (DOLA_BATCH, "return dola_scores(final, premature, alpha=alpha), chosen", "return chosen, premature", "shape"),
    (
        DOLA_BATCH,
        "jsd(final[:, None], early)",
        "(early.softmax(-1) - final[:, None].softmax(-1)).sum(-1)",
        "chosen candidates",
    ),
]
OF = {MY_SCORES: "01", SCORE_ENDINGS: "02", MY_CHOICE: "03", TWO_NUMBERS: "04", TRANSLATE: "05", DOLA_BATCH: "06"}


def told(text, old, new):
    assert old in text
    names = {"torch": torch, "math": math, "DynamicCache": DynamicCache, "pair": decoding.pair()}
    names |= {"jsd": cdlearn.scores.js_divergence, "dola_scores": cdlearn.scores.dola_scores}
    exec(compile(text.replace(old, new), "<student>", "exec"), names)
    return CHECKS[OF[text]][1](names["answer"])


@pytest.mark.parametrize("text, old, new", ACCEPTED)
def test_another_right_answer_is_accepted(text, old, new):
    assert told(text, old, new) == "Right."


@pytest.mark.parametrize("text, old, new, word", WRONG)
def test_a_wrong_answer_is_told_its_reason(text, old, new, word):
    sentence = told(text, old, new)
    assert word in sentence and "\n" not in sentence, sentence


PLACES = {  # where a notebook prints the share of puzzles solved: the expert alone, beta 0.5, strength 1
    "00": (r"greedy +(\d\S+)", None, r"contrastive +(\S+) +\S+ +\S+\n"),
    "03": (r"1\.0 +1\.0 +(\d+) +\d+ to", None, r"0\.1 +1\.2 +(\d+) +\d+ to"),
    "05": (r"0\.000 +0\.000 +(\S+)", r"0\.333 +0\.500 +(\S+)", r"1\.000 +inf +(\S+)"),
    "09": (r"expert, greedy +right +(\d+)", r"contrast with the amateur +right +(\d+)", None),
    "11": (r"greedy +(\d+\.\d) ", r"contrastive, beta 0\.5 +(\d+\.\d) ", r"contrastive, strength 1 +(\d+\.\d) "),
}


def printed(number):
    outputs = [output for cell in cells(number) for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", []) for output in outputs]
    return "\n".join("".join(text) for text in texts)


def test_the_table_of_settings_says_what_the_notebooks_print():
    section = (
        (FOLDER / "README.md").read_text(encoding="utf-8").split("## One figure, several settings")[1].split("##")[0]
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| \d.*\|$", section, re.M)]
    assert {row[4][1:3] for row in rows} == {*PLACES, "th"}
    for puzzles, *values, where in rows:
        if where[1:3] in PLACES:
            text = printed(where[1:3])
            sources = "".join("".join(cell["source"]) for cell in cells(where[1:3]))
            assert f"items({puzzles})" in sources or f'"puzzles": {puzzles}' in sources or f"n={puzzles}" in sources
            found = [place and re.search(place, text)[1] for place in PLACES[where[1:3]]]
        else:
            facts = json.loads((FOLDER.parent / "cdlearn/toyworld/pair/eval.json").read_text(encoding="utf-8"))
            right = {
                row["strategy"]: row for row in facts["rows"] if (row["task"], row["metric"]) == ("puzzles", "right")
            }
            found = [str(right[name]["value"]) for name in ("greedy", "contrastive beta=0.5", "contrastive strength=1")]
            assert int(puzzles) == right["greedy"]["items"]
        assert [value or None for value in values] == found, where
