"""The inspector without a browser: set a value, read what it shows."""

import subprocess
import sys
import time

import pytest
from conftest import character_tokenizer
from tiny import tiny_model

from cdlearn import CachedLM, Contrast, DoLa, EarlyExit, Mix, Prompted, generate, inspect, speculate
from cdlearn.show.inspector import Inspector

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
    assert shown._position.value == moved[0] and "2px solid" in shown._strip.value
    assert len(shown._position.options) == len(made.trace) and "strength" in shown._flips.value


def test_a_slider_shows_what_these_settings_would_pick(made, source):
    shown = inspect(made)
    assert shown.settings == {}
    shown._strength.value = 0.0
    picks = made.trace.rescore(strength=0.0).token_ids
    first = next(k for k, (a, b) in enumerate(zip(made.trace.token_ids, picks)) if a != b)
    assert f"another token at position {first}" in shown._what_if.value and shown.settings == {"strength": 0.0}
    fresh = generate(Contrast(EXPERT, AMATEUR, alpha=0.02, strength=0.0), "hello", **OPTIONS)
    assert fresh.token_ids[: first + 1] == picks[: first + 1]
    shown._strength.value = 0.8
    assert shown.settings == {}


def test_a_browsers_rounding_to_the_sliders_steps_is_no_change():
    made = generate(Contrast(EXPERT, AMATEUR, alpha=0.02, beta=0.5), "hello", **OPTIONS)
    shown = inspect(made)
    shown._strength.value = 0.33  # what a browser makes of the recorded third
    assert shown.settings == {} and "Move a control" in shown._what_if.value
    shown._temperature.value = 0.5
    assert shown.settings == {"strength": pytest.approx(1 / 3), "amateur_temperature": 0.5}


def test_number_box_and_slider_follow_each_other(made):
    shown = inspect(made)
    box = shown._numbers["alpha"].children[0]
    box.value = -0.5
    assert shown._alpha.value == -0.5 and shown.settings["alpha"] == pytest.approx(10**-0.5)
    shown._alpha.value = -4.0  # the left end: no mask
    assert shown.settings["alpha"] == 0 and "masked" not in shown._table.value


def test_the_table_strikes_out_what_the_mask_drops(made):
    shown = inspect(made)
    before = shown._table.value.count("<s>")
    shown._alpha.value = 0.0
    assert shown._table.value.count("<s>") > before
    shown._position.value = 5
    assert shown._table.value != "" and "2px solid" in shown._strip.value


@pytest.mark.parametrize("metric", ["expert surprisal", "entropy", "distance", "acceptance"])
def test_every_colour_can_be_chosen(made, metric):
    shown = inspect(made)
    before = shown._strip.value
    shown._metric.value = metric
    assert shown._strip.value != before and shown._said.value == ""


def test_regenerate_and_branch_write_new_texts_and_keep_the_old(made, source):
    shown = inspect(made, source=source)
    shown._position.value = 4
    shown._strength.value = 0.1
    shown.regenerate(wait=True)
    assert shown._said.value == "" and list(shown.versions) == ["recorded", "from 4"]
    prefix = made.trace.prompt_ids + made.trace.token_ids[:4]
    want = generate(Contrast(EXPERT, AMATEUR, alpha=0.02, strength=0.1), prefix, max_new_tokens=16, eos_token_ids=())
    assert shown.trace.token_ids[: len(want.token_ids)] == want.token_ids[: len(shown.trace)]
    shown._version.value = "recorded"
    shown._position.value = 2
    token = shown._candidate.value
    assert token != made.trace.token_ids[2]
    shown.branch(wait=True)
    assert shown.trace.prompt_ids == [*made.trace.prompt_ids, *made.trace.token_ids[:2], token]
    assert made.trace.token_ids == shown.versions["recorded"].token_ids
    # the version says what it continues: two tokens of the text and the one that was chosen, with the dot
    assert shown._before.value.count("<span") == 3 and shown._before.value.count("\N{BULLET}") == 1
    shown._version.value = "from 4"
    assert shown._before.value.count("<span") == 4 and "\N{BULLET}" not in shown._before.value
    shown._version.value = "recorded"
    assert shown._before.value == ""


