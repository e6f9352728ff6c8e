"""Static HTML: nothing runs, nothing leaks out of a token, and what cannot be seen is drawn."""

import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tiny import tiny_model

import cdlearn
from cdlearn import Contrast, generate
from cdlearn.show import html as render
from cdlearn.show.pack import pack
from cdlearn.trace.trace import Trace

NASTY = ["<script>alert(1)</script>", "</s>", '"quoted"', "a\nb", "\t", "\u202eevil"]
NASTY += ["\ufffd", "&amp;", "'", " ", "", "$x$"]


class Names:
    """A tokenizer whose tokens are whatever a test needs."""

    def __init__(self, names):
        self.names = names

    def convert_ids_to_tokens(self, token):
        return self.names[token % len(self.names)]

    def decode(self, ids, **_):
        return "".join(self.names[token % len(self.names)] for token in ids)


class Audit(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), set(), "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def nasty_trace():
    trace = generate(Contrast(tiny_model("llama"), tiny_model("llama", seed=1)), [5, 6], max_new_tokens=24,
                     eos_token_ids=()).trace  # fmt: skip
    object.__setattr__(trace, "tokenizer", Names(NASTY))
    return trace


@pytest.mark.parametrize("name", NASTY)
def test_tokens_are_escaped_and_visible(name):
    shown = render.escaped(name, 7)
    assert not re.search("[<>\"'\n\t\u202e]", shown) and shown.strip() and shown != ""


def test_representations_hold_no_script_and_are_capped():
    trace = nasty_trace()
    pages = [trace._repr_html_(), render.candidate_table(trace, 3)]
    long = Trace(**{**vars(trace), "candidates": trace.candidates.repeat(20, 1)})
    assert "more</em>" in render.token_strip(render.names_of(long), torch.zeros(480))
    for page in pages:
        audit = Audit(page)
        assert audit.open == [] and "script" not in audit.tags
        assert audit.attributes <= {"style", "title"} and not re.search("https?:|onclick|javascript", page)
    cells = re.findall(r'style="([^"]*background[^"]*)"', pages[0])
    assert cells and all("color:#000" in cell for cell in cells)  # readable in dark themes as well


def test_a_generation_shows_its_text_and_an_empty_trace_says_so():
    made = generate(tiny_model("llama"), [5, 6], max_new_tokens=4, eos_token_ids=())
    made.text = "<b>bold</b>\nsecond line"
    assert "&lt;b&gt;bold" in made._repr_html_() and "length" in made._repr_html_()
    eos = int(made.trace.token_ids[0])
    empty = generate(tiny_model("llama"), [5, 6], max_new_tokens=4, eos_token_ids=(eos,))
    assert len(Audit(empty._repr_html_()).text) > 0
    assert "empty trace" in render.trace_html(
        Trace([1], torch.zeros(0, 1).long(), torch.zeros(0, 1), {}, {}, torch.zeros(0))
    )


def test_metrics_are_what_they_say():
    trace = nasty_trace()
    frame = trace.to_frame()
    chosen = frame[frame["chosen"]].drop_duplicates("position")
    gain = torch.tensor((chosen["expert_prob"] / chosen["amateur_prob"]).to_numpy()).log()
    assert torch.allclose(render.metric_values(trace, "contrast gain").double(), gain.double(), atol=1e-4)
    surprisal = -torch.tensor(chosen["expert_prob"].to_numpy()).log()
    assert torch.allclose(render.metric_values(trace, "expert surprisal").double(), surprisal.double(), atol=1e-4)
    for metric in render.METRICS:
        assert len(render.metric_values(trace, metric)) == len(trace)
    with pytest.raises(ValueError, match="metric is 'loss'"):
        render.metric_values(trace, "loss")
    with pytest.raises(ValueError, match="position is 99"):
        render.candidate_table(trace, 99)


def test_masked_candidates_are_struck_through():
    trace = nasty_trace()
    frame = trace.to_frame(top=8)
    dropped = (~frame["kept"]).groupby(frame["position"]).sum()
    assert dropped.max() > 0
    for position, count in dropped.items():
        assert render.candidate_table(trace, position).count("<s>") == count


def test_bars_are_text_and_as_long_as_the_probability():
    widths = [render._bar(p, "#000").count("\N{FULL BLOCK}") for p in (0.0, 0.25, 0.5, 1.0)]
    assert widths == [0, 2, 4, 8] and render._bar(float("nan"), "#000") == ""


def test_the_handout_is_one_file_that_asks_nobody(tmp_path):
    trace = nasty_trace()
    trace.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|@import", page)
    data = page.split('id="packed">')[1].split("</script>")[0]
    assert "<" not in data
    header = unpacked(trace)
    assert any("alert(1)" in text for text in header["texts"])  # it is in the numbers' file, never in the page's text
    assert "alert(1)" not in page
    assert cdlearn.inspect  # the door is there without importing anywidget
    empty = Trace([1], torch.zeros(0, 1).long(), torch.zeros(0, 1), {}, {}, torch.zeros(0))
    for other in (empty, generate(tiny_model("llama"), [5], max_new_tokens=2).trace):  # nothing to change: no controls
        other.to_html(tmp_path / "x.html", compare=trace)
        assert unpacked(other)["controls"] == []
    with pytest.raises(TypeError, match="compare is a str"):
        trace.to_html(tmp_path / "x.html", compare="text")


def unpacked(trace):
    raw = gzip.decompress(pack(trace))
    return json.loads(raw[4 : 4 + int.from_bytes(raw[:4], "little")])


def test_packed_numbers_are_exact():
    """What the page reads: planes of bytes put together again, the expert's bits summed up."""
    trace = nasty_trace()
    raw = gzip.decompress(pack(trace))
    header = unpacked(trace)
    start = 4 + int.from_bytes(raw[:4], "little")

    def array(name):
        kind, shape, at = header["arrays"][name]
        kind, count = np.dtype("<" + kind), int(np.prod(shape))
        block = np.frombuffer(raw, np.uint8, count * kind.itemsize, start + at)
        values = np.ascontiguousarray(block.reshape(kind.itemsize, count).T).reshape(-1).view(kind)
        if name == "parts.expert" and kind == "<f4":
            values = np.cumsum(values.view("<i4"), dtype=np.int32).view("<f4")
        return values.reshape(shape)

    for name, part in trace.parts.items():
        assert np.array_equal(array(f"parts.{name}"), part.numpy())
        assert np.array_equal(array(f"normalisers.{name}"), trace.normalisers[name].numpy())
    ids = np.array(header["ids"])
    assert np.array_equal(ids[array("candidates")], trace.candidates.numpy()) and sorted(ids) == list(ids)
    assert [header["ids"][k] for k in header["recorded"]] == trace.recorded_ids
