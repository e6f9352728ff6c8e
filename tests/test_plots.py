"""Figures show the numbers of their trace, on the axes they are given, and change nothing else."""

import functools
import re
import subprocess
import sys

import matplotlib
import pytest
import torch
from conftest import character_tokenizer
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tiny import tiny_model

from cdlearn import CachedLM, Contrast, DoLa, generate, speculate
from cdlearn.show.html import texts_of
from cdlearn.show.plots import plot_layers, plot_rounds, plot_step, plot_strength, plot_strip, plot_trajectory
from cdlearn.trace.record import Recorder

OPTIONS = dict(max_new_tokens=8, eos_token_ids=(), progress=False)


@functools.cache
def models():
    return tiny_model("llama"), tiny_model("llama", seed=1)


@functools.cache
def contrast(**settings):
    source = Contrast(*models(), **{"alpha": 0.2} | settings)
    return generate(source, "what is $x$?\n", tokenizer=character_tokenizer(), **OPTIONS)


@functools.cache
def dola():
    return generate(DoLa(models()[0], layers=[2, 0, 1]), [5, 6], **OPTIONS).trace


@functools.cache
def spoken(temperature=1.0):
    expert, amateur = models()
    draft = Contrast(expert, amateur, alpha=None, strength=0.2)
    options = OPTIONS | {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    return speculate(expert, draft, "what", gamma=4, tokenizer=character_tokenizer(), **options)


def new_axes():
    return Figure(figsize=(6, 4)).subplots()


def written(ax):
    """Every text of the axes, drawn once so that ticks and legends are there."""
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    return [
        *(text.get_text() for text in ax.texts),
        *(label.get_text() for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]),
        *(text.get_text() for text in (legend.get_texts() if legend else [])),
        *(ax.get_title(), ax.get_xlabel(), ax.get_ylabel()),
    ]


