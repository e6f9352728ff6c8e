"""The README's method table: every line runs on the embedded pair and gives text."""

import re
from pathlib import Path

import pytest

import cdlearn
from cdlearn.hf import as_causal_lm

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `((?:generate|beam_search|speculate|as_causal_lm)\(.*\))` \|$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    pair = cdlearn.load_pair()
    known = {name: getattr(cdlearn, name) for name in cdlearn.__all__} | {"as_causal_lm": as_causal_lm}
    known |= {"expert": pair.expert, "amateur": pair.amateur, "tokenizer": pair.tokenizer}
    known["prompt"] = re.search(r'`prompt = "([^"]+)"`', README).group(1)
    return known | {"base": cdlearn.load_pair(amateur="early").amateur, "other": pair.amateur,
                    "other_tokenizer": pair.tokenizer}  # fmt: skip


def test_the_table_is_there():
    assert len(ROWS) >= 16


@pytest.mark.parametrize("method, line", ROWS, ids=[method.strip() for method, _ in ROWS])
def test_each_line_runs(names, method, line):
    made = eval(line, dict(names))
    if "as_causal_lm" in line:
        assert made.shape[1] > names["tokenizer"](names["prompt"], return_tensors="pt")["input_ids"].shape[1]
    else:
        assert made.text and made.finish_reason in ("eos", "length")
