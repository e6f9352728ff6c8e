"""A trace from a file is right in every method, page, figure and widget, or it is a ValueError in words."""

import copy
import gzip
import inspect as standard
import json
import os
import random
import re
import traceback

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import character_tokenizer
from test_render import Audit
from tiny import tiny_model

import cdlearn
from cdlearn import Contrast, DoLa, Trace, plots, speculate, widgets
from cdlearn.loops.generate import generate
from cdlearn.show import html

SCRIPT = "<img src=x onerror=alert(1)>"
ASIDE = {"to_json", "save", "from_json", "load", "rescore", "first_change", "flip_points", "to_html", "to_frame"}


def made(kind):
    """A short trace of each kind as parsed JSON."""
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    options = dict(tokenizer=character_tokenizer(), max_new_tokens=4, eos_token_ids=(), progress=False)
    if kind == "rounds":
        draft = Contrast(expert, amateur, alpha=None, strength=0.2)
        trace = speculate(expert, draft, "ab", gamma=2, temperature=1.0, seed=2, **options).trace
    else:
        source = {"contrast": Contrast, "beta": lambda *pair: Contrast(*pair, beta=0.5)}.get(kind)
        source = source(expert, amateur) if source else DoLa(expert, layers=[0, 1])
        trace = generate(source, "ab", repetition_penalty=1.2, **options).trace
    return json.loads(trace.to_json())


KINDS = ("contrast", "beta", "dola", "rounds")
GOOD = {kind: made(kind) for kind in KINDS}