DRAWN = {
    "strip": lambda ax: plot_strip(contrast(), ax=ax),
    "step": lambda ax: plot_step(contrast(), 2, ax=ax),
    "strength": lambda ax: plot_strength(contrast(), 2, ax=ax),
    "trajectory": lambda ax: plot_trajectory(contrast(), ax=ax),
    "layers": lambda ax: plot_layers(dola(), ax=ax),
    "rounds": lambda ax: plot_rounds(spoken(), ax=ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_where_it_is_told_and_changes_no_setting(name, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a library does not show"))
    before, open_figures, ax = dict(matplotlib.rcParams), plt.get_fignums(), new_axes()
    assert DRAWN[name](ax) is ax and (ax.has_data() or ax.patches)
    assert plt.get_fignums() == open_figures
    alone = DRAWN[name](None)
    assert alone is not ax and alone.figure.number in plt.get_fignums()
    alone.figure.canvas.draw()
    plt.close(alone.figure)
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(TypeError, match="ax is a ndarray: pass one matplotlib Axes"):
        DRAWN[name](plt.Figure().subplots(2))


@pytest.mark.parametrize("name", DRAWN)
def test_every_axis_is_named_and_token_texts_are_no_formulas(name, recwarn):
    ax = DRAWN[name](new_axes())
    text = written(ax)
    assert ax.get_title()
    assert ax.get_ylabel() or name == "step"
    labels = [*ax.get_yticklabels(), *ax.get_xticklabels(), *ax.texts]
    labels += ax.get_legend().get_texts() if ax.get_legend() else []
    assert all(not label.get_parse_math() for label in labels if "$" in label.get_text())
    assert "\n" not in "".join(text) and not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_token_of_dollar_signs_is_drawn_as_it_is():
    class Money:
        def convert_ids_to_tokens(self, token_id):
            return f" ${token_id}^$\n"

        def decode(self, token_ids, **_):
            return self.convert_ids_to_tokens(token_ids[0])

    import dataclasses

    for trace, draw in [
        (contrast().trace, lambda t, ax: plot_strip(t, ax=ax)),
        (contrast().trace, lambda t, ax: plot_step(t, 0, ax=ax)),
        (contrast(alpha=None).trace, lambda t, ax: plot_strength(t, 0, ax=ax)),
        (contrast().trace, lambda t, ax: plot_trajectory(t, ax=ax)),
        (dola(), lambda t, ax: plot_layers(t, ax=ax)),
        (spoken().trace, lambda t, ax: plot_rounds(t, ax=ax)),
    ]:
        ax = draw(dataclasses.replace(trace, tokenizer=Money()), new_axes())
        assert any("␣$" in text and "^$↵" in text for text in written(ax))  # and mathtext did not stumble over it


def test_a_step_shows_its_probabilities_its_cutoff_and_what_is_masked():
    trace, top = contrast(alpha=0.4).trace, 12
    masked = (trace.score[:, :top] == -float("inf")).sum(dim=1)
    position = next(p for p in range(8) if 0 < masked[p] < top and trace.rank[p] > 1)
    ax = plot_step(trace, position, top=top, ax=new_axes())
    expert = (trace.parts["expert"][position] - trace.normalisers["expert"][position]).exp()
    amateur = (trace.parts["amateur"][position] - trace.normalisers["amateur"][position]).exp()
    softmax = trace.score[position, :-1].softmax(0)
    columns = [*range(top)] + ([] if trace.rank[position] <= top else [97])
    widths = torch.tensor([bar.get_width() for bar in ax.patches], dtype=torch.float32)[: 3 * len(columns)]
    widths = widths.reshape(3, len(columns))
    assert torch.allclose(widths[0], expert[columns].float()) and torch.allclose(widths[1], amateur[columns].float())
    assert torch.allclose(widths[2, :top], softmax[:top].float())
    hatched = [bar.get_hatch() == "////" for bar in ax.patches[: len(columns)]]
    assert hatched == (trace.score[position, columns] == -float("inf")).tolist() and any(hatched)
    lines = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert lines == [pytest.approx(0.4 * float(expert[0]))]
    text = " ".join(written(ax))
    assert text.count("chosen") == 1 and text.count("masked") == sum(hatched) + 1  # and one in the legend
    chosen = next(word for word in ax.texts if "chosen" in word.get_text())
    assert f"{float(trace.score[position, -1]):+.2f}" in chosen.get_text()


def test_a_step_adds_a_chosen_token_from_further_down():
    trace = contrast(alpha=0.01).trace
    position = next(p for p in range(8) if trace.rank[p] > 2)
    ax = plot_step(trace, position, top=1, ax=new_axes())
    ax.figure.canvas.draw()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(names) == 2 and names[1] == texts_of(trace, [trace.token_ids[position]], 16)[0]


def test_a_step_without_an_amateur_shows_the_expert_alone():
    trace = generate(CachedLM(models()[0]), [5], **OPTIONS).trace
    ax = plot_step(trace, 0, ax=new_axes())
    assert len(ax.patches) == 8 and not [line for line in ax.lines if line.get_linestyle() == "--"]
    assert "amateur" not in " ".join(written(ax)) and "#" in " ".join(written(ax))


@pytest.mark.parametrize("settings", [{"strength": 0.6}, {"beta": 0.8}], ids=str)
def test_strength_marks_every_flip_point_on_the_envelope(settings):
    trace = contrast(alpha=0.002, **settings).trace
    position = max(range(8), key=lambda p: len(trace.flip_points(p).strength))
    spans = trace.flip_points(position).strength
    assert len(spans) >= 2
    ax = plot_strength(trace, position, ax=new_axes())
    high = ax.get_xlim()[1]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [span.start for span in spans[1:] if span.start < high] and dots
    text = written(ax)
    assert all(f"{dot:.2f}" in text for dot in dots)
    recorded = settings.get("strength", 0.8 / 1.8)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_color() == "#000000" and line.get_linestyle() == "--"][
        -1
    ] == pytest.approx(recorded)
    thick = next(line for line in ax.lines if line.get_linewidth() == 9)
    lines = [line for line in ax.lines if len(line.get_xdata()) == len(thick.get_xdata()) and line is not thick]
    best = torch.stack([torch.as_tensor(line.get_ydata()) for line in lines]).amax(dim=0)
    assert torch.allclose(torch.as_tensor(thick.get_ydata()), best)  # nothing is above the envelope
    styles = [(line.get_color(), line.get_linestyle()) for line in lines if not line.get_label().startswith("_")]
    assert len(styles) == len(set(styles)) and len({style for _, style in styles}) > 1
    named = [line.get_label() for line in lines if not line.get_label().startswith("_")]
    shown = dict.fromkeys(span.token_id for span in spans if span.start < high)
    assert named == texts_of(trace, list(shown), 16)


def test_the_trajectory_has_the_ranks_and_leaves_unknown_ones_out(monkeypatch):
    trace = contrast().trace
    lines = plot_trajectory(trace, ax=new_axes()).lines
    assert list(lines[0].get_ydata()) == trace.rank.tolist()
    assert list(lines[1].get_ydata()) == trace.ranks["amateur"].tolist()
    assert {line.get_marker() for line in lines} == {"o", "s"} and lines[0].get_linestyle() != lines[1].get_linestyle()
    ax = plot_trajectory(trace, ax=new_axes())
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] > ax.get_ylim()[1]  # rank 1 on top
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=4))
    few = generate(Contrast(*models(), strength=1.0, alpha=0.3), [5], **OPTIONS).trace.rescore(strength=0.0)
    unknown = few.ranks["amateur"] == 0
    drawn = torch.tensor(plot_trajectory(few, ax=new_axes()).lines[1].get_ydata())
    assert bool(unknown.any()) and torch.equal(drawn.isnan(), unknown)
    plain = generate(CachedLM(models()[0]), [5], **OPTIONS)
    assert len(plot_trajectory(plain, ax=new_axes()).lines) == 1


