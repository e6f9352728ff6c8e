"""The inspector without a browser: what Python does of it. The page itself is driven in test_browser.py."""

import subprocess
import sys
import time

import pytest
from conftest import character_tokenizer
from tiny import tiny_model

from cdlearn import CachedLM, Contrast, DoLa, Mix, Prompted, generate, inspect
from cdlearn.show.inspector import Inspector
from cdlearn.show.pack import controls

EXPERT, AMATEUR = tiny_model("llama").double(), tiny_model("llama", seed=1, num_hidden_layers=1).double()
TOKENIZER = character_tokenizer()
OPTIONS = dict(tokenizer=TOKENIZER, max_new_tokens=20, eos_token_ids=())


@pytest.fixture
def source():
    return Contrast(EXPERT, AMATEUR, alpha=0.02, strength=0.8)


@pytest.fixture
def made(source):
    return generate(source, "hello", **OPTIONS)


def test_it_opens_where_the_expert_alone_would_choose_otherwise(made):
    shown = inspect(made)
    moved = [k for k, rank in enumerate(made.trace.rank.tolist()) if rank > 1]
    assert shown.position == moved[0] and shown.settings == {} and shown.trace is made.trace


def test_regenerate_and_branch_write_new_texts_and_keep_the_old(made, source):
    shown = inspect(made, source=source)
    shown.position = 4
    shown.set(strength=0.1)
    shown.regenerate(wait=True)
    assert shown._said == "" and list(shown.versions) == ["recorded", "from 4"] and shown.settings == {}
    assert [name for name, _ in shown._packed] == list(shown.versions)
    prefix = made.trace.prompt_ids + made.trace.token_ids[:4]
    want = generate(Contrast(EXPERT, AMATEUR, alpha=0.02, strength=0.1), prefix, max_new_tokens=16, eos_token_ids=())
    assert shown.trace.token_ids[: len(want.token_ids)] == want.token_ids[: len(shown.trace)]
    shown._version, shown.position = 0, 2  # as the page does it
    shown.branch(wait=True)
    token = shown.trace.prompt_ids[-1]
    assert token != made.trace.token_ids[2]
    assert shown.trace.prompt_ids == [*made.trace.prompt_ids, *made.trace.token_ids[:2], token]
    assert made.trace.token_ids == shown.versions["recorded"].token_ids


def test_the_page_asks_and_is_told(made, source):
    """The three messages, as the browser sends them; errors come back as a text, not as a traceback in a log."""
    shown = inspect(made, source=source)
    token = made.trace.candidates[shown.position, 1].item()
    for message, name in (({"do": "regenerate"}, "from"), ({"do": "branch", "token": token}, "branch at")):
        shown._handle_custom_msg(message, [])
        shown._thread.join()
        assert shown._said == "" and list(shown.versions)[-1].startswith(name)
        shown._version = 0
    assert list(shown.versions.values())[-1].prompt_ids[-1] == token
    shown._handle_custom_msg({"do": "branch", "token": -5}, [])
    assert "token_id is -5" in shown._said
    shown._handle_custom_msg({"do": "something else"}, [])
    still = inspect(made)
    still._handle_custom_msg({"do": "regenerate"}, [])
    assert "source is None" in still._said and not still._source


def test_position_and_controls_can_be_set(made):
    shown = inspect(made)
    shown.position = 7
    assert shown.position == shown._position == 7
    shown.set(strength=0.25, alpha=0.5)
    assert shown.settings == {"strength": 0.25, "alpha": 0.5}
    shown.set(alpha=None, strength=0.0)
    assert shown.settings == {"strength": 0.0, "alpha": 0}
    shown.set(strength=None)
    assert shown.settings == {"alpha": 0}
    for bad, kind in (
        ({"position": 99}, "position is 99"),
        ({"beta": 0.5}, "beta is 0.5"),
        ({"strength": -1}, "strength"),
    ):
        with pytest.raises(ValueError, match=kind):
            shown.set(**bad) if "position" not in bad else setattr(shown, "position", bad["position"])
    assert shown.position == 7 and shown.settings == {"alpha": 0}