def in_words(error):
    """Whether an error is one of ours: raised by a line of the package that says so."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError) and os.sep + "cdlearn" + os.sep in last.filename and "raise" in last.line


def works(trace, folder, *, seen):
    """Call everything that a trace can be given to. seen: with figures and widgets, which take longer."""
    changes = {"strength": 0.4, "beta": 0.7, "alpha": 0.02, "amateur_temperature": 1.5, "top_k": 3, "layer": 1}
    assert isinstance(trace.summary(), str)
    calls = [(trace.to_frame, {}), (trace.to_frame, {"top": 2}), (trace.step_frame, {})]
    calls += [(trace._repr_html_, {}), (trace.to_html, {"path": folder / "page.html"}), (lambda: trace.truncated, {})]
    calls += [(call, {name: value}) for name, value in changes.items() for call in (trace.rescore, trace.first_change)]
    for k in range(len(trace)):
        calls += [(trace.flip_points, {"position": k}), (html.candidate_table, {"trace": trace, "position": k})]
    calls += [(Trace.from_json, {"text": trace.to_json()})]
    if seen:
        places = {"plot_step": {"position": 0}, "plot_strength": {"position": 0}}
        names = [name for name in vars(plots) if name.startswith("plot_")]
        calls += [(getattr(plots, name), {"trace": trace} | places.get(name, {})) for name in names]
        calls += [(cdlearn.inspect, {"generation": trace, "compare": trace})]
    pages = []
    for call, arguments in calls:
        try:
            found = call(**arguments)
        except ValueError as error:
            assert in_words(error), f"{call}: {error}"
        else:
            pages += [found] if isinstance(found, str) and found.startswith("<") else []
            if isinstance(found, widgets.Inspector):
                bundle = found._repr_mimebundle_()
                pages.append((bundle[0] if isinstance(bundle, tuple) else bundle)["text/html"])
                found.close()
    plt.close("all")
    if (folder / "page.html").exists():
        page = (folder / "page.html").read_text(encoding="utf-8")
        pages.append(re.sub(r"<script.*?</script>|<style.*?</style>|<!doctype html>", "", page, flags=re.DOTALL))
    for page in pages:
        tags = Audit(page.replace("<meta", "<br").replace("<input", "<br")).tags
        assert not tags & {"script", "img", "iframe", "svg"}, page


def read(content, folder, *, seen=True):
    """Whether a file of this content is taken: then everything must work."""
    try:
        trace = Trace.from_json(content if isinstance(content, (str, bytes)) else json.dumps(content))
    except ValueError as error:
        assert in_words(error), error
        return False
    works(trace, folder, seen=seen)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_trace_is_taken_and_works(kind, tmp_path):
    assert read(GOOD[kind], tmp_path)


def changed(kind, path, value):
    """A good trace with one thing changed; a value that is a function changes what is there."""
    content = copy.deepcopy(GOOD[kind])
    *above, last = path
    node = content
    for step in above:
        node = node[step]
    node[last] = value(node[last]) if callable(value) else value
    return content


def poked(stored, k, value):
    return stored | {"values": [*stored["values"][:k], value, *stored["values"][k + 1 :]]}


WIDE = GOOD["contrast"]["candidates"]["shape"][1]
HOSTILE = [
    *(("contrast", (name, "shape"), shape) for name in ("candidates", "score", "rank")
      for shape in ([5], [], [WIDE, 4], [2, 2 * WIDE], [4, WIDE, 1], [-1, WIDE], [2**40, 2**40], "4", None)),
    *(("contrast", ("candidates",), lambda t, v=v: poked(t, 3, v))
      for v in (-1, 97, 2**40, 2**70, 1.0, "1", None, True)),
    *(("contrast", ("candidates",), lambda t, k=k: poked(t, 0, t["values"][k])) for k in (1, 2)),  # one twice
    *(("contrast", (*path,), lambda t, v=v: poked(t, 3, v)) for v in ("nan", "inf", "zero", None, True, [1.0], 1e999)
      for path in (("score",), ("parts", "expert"), ("parts", "amateur"), ("normalisers", "amateur"))),
    ("contrast", ("parts", "expert"), lambda t: poked(t, 5, 1e9)),  # out of order
    *(("contrast", (name,), value) for name in ("parts", "normalisers", "details", "settings", "rounds", "forms",
      "tokens", "prompt_ids", "recorded", "vocab_size", "score")
      for value in (None, 3, "x", [], {}, [None], {"a": 1}, [[]], True)
      if value and name != "settings" or name in ("parts", "normalisers", "score")),
    *(("contrast", ("prompt_ids",), value) for value in ([-1], [1.5], ["1"], [2**30], [2**70], [True])),
    *(("contrast", ("recorded",), value) for value in ([1], [1, 2, 3, -4], [1, 2, 3, 97], [1, 2, 3, "4"])),
    *(("contrast", ("vocab_size",), value) for value in (0, -1, 50, 2**40, 1e6, "97")),
    *(("contrast", ("settings", name), value) for name in ("alpha", "strength", "amateur_temperature", "top_k",
      "repetition_penalty") for value in (-1, SCRIPT, [], {}, "nan", 1e999, True)),
    ("contrast", ("settings", "alpha"), 0.0), ("contrast", ("settings", "strength"), None),
    ("contrast", ("settings", "beta"), 0.5), ("contrast", ("settings", "method"), 3),
    ("contrast", ("settings", "layers"), [1]), ("contrast", ("settings", "method"), "\ud800"),
    ("contrast", ("settings", "x"), "\udcff"), ("contrast", ("settings", "x"), [[[[[1]]]]]),
    ("contrast", ("tokens", "5"), "\ud800"), ("contrast", ("tokens", "5"), 7), ("contrast", ("tokens", "five"), "5"),
    ("contrast", ("forms",), lambda forms: [form | {"knob": SCRIPT} for form in forms]),
    ("contrast", ("forms",), lambda forms: [form | {"over": {"third": 1.0}} for form in forms]),
    ("contrast", ("forms",), lambda forms: [form | {"over": {"expert": SCRIPT}} for form in forms]),
    ("contrast", ("forms",), lambda forms: [form | {"tempered": [1]} for form in forms]),
    ("contrast", ("forms",), lambda forms: [form | {"more": 1} for form in forms]),
    ("contrast", ("details",), lambda d: {"accept_probability": GOOD["dola"]["details"]["divergences"]}),
    ("contrast", ("ranks", "expert", "dtype"), "float32"), ("contrast", ("entropy", "third"), GOOD["contrast"]["rank"]),
    ("contrast", ("rank", "dtype"), "object"), ("contrast", ("score", "dtype"), "int64"),
    *(("dola", ("settings", "layers"), value)
      for value in ([SCRIPT, 1], [0], [0, 0], [0, 1, 2], "01", [0.0, 1], [], [0, -1], None)),
    ("dola", ("details", "premature_layer"), lambda t: poked(t, 0, 7)),
    *(("dola", (name,), lambda d: {k: v for k, v in d.items() if k not in ("layers", "divergences")})
      for name in ("parts", "normalisers", "ranks", "details", "total_variation")),
    ("dola", ("details", "divergences", "shape"), [2, 4]),
    *(("rounds", ("rounds", 0, name), value) for name in ("round", "position", "accepted", "next_kind", "next_id",
      "draft_ids", "accept_probability", "u", "p") for value in (SCRIPT, -1, 2**40, [SCRIPT], {}, 1.5, True)),
    *(("rounds", ("rounds", 0), value) for value in (None, {}, [], 3)),
    ("rounds", ("rounds", 0, "p"), None), ("rounds", ("rounds", 0, "p"), [0.5]),
    ("rounds", ("rounds", 0, "draft_ids"), [99999] * 2),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value"), HOSTILE)
def test_what_does_not_fit_together_is_refused(kind, path, value, tmp_path):
    with pytest.raises(ValueError, match="text is a damaged trace") as refused:
        Trace.from_json(json.dumps(changed(kind, path, value)))
    assert in_words(refused.value)


MARKUP = [("settings", "method"), ("settings", "model"), ("tokens", "40"), ("settings", SCRIPT)]


@pytest.mark.parametrize("path", MARKUP)
def test_markup_in_a_file_stays_text(path, tmp_path):
    content = copy.deepcopy(GOOD["contrast"])
    content[path[0]][path[1]] = SCRIPT
    content["tokens"] = dict.fromkeys(content["tokens"], SCRIPT)
    content["details"][SCRIPT] = content["rank"]
    assert read(content, tmp_path)
    assert "<img" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_no_schema_lets_in_is_escaped_all_the_same(tmp_path):
    spoken, dola = (Trace.from_json(json.dumps(GOOD[kind])) for kind in ("rounds", "dola"))
    for facts in spoken.rounds:
        facts["round"], facts["next_kind"] = SCRIPT, SCRIPT
    dola.settings["layers"] = [SCRIPT, 1]
    for trace in (spoken, dola):
        trace.to_html(tmp_path / "page.html", compare=spoken)
        assert "<img" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in cdlearn.Generation("a", [1], SCRIPT)._repr_html_()


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"a"', "[" * 100_000, '{"a":' * 100_000, "\ufeff{}", b"\xff\xfe\x00",
     "NaN", "1" * 10_000, '{"format": "cdlearn trace"}', '{"format": "cdlearn trace", "version": [1]}',
     '{"format": "cdlearn trace", "version": 1}'],
)  # fmt: skip
def test_text_that_is_no_trace_is_refused(text):
    with pytest.raises(ValueError) as refused:
        Trace.from_json(text)
    assert in_words(refused.value)


def test_files_are_bounded_and_broken_ones_named(tmp_path):
    whole = gzip.compress(json.dumps(GOOD["contrast"]).encode())
    bombs = {"zeros.json.gz": gzip.compress(b" " * 2**24), "short.json.gz": whole[:-20],
             "bits.json.gz": whole[:50] + b"x" + whole[51:],
             "none.json.gz": b"", "plain.json.gz": b"{}", "latin.json": b"\xff", "gz.json": whole}  # fmt: skip
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as refused:
            Trace.load(tmp_path / name, max_bytes=2**20)
        assert in_words(refused.value)
    (tmp_path / "good.json.gz").write_bytes(whole)
    size = len(gzip.decompress(whole))
    assert len(Trace.load(tmp_path / "good.json.gz", max_bytes=size)) == 4
    with pytest.raises(ValueError, match="max_bytes"):
        Trace.load(tmp_path / "good.json.gz", max_bytes=size - 1)
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="path"):
            Trace.load(path)


VALUES = [
    None,
    True,
    -1,
    0,
    3,
    2**31,
    2**80,
    0.5,
    -1e30,
    1e999,
    "",
    "nan",
    "-inf",
    SCRIPT,
    [],
    {},
    [[]],
    [None],
    {"a": [1]},
]


def mutated(kind, seed):
    """A good trace with one to three of its places changed, dropped, doubled or swapped; or with bytes changed."""
    chance, content = random.Random(f"{kind}/{seed}"), copy.deepcopy(GOOD[kind])
    if seed % 4 == 0:
        text = list(json.dumps(content))
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice('0123456789-.,:[]{}"e aN\\')
        return "".join(text)
    for _ in range(chance.randint(1, 3)):
        node, depth = content, 0
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = chance.choice(list(keys))
            below = node[key]
            if not isinstance(below, (dict, list)) or not below or chance.random() < 0.15:
                break
            node, depth = below, depth + 1
        what = chance.randrange(8)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, list):
            node.insert(key, copy.deepcopy(chance.choice(node)))
        elif what > 3 and isinstance(below, (int, float)) and not isinstance(below, bool):
            node[key] = below * chance.choice([-1, 0, 2, 0.999, 10**6])
        else:
            node[key] = chance.choice(VALUES)
        if not content:
            break
    return json.dumps(content)


@pytest.mark.parametrize("kind", KINDS)
def test_random_mutations_are_refused_or_right(kind, tmp_path):
    taken = [read(mutated(kind, seed), tmp_path, seen=seed % 5 == 0) for seed in range(60)]
    assert 0 < sum(taken) < 50


def test_the_list_of_methods_is_whole():
    known = {
        name for name, value in standard.getmembers(Trace) if not name.startswith("_") and standard.isroutine(value)
    }
    assert known == ASIDE | {"step_frame", "summary"}
    assert torch.is_tensor(Trace.from_json(json.dumps(GOOD["dola"])).truncated)