def test_a_long_trajectory_is_numbered_not_named():
    trace = generate(CachedLM(models()[0]), [5], **OPTIONS | {"max_new_tokens": 60}).trace
    ax = plot_trajectory(trace, ax=new_axes())
    assert ax.get_xlabel() == "position" and "#" not in "".join(written(ax))


def test_a_strip_has_a_box_for_every_token_and_bars_under_those_that_were_moved():
    trace = contrast().trace
    ax = plot_strip(trace, ax=new_axes())
    assert len(ax.texts) == len(trace)
    moved = sum(rank > 1 for rank in trace.rank.tolist())
    assert len(ax.patches) == len(trace) + moved
    gain = (trace.parts["expert"][:, -1] - trace.normalisers["expert"]) - (
        trace.parts["amateur"][:, -1] - trace.normalisers["amateur"]
    )
    boxes = [patch for patch in ax.patches if patch.get_height() > 0.5]
    blue = [patch.get_facecolor()[2] > patch.get_facecolor()[0] for patch in boxes]
    assert blue == [value > 0 for value in gain.tolist()]
    narrow = plot_strip(trace, width=6, ax=new_axes())
    assert narrow.get_ylim()[0] > ax.get_ylim()[0]


def test_layers_are_sorted_and_the_chosen_one_is_outlined():
    trace = dola()
    ax = plot_layers(trace, ax=new_axes())
    (image,) = ax.images
    assert torch.allclose(torch.tensor(image.get_array()), trace.details["divergences"][:, [1, 2, 0]].T.double())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
    outlined = [round(patch.get_y() + 0.5) for patch in ax.patches if to_hex(patch.get_edgecolor()) == "#ffffff"]
    assert outlined == trace.details["premature_layer"].tolist()
    assert len(ax.figure.axes) == 2 and ax.figure.axes[1].get_ylabel() == "JSD (nats)"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_have_a_cell_for_every_token_and_say_what_became_of_it(temperature):
    got = spoken(temperature)
    rounds = got.trace.rounds
    ax = plot_rounds(got, ax=new_axes())
    text = [word.get_text() for word in ax.texts]
    count = lambda mark: sum(word.startswith(mark) for word in text)  # noqa: E731
    kinds = [facts["next_kind"] for facts in rounds]
    assert count("✓ ") == got.stats["accepted"] > 0
    assert count("✗ ") == count("→ ") == kinds.count("residual") > 0
    assert count("+ ") == kinds.count("bonus") > 0
    assert len(ax.patches) == sum(len(facts["draft_ids"]) + (facts["next_id"] is not None) for facts in rounds)
    chances = [c for f in rounds for c in f["accept_probability"][: f["accepted"] + (f["next_kind"] == "residual")]]
    assert [word for word in text if re.fullmatch(r"\d\.\d\d", word)] == (
        [f"{c:.2f}" for c in chances] if temperature else []
    )
    assert f"{got.stats['accepted']} of {got.stats['drafted']}" in ax.get_title()
    legend = [word.get_text() for word in ax.get_legend().get_texts()]
    assert legend == ["✓ accepted", "✗ rejected", "dropped", "→ residual", "+ bonus"]


def test_what_cannot_be_drawn_is_refused_with_a_reason():
    untraced = generate(CachedLM(models()[0]), [5], **OPTIONS, trace=False)
    empty = Recorder().trace(0, [3], steps=0, settings={}, tokenizer=None)
    for draw in (
        plot_strip,
        plot_trajectory,
        plot_layers,
        plot_rounds,
        lambda t: plot_step(t, 0),
        lambda t: plot_strength(t, 0),
    ):
        with pytest.raises(ValueError, match="trace has no trace"):
            draw(untraced)
        with pytest.raises(TypeError, match="trace is a list: pass a Trace or a Generation"):
            draw([1])
    for draw, reason in [
        (lambda: plot_layers(contrast()), "has no layers: trace a DoLa"),
        (lambda: plot_rounds(contrast()), "no rounds: pass what speculate returned"),
        (lambda: plot_strength(dola(), 0), "has no strength: trace a Contrast"),
        (lambda: plot_trajectory(empty), "trace has no positions"),
        (lambda: plot_strip(generate(CachedLM(models()[0]), [5], **OPTIONS)), "metric is 'contrast gain', which this"),
        (lambda: plot_strip(contrast(), metric="loss"), "metric is 'loss'"),
        (lambda: plot_layers(empty), "trace has no positions"),
        (lambda: plot_step(contrast(), 8), "position is 8: the positions of this trace are 0 to 7"),
        (lambda: plot_step(contrast(), 0, top=0), "top is 0"),
    ]:
        with pytest.raises(ValueError, match=reason):
            draw()


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, cdlearn, cdlearn.show.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