def test_cancel_keeps_what_is_there(made, source):
    class Slow(Contrast):
        def scores(self, ids, mask, n):
            time.sleep(0.05)
            return super().scores(ids, mask, n)

    shown = inspect(made, source=Slow(EXPERT, AMATEUR, alpha=0.02))
    shown.position = 0
    shown.regenerate()
    with pytest.raises(ValueError, match="being written"):
        shown.regenerate()
    shown._handle_custom_msg({"do": "cancel"}, [])
    shown._thread.join()
    assert 0 < len(shown.versions["from 0"]) < 20 and shown._progress == []


def test_every_method_has_the_controls_that_its_trace_can_answer(made):
    def of(source):
        return controls(generate(source, "hello", **OPTIONS).trace)

    assert controls(made.trace) == ["strength", "alpha", "amateur_temperature"]
    assert of(Contrast(EXPERT, AMATEUR, beta=0.5)) == ["beta", "alpha"]  # the form with beta knows no temperature
    assert of(DoLa(EXPERT, layers=[0, 1, 2])) == ["alpha", "layer"]
    assert of(Mix([(1, EXPERT), (-0.5, AMATEUR)], alpha=0.1)) == ["alpha"]
    assert of(CachedLM(EXPERT)) == []
    assert of(Prompted(DoLa(EXPERT, layers=[0, 1]), [5])) == []


def test_a_layer_of_the_page_is_a_list_of_the_source():
    source = DoLa(EXPERT, layers=[0, 1, 2])
    shown = inspect(generate(source, "hello", **OPTIONS), source=source)
    shown.position = 0
    shown.set(layer=1)
    shown.regenerate(wait=True)
    assert shown._said == "" and shown.trace.settings["layers"] == [1]
    want = generate(DoLa(EXPERT, layers=[1]), "hello", **OPTIONS)
    assert shown.trace.token_ids == want.token_ids


def test_two_texts_side_by_side(made):
    other = generate(EXPERT, "hello", **OPTIONS)
    shown = inspect(made, compare=other)
    assert shown._other == 1 and [name for name, _ in shown._packed] == ["recorded", "the other"]


def test_close_frees_the_widget_and_two_live_side_by_side(made):
    first, second = inspect(made), inspect(made)
    first.set(strength=0.0)
    assert second.settings == {}
    first.close()
    assert first.comm is None and second.comm is not None


def test_a_host_without_the_module_gets_html_without_a_script(made):
    bundle = inspect(made)._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "Inspector(20 positions)" and "0x" not in bundle["text/plain"]
    page = bundle["text/html"]
    assert "<script" not in page and "<table" in page and "\N{FULL BLOCK}" in page


def test_bad_input_is_named(made):
    with pytest.raises(TypeError, match="generation is a str"):
        inspect("hello")
    with pytest.raises(ValueError, match="has no trace"):
        inspect(generate(EXPERT, "hello", trace=False, **OPTIONS))
    with pytest.raises(ValueError, match="no settings to change"):
        CachedLM(EXPERT).changed(alpha=0.1)
    assert isinstance(inspect(made.trace), Inspector)


def test_importing_cdlearn_imports_no_widgets():
    code = "import cdlearn, sys; assert not {'ipywidgets', 'matplotlib', 'pandas'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_script_may_end_while_a_text_is_written():
    lines = """
import cdlearn
pair = cdlearn.load_pair()
source = cdlearn.Contrast(pair.expert, pair.amateur)
made = cdlearn.generate(source, "Ada", tokenizer=pair.tokenizer, max_new_tokens=150, eos_token_ids=())
shown = cdlearn.inspect(made, source=source)
shown.position = 1
shown.regenerate()
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_source_is_a_source_and_a_model_will_do(made):
    with pytest.raises(TypeError, match="source is a str"):
        inspect(made, source="expert")
    shown = inspect(made, source=EXPERT)
    shown.regenerate(wait=True)
    assert len(shown.versions) == 2
    with pytest.raises(ValueError, match="token_id is 10000"):
        shown.branch(10_000)