def test_position_and_controls_can_be_set(made):
    shown = inspect(made)
    shown.position = 7
    assert shown.position == 7 and shown._position.value == 7
    shown.set(strength=0.25, alpha=0.5)
    assert shown.settings == {"strength": 0.25, "alpha": pytest.approx(0.5)}
    shown.set(alpha=None)
    assert shown.settings["alpha"] == 0
    for bad, kind in (
        ({"position": 99}, "position is 99"),
        ({"beta": 0.5}, "beta is 0.5"),
        ({"strength": -1}, "strength"),
    ):
        with pytest.raises(ValueError, match=kind):
            shown.set(**bad) if "position" not in bad else setattr(shown, "position", bad["position"])
    assert shown.position == 7 and shown.settings["strength"] == 0.25


def test_cancel_keeps_what_is_there(made, source):
    class Slow(Contrast):
        def scores(self, ids, mask, n):
            time.sleep(0.05)
            return super().scores(ids, mask, n)

    shown = inspect(made, source=Slow(EXPERT, AMATEUR, alpha=0.02))
    shown._position.value = 0
    shown.regenerate()
    with pytest.raises(ValueError, match="being written"):
        shown.regenerate()
    shown.cancel()
    shown._thread.join()
    assert 0 < len(shown.versions["from 0"]) < 20


def test_tabs_for_layers_and_speculation_only_where_there_are_any(made):
    assert inspect(made)._tabs.titles == ("candidates",)
    dola = generate(DoLa(EXPERT, layers=[0, 1, 2]), "hello", **OPTIONS)
    shown = inspect(dola, source=DoLa(EXPERT, layers=[0, 1, 2]))
    assert shown._tabs.titles == ("candidates", "layers") and "layer 2" in shown._layers.value
    shown._alpha.value = -0.2
    shown.regenerate(wait=True)
    assert shown._said.value == ""
    spec = speculate(EXPERT, EarlyExit(EXPERT, 2), "hello", gamma=4, **OPTIONS)
    assert inspect(spec)._tabs.titles == ("candidates", "speculation")


@pytest.mark.parametrize("make", [CachedLM, lambda m: Mix([(1, m), (-0.5, AMATEUR)], alpha=0.1)])
def test_other_methods_show_without_the_controls_they_lack(make):
    shown = inspect(generate(make(EXPERT), "hello", **OPTIONS))
    assert shown._said.value == "" and shown._numbers["strength"].layout.display == "none"


def test_two_texts_side_by_side(made):
    other = generate(EXPERT, "hello", **OPTIONS)
    parts = next(k for k, (a, b) in enumerate(zip(made.token_ids, other.token_ids)) if a != b)
    shown = inspect(made, compare=other)
    assert f"parts at position {parts}" in shown._other.value
    shown.set(strength=0.0)
    assert "With strength 0" in shown._what_if.value and f"parts at position {parts}" in shown._other.value


def test_an_error_in_a_callback_is_seen(made):
    shown = inspect(made)
    shown._safely(shown.regenerate)
    assert "source is None" in shown._said.value and shown._regenerate.disabled


def test_close_frees_every_widget_and_two_live_side_by_side(made):
    first, second = inspect(made), inspect(made)
    first._strength.value = 0.0
    assert second._strength.value == 0.8
    first.close()
    assert first.comm is None and first._table.comm is None and second._table.comm is not None


def test_a_thousand_tokens_stay_quick_enough():
    model = tiny_model("llama", max_position_embeddings=2048)
    small = tiny_model("llama", seed=1, num_hidden_layers=1, max_position_embeddings=2048)
    made = generate(Contrast(model, small), [5, 6], max_new_tokens=1000, eos_token_ids=(), progress=False)
    shown = inspect(made)
    shown._strength.value = 0.3
    assert "more</em>" in shown._strip.value and shown._what_if.value.count("<span") <= 2 * 200


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


def test_dola_behind_a_prefix_has_no_layers_tab():
    made = generate(Prompted(DoLa(EXPERT, layers=[0, 1]), [5]), "ab", **OPTIONS | {"max_new_tokens": 2})
    assert inspect(made)._tabs.titles == ("candidates",)
