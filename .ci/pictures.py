"""The diagrams of the course: `drawn()` computes them, `make pages` writes notebooks/pictures, a test compares.

Every number and word of a model comes from the embedded pair, here and now. Roles keep their colours: the expert and
the target blue, the amateur and the draft orange, the contrast green; a word or a mark says the same without colour.
Pages are 680 units wide with letters of 21 and more, so that they can be read on a phone, 360 pixels wide.
"""

import functools
import html
import json
import re
from pathlib import Path

import matplotlib
import torch
from PIL import ImageFont

import cdlearn
import cdlearn.hf
from cdlearn.scores import contrastive_scores, dola_scores, js_divergence, plausibility_mask
from cdlearn.show.style import BLUE, GREEN, ORANGE, SKY
from cdlearn.toyworld.tasks import TASKS

FOLDER = Path(__file__).parent.parent / "notebooks"
WIDTH, WIDE, LETTER = 680, 640, 22
STYLE = (Path(__file__).parent / "pictures.css").read_text(encoding="utf-8")
for name, colour in {"BLUE": BLUE, "ORANGE": ORANGE, "GREEN": GREEN, "SKY": SKY}.items():
    STYLE = STYLE.replace(name, colour)
DEFS = """<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">
<path class="tip" d="M 0 0 L 10 5 L 0 10 z"/></marker>
<pattern id="cut" width="9" height="9" patternUnits="userSpaceOnUse"><path class="cut" d="M0 9 9 0"/></pattern>"""


@functools.cache
def font(kind: str, size: int) -> ImageFont.FreeTypeFont:
    """A wide font, of which the length is taken: what fits with it fits with a reader's."""
    name = "DejaVuSansMono" if "mono" in kind else "DejaVuSans-Bold" if "name" in kind else "DejaVuSans"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def text(x: float, y: float, words: str, kind: str = "ink", room: float = WIDE, at: str = "start", size: int = LETTER):
    """One line of text, which must fit into its room; kind: classes of the style."""
    assert font(kind, size).getlength(words) <= room, f"{words!r} is longer than {room}"
    anchor, letters = f' text-anchor="{at}"' * (at != "start"), f' font-size="{size}"' * (size != LETTER)
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}{letters}>{html.escape(words, quote=False)}</text>'


def wrapped(words: str, room: float = WIDE, kind: str = "ink") -> list[str]:
    rows = [""]
    for word in words.split():
        longer = f"{rows[-1]} {word}".strip()
        rows[-1:] = [longer] if font(kind, LETTER).getlength(longer) <= room else [rows[-1], word]
    return rows


def lines(x: float, y: float, words: str, kind: str = "ink", room: float = WIDE) -> str:
    """Text over several lines, 28 units each."""
    return "\n".join(text(x, y + 28 * k, row, kind, room) for k, row in enumerate(wrapped(words, room, kind)))


def box(x: float, y: float, wide: float, high: float, kind: str = "box", more: str = 'rx="8"') -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" {more}/>'


def cell(x: float, y: float, wide: float, words: str, kind: str = "box", high: float = 46) -> str:
    """A word in a box. kind: a role; box, track; dash, for what is left out; cut, hatched with a clear ground."""
    ink = {"dash": "quiet", "box": "ink", "track": "ink", "cut": "ink"}.get(kind, f"on{kind}")
    rows = [box(x, y, wide, high, {"dash": "box dash", "cut": "box"}.get(kind, kind))]
    if kind == "cut":
        length = round(font("", LETTER).getlength(words)) + 8
        rows += [box(x, y, wide, high, "", 'rx="8" style="fill: url(#cut)"')]
        rows += [box(x + (wide - length) / 2, y + high / 2 - 15, length, 30, "page", 'rx="4"')]
    return "\n".join([*rows, text(x + wide / 2, y + high / 2 + 8, words, ink, wide - 6, "middle")])


def bar(x: float, y: float, wide: float, share: float, kind: str) -> str:
    """A share of a track, at least a trace of it."""
    return box(x, y, wide, 22, "track", "") + box(x, y, max(2, round(wide * share)), 22, kind, "")


def bars(x: float, y: float, label: str, share: float, printed: str, kind: str, gap: int = 64, wide: int = 130) -> str:
    """A word, a bar and its number, in one line."""
    after = x + gap + wide + 10
    words = text(x, y + 18, label, "ink mono", gap - 2) + text(after, y + 18, printed, room=664 - after)
    return words + bar(x + gap, y, wide, share, kind)


def arrow(*points: tuple[float, float], kind: str = "line") -> str:
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{kind}" d="M {path}" marker-end="url(#tip)"/>'


def page(high: float, title: str, story: str, *parts: str) -> str:
    """One picture: its title and its story are for those who hear it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high:g}" role="img" aria-labelledby="title" '
    head += f'aria-describedby="story" font-family="system-ui, sans-serif" font-size="{LETTER}">\n'
    head += f'<title id="title">{html.escape(title)}</title>\n<desc id="story">{html.escape(story)}</desc>\n'
    head += f"<style>\n{STYLE}</style>\n<defs>{DEFS}</defs>\n"
    return "\n".join([head + box(0, 0, WIDTH, high, "page"), *parts, "</svg>\n"])


@functools.cache
def pair() -> cdlearn.Pair:
    return cdlearn.load_pair(progress=False)


@torch.inference_mode()
def logits(model: torch.nn.Module, prompt: str) -> torch.Tensor:
    """What a model expects after a text: [V]."""
    return model(**pair().tokenizer(prompt, return_tensors="pt")).logits[0, -1].float()


def word(token: int) -> str:
    return pair().tokenizer.decode([int(token)]).strip()


def token_of(name: str) -> int:
    return pair().tokenizer(" " + name, add_special_tokens=False).input_ids[0]


def generated(source: object, prompt: str) -> cdlearn.Generation:
    return cdlearn.generate(source, prompt, tokenizer=pair().tokenizer, progress=False)


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def number(words: str) -> float:
    """What a printed number says: lengths follow from it, the same on every machine."""
    return float(words.replace("−", "-").strip("<"))


def shown(value: float) -> str:
    """A probability, to two decimals, or to three where it is small."""
    digits = 2 if round(float(value), 2) else 3
    return f"{value:.{digits}f}" if round(float(value), digits) else "<0.001"


def subtraction() -> str:
    """Two models, one subtraction: README, 00 and 01."""
    puzzle = TASKS["puzzles"].items(40)[0]
    models = {"expert": pair().expert, "amateur": pair().amateur}
    sources = models | {"contrast": cdlearn.Contrast(*models.values(), strength=1.0)}
    texts = {name: generated(source, puzzle.prompt).text.strip() for name, source in sources.items()}
    right = {name: "✓" if TASKS["puzzles"].grade(puzzle, said)["right"][0] else "✗" for name, said in texts.items()}
    words = ["I", texts["contrast"].split()[0]]
    rows = {name: logits(model, puzzle.prompt).log_softmax(-1) for name, model in models.items()}
    probs = {name: [shown(row[token_of(w)].exp()) for w in words] for name, row in rows.items()}
    gains = [signed(rows["expert"][token_of(w)] - rows["amateur"][token_of(w)]) for w in words]
    scored = json.loads((Path(cdlearn.__file__).parent / "toyworld" / "pair" / "eval.json").read_text())["rows"]
    share = {(r["task"], r["strategy"]): round(r["value"]) for r in scored if r["metric"] == "right"}
    ours, alone = ([share[t, s] for t in ("puzzles", "arithmetic")] for s in ("contrastive beta=0.5", "greedy"))
    parts = [lines(20, 36, puzzle.prompt), arrow((170, 78), (170, 100)), arrow((510, 78), (510, 100))]
    for x, name, title in ((20, "expert", "Expert: strong"), (360, "amateur", "Amateur: weak")):
        parts += [box(x, 104, 300, 200), text(x + 16, 138, title, "ink name")]
        for k, (w, p) in enumerate(zip(words, probs[name])):
            parts.append(bars(x + 16, 160 + 40 * k, w, number(p) / 0.6, p, name))
        said = f"{texts[name]} {right[name]}"
        parts += [text(x + 16, 258, "alone it writes", "quiet"), text(x + 16, 286, said, room=276)]
    parts += [text(340, 216, "−", at="middle", size=36), text(340, 340, "=", at="middle", size=36)]
    parts += [box(20, 354, WIDE, 236), text(36, 388, "Contrast: log p(expert) − log p(amateur)", "ink name")]
    for k, (w, gain) in enumerate(zip(words, gains)):
        parts.append(bars(36, 410 + 40 * k, w, max(0, number(gain)) / 5, gain, "contrast", wide=400))
    parts += [text(36, 508, f"{words[1]} wins, and so does the text:", "quiet")]
    parts += [lines(36, 538, f"{texts['contrast']} {right['contrast']}", room=610)]
    told = f"On 500 puzzles {ours[0]}% are right instead of {alone[0]}%."
    lost = f"On 500 sums it loses: {ours[1]}% instead of {alone[1]}%."
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models.values()]
    note = f"The pair ships with the package: {sizes[0]:.1f} and {sizes[1]:.2f} million weights. "
    note += "First token: strength 1. The 500 items: beta 0.5."
    parts += [text(20, 628, told), text(20, 656, lost), lines(20, 690, note, "quiet")]
    story = f"The expert gives {' and '.join(words)} {' and '.join(probs['expert'])}, the amateur gives them "
    story += f"{' and '.join(probs['amateur'])}. The logarithms differ by {' and '.join(gains)}. {told} {lost}"
    return page(732, "Two models, one subtraction", story, *parts)


def speculative_round() -> str:
    """A round of speculation that rejects, and one that does not: notebook 07, rounds of its Figure 2."""
    options = {"tokenizer": pair().tokenizer, "gamma": 4, "max_new_tokens": 24, "temperature": 1.0, "progress": False}
    run = cdlearn.speculate(pair().expert, pair().amateur, TASKS["stories"].items(40)[0].prompt, seed=0, **options)
    rounds = [facts for facts in run.trace.rounds if len(facts["draft_ids"]) == 4]
    mixed = next(facts for facts in rounds if facts["next_kind"] == "residual" and 0 < facts["accepted"] < 3)
    full = next(facts for facts in rounds if facts["next_kind"] == "bonus")
    columns, wide, n = [20 + 130 * k for k in range(5)], 120, mixed["accepted"]
    drafts, new, bonus = [word(t) for t in mixed["draft_ids"]], word(mixed["next_id"]), word(full["next_id"])
    fates = ["accepted"] * n + ["rejected"] + ["dropped"] * (3 - n)
    looks = {"accepted": ("amateur", "✓ "), "rejected": ("cut", "✗ "), "dropped": ("dash", "")}
    parts = [text(20, 36, "1  The draft proposes four tokens, one by one", "ink name")]
    parts += [cell(x, 52, wide, w, "amateur") for x, w in zip(columns, drafts)]
    parts += [arrow((x + 60, 100), (x + 60, 126)) for x in columns[:4]]
    parts += [cell(20, 130, WIDE, "2  The target checks all of them in one pass", "expert")]
    parts += [arrow((x + 60, 178), (x + 60, 204)) for x in columns]
    parts += [cell(x, 208, wide, looks[fate][1] + w, looks[fate][0]) for x, w, fate in zip(columns, drafts, fates)]
    parts += [cell(columns[4], 208, wide, f"→ {new}", "expert")]
    fates, chances = [*fates, "resampled"], mixed["accept_probability"][: n + 1]
    parts += [text(x + 60, 282, fate, "ink", 126, "middle", 21) for x, fate in zip(columns, fates)]
    parts += [text(x + 60, 310, f"{chance:.2f}", "quiet", 126, "middle") for x, chance in zip(columns, chances)]
    parts.append(text(20, 346, "The number is min(1, p / q), the chance to be accepted.", "quiet"))
    parts.append(lines(20, 374, "After the first rejection the target draws a token from the residual.", "quiet"))
    parts.append(text(20, 454, "Another round: all four are accepted", "ink name"))
    parts += [cell(x, 470, wide, "✓ " + word(t), "amateur") for x, t in zip(columns, full["draft_ids"])]
    parts += [cell(columns[4], 470, wide, f"+ {bonus}", "expert")]
    fates = ["accepted"] * 4 + ["bonus"]
    parts += [text(x + 60, 544, fate, "ink", 126, "middle", 21) for x, fate in zip(columns, fates)]
    parts.append(lines(20, 580, "The same pass has already scored one more token, so it comes free.", "quiet"))
    story = (
        f"The draft proposes {', '.join(drafts)}. One pass: {n} are accepted, {drafts[n]} rejected, {new} drawn from "
    )
    story += f"the residual. In another round all four are accepted, and the target adds {bonus} as a bonus."
    return page(630, "A round of speculative sampling", story, *parts)


def cache() -> str:
    """What a key-value cache keeps: notebook 02."""
    columns, wide = [128 + 107 * k for k in range(5)], 100

    def row(y: float, name: str, words: list[str], *kinds: str) -> list[str]:
        kinds += ("box",) * (len(words) - len(kinds))
        cells = [cell(x, y, wide, w, kind) for x, w, kind in zip(columns, words, kinds)]
        return [text(20, y + 31, name, "ink", 106), *cells]

    old, kept, same = ["Rosa", "has", "the"], ["kept"] * 3, ["track"] * 3
    parts = [text(20, 36, "Append: a step feeds only the new token", "ink name")]
    parts += row(52, "text", [*old, "red", "ring"])
    parts += row(106, "cache", [*kept, "kept", "new"], *same, "track", "expert")
    parts += [text(20, 206, "Crop: a token taken back leaves the cache", "ink name")]
    parts += row(222, "text", [*old, "✗ red"], "box", "box", "box", "cut")
    parts += row(276, "cache", [*kept, "cut"], *same, "cut")
    parts += [arrow((498, 326), (498, 350)), text(516, 346, "crop(3)", "ink mono", 140)]
    parts += row(356, "text", [*old, "key"]) + row(410, "cache", [*kept, "new"], *same, "expert")
    parts += [text(20, 510, "Left padding: all rows end in the last column", "ink name")]
    parts += row(526, "row 1", [*old, "red", "ring"])
    parts += row(580, "row 2", ["pad", "pad", "Ada", "had", "a"], "dash", "dash")
    counted = [0, 0, 1, 1, 1]
    places = (torch.tensor(counted).cumsum(0) - 1).clamp(min=0).tolist()
    for y, name, values in ((656, "mask", counted), (688, "position", places)):
        parts.append(text(20, y, name, "quiet", 106))
        parts += [text(x + 50, y, str(value), "quiet", at="middle") for x, value in zip(columns, values)]
    parts.append(text(20, 728, "The mask and the positions are those of row 2.", "quiet"))
    story = "Append: four entries are kept, and one token is fed. Crop: the entry of a token taken back is cut. "
    story += f"Left padding: both rows end in the same column; the shorter has mask {counted}, positions {places}."
    return page(750, "The cache: append, crop, left padding", story, *parts)


def sources() -> str:
    """Any source in any loop: notebook 09."""
    left = {"CachedLM": "a model", "EarlyExit": "its first layers", "Prompted": "it reads more"}
    left |= {"Window": "it reads less", "TextSpace": "other tokens", "Lookup": "copies the text"}
    left |= {
        "Contrast": "expert − amateur",
        "DoLa": "last − early layer",
        "Mix": "any weighted sum",
        "Source": "your own",
    }
    right = {"generate": "token by token", "beam_search": "the best few texts", "speculate": "draft and check"}
    right |= {"as_causal_lm": "in transformers"}
    roles = {"CachedLM": "expert", "Contrast": "contrast", "DoLa": "contrast", "Mix": "contrast", "Source": "dash"}
    assert all(hasattr(cdlearn, name) or hasattr(cdlearn.hf, name) for name in left | right)
    parts = [text(20, 36, "Sources give scores", "ink name"), text(410, 36, "Loops choose tokens", "ink name", 262)]

    def part(x: float, y: float, name: str, says: str) -> list[str]:
        role = roles.get(name, "")
        strip = [box(x, y, 8, 62, role, "")] if role in ("expert", "contrast") else []
        words = [text(x + 18, y + 27, name, "ink mono", 212), text(x + 18, y + 53, says, "quiet", 212, size=21)]
        return [box(x, y, 236, 62, "box dash" if role == "dash" else "box"), *strip, *words]

    for k, facts in enumerate(left.items()):
        parts += [*part(20, 52 + 70 * k, *facts), arrow((258, 83 + 70 * k), (302, 83 + 70 * k))]
    for k, facts in enumerate(right.items()):
        parts += [arrow((378, 148 + 164 * k), (422, 148 + 164 * k)), *part(426, 117 + 164 * k, *facts)]
    parts += [box(306, 52, 68, 692, "track"), '<g transform="rotate(-90 340 398)">']
    parts += [text(340, 392, "scores(ids, mask, n)", "ink mono", at="middle")]
    parts += [text(340, 420, "[B, n, V]", "quiet mono", at="middle"), "</g>"]
    parts.append(text(20, 782, "Every source runs in every loop; Lookup only drafts.", "quiet"))
    story = (
        f"Sources: {', '.join(left)}. Loops: {', '.join(right)}. Between them is one function, scores(ids, mask, n)."
    )
    return page(806, "Any source plugs into any loop", story, *parts)


def mask() -> str:
    """A sure distribution and a hesitant one under the same threshold: notebook 03."""
    alpha, story, puzzle = 0.1, TASKS["stories"].items(8)[0].prompt, TASKS["puzzles"].items(250)[249].prompt
    said = generated(cdlearn.Contrast(pair().expert, pair().amateur, alpha=alpha, strength=1.0), story).text
    cases = {"Sure": story + " " + " ".join(said.split()[:6]), "Hesitant": puzzle}
    parts, told, y = [text(20, 36, "The cut: probability ≥ alpha × the best one", "ink name")], [], 52
    for title, prompt in cases.items():
        expert, amateur = logits(pair().expert, prompt), logits(pair().amateur, prompt)
        keep, probs, bare = plausibility_mask(expert, alpha), expert.softmax(-1), int((expert - amateur).argmax())
        order = [*expert.argsort(descending=True)[:4].tolist(), bare]
        winner = contrastive_scores(expert, amateur, alpha=alpha, strength=1.0).argmax().item()
        threshold, n = alpha * float(probs.max()), int(keep.sum())
        parts += [box(20, y, WIDE, 352), text(36, y + 34, f"{title}: {n} kept", "ink name")]
        parts.append(text(36, y + 66, f"… {' '.join(prompt.split()[-6:])} …", "quiet"))
        at = 130 + round(350 * number(shown(threshold)))
        for k, token in enumerate(order):
            here, p = y + 92 + 40 * k, shown(probs[token])
            verdict = "✗ cut" if not keep[token] else "✓ wins" if token == winner else "✓"
            kind, words = "expert" if keep[token] else "rest", f"{p}  {verdict}"
            parts.append(bars(36, here, word(token), number(p), words, kind, 94, 350))
        parts.append(text(474, y + 270, "bare difference's pick", "quiet", 350, "end", 21))
        parts.append(f'<path class="line dash" d="M {at} {y + 84} V {y + 300}"/>')
        parts.append(text(at - 4, y + 330, f"threshold {alpha:g} × {shown(probs.max())} = {threshold:.3f}", "ink", 500))
        told.append(f"{title}: {n} of {len(probs)} tokens kept, threshold {threshold:.3f}, best {shown(probs.max())}.")
        y += 372
    parts.append(lines(20, y + 18, "Sure: nothing is left to decide. Hesitant: the contrast decides.", "quiet"))
    return page(y + 60, "The plausibility mask as a cut", " ".join(told), *parts)


@torch.inference_mode()
def dola() -> str:
    """All layers through the head, and which one is subtracted: notebook 06."""
    prompt = "What is the capital of Turkey? The capital of Turkey is"
    ids = pair().tokenizer(prompt, return_tensors="pt").input_ids
    last, candidates = pair().expert.config.num_hidden_layers, cdlearn.DoLa(pair().expert, layers="low").layers
    exits = [cdlearn.EarlyExit(pair().expert, k) for k in range(1, last + 1)]
    rows = {k: source.scores(ids, None, 1)[0, -1].float() for k, source in enumerate(exits, 1)}
    far = {k: float(js_divergence(rows[last], rows[k])) for k in candidates}
    early, cities = max(far, key=far.get), ["Istanbul", "Ankara"]
    gains = dola_scores(rows[last], rows[early])
    parts = [lines(20, 36, prompt + " …"), text(20, 82, "layer", "quiet", 100), text(506, 82, "distance", "quiet")]
    parts += [text(x, 82, city, "quiet", 150) for x, city in zip((134, 320), cities)]
    for y, k in zip(range(94, 900, 44), sorted(rows, reverse=True)):
        role = {last: "expert", early: "amateur"}.get(k, "dash" if k in candidates else "box")
        parts.append(cell(20, y, 90, str(k), role, 36))
        for x, city in zip((134, 320), cities):
            p = shown(rows[k].softmax(-1)[token_of(city)])
            kind = role if role in ("expert", "amateur") else "rest"
            parts += [bar(x, y + 7, 110, number(p), kind), text(x + 120, y + 26, p, room=60)]
        words = f"{far[k]:.3f}" + "  farthest" * (k == early) if k in far else "(the last)" * (k == last)
        parts += [text(506, y + 26, words, room=170)] * bool(words)
    y = 94 + 44 * len(rows)
    parts += [text(340, y + 26, f"log p(layer {last}) − log p(layer {early})", "ink name", WIDE, "middle")]
    parts, best = [*parts, box(20, y + 42, WIDE, 100)], int(gains.argmax())
    for k, city in enumerate(cities):
        gain = signed(gains[token_of(city)])
        verdict = gain + "  ✓ chosen" * (token_of(city) == best)
        parts.append(bars(36, y + 60 + 42 * k, city, max(0, number(gain)) / 0.4, verdict, "contrast", 120, 280))
    note = f"Candidates: layers {candidates}. The one farthest from the last layer is the amateur."
    parts.append(lines(20, y + 178, note, "quiet"))
    told = f"The last of {last} layers prefers {word(rows[last].argmax())}. The farthest candidate is layer "
    told += f"{early} ({far[early]:.3f}). After the subtraction {word(best)} leads with {signed(gains[best])}."
    return page(y + 226, "DoLa: the amateur is an earlier layer", told, *parts)


def methods() -> str:
    """What is contrasted with what: notebook 09."""
    rows = [
        ("Contrastive decoding", "large model", "small model"),
        ("DoLa", "last layer", "earlier layer"),
        ("Context-aware decoding", "with the context", "without it"),
        ("Guidance", "with an instruction", "without it"),
        ("Early checkpoint", "after training", "a third of the way"),
        ("DExperts, proxy tuning", "large + small expert", "small anti-expert"),
    ]
    parts = [text(20, 36, "wanted", "quiet"), text(380, 36, "subtracted", "quiet")]
    for k, (name, wanted, against) in enumerate(rows):
        y = 52 + 98 * k
        parts += [text(20, y + 26, name, "ink name"), cell(20, y + 38, 280, wanted, "expert")]
        parts += [text(340, y + 70, "−", at="middle", size=30), cell(380, y + 38, 280, against, "amateur")]
    parts.append(lines(20, 670, "Always the same sum: weights times log p. Only what you weigh differs.", "quiet"))
    told = "; ".join(f"{name}: {wanted} minus {against}" for name, wanted, against in rows)
    return page(716, "What is contrasted with what", told + ".", *parts)


def strength() -> str:
    """All texts of one puzzle as the strength grows, chosen because it has several: notebook 10."""
    puzzle, task, spans, low = TASKS["puzzles"].items(120)[119], TASKS["puzzles"], [], 0.0
    while low < 1:  # to the next strength at which any token of the text would be another one
        run = generated(cdlearn.Contrast(pair().expert, pair().amateur, strength=low), puzzle.prompt)
        flips = [span for k in range(len(run.trace)) for span in run.trace.flip_points(k).strength]
        high = min(1.0, *(span.stop for span in flips if span.start <= low < span.stop))
        spans.append((low, high, run.text.strip()))
        low = high + 1e-6
    parts = [lines(20, 36, puzzle.prompt), text(20, 188, "strength"), text(150, 152, "0"), text(636, 152, "1")]
    for k, (low, high, said) in enumerate(spans):
        grade = task.grade(puzzle, said)
        fair = "every step is right" if grade["steps right"][0] else "right name, a step is wrong"
        verdict = f"✓ {fair}" if grade["right"][0] else "✗ wrong name"
        x, wide, y = 150 + round(500 * low), round(500 * high) - round(500 * low), 220 + 118 * k
        moving = f'rx="8" style="animation-delay: {3 * k}s"'
        parts += [cell(x, 162, wide, str(k + 1), "track" if k % 2 else "box", 40), box(20, y, WIDE, 106)]
        parts += [box(x, 162, wide, 40, "frame turn", moving), box(20, y, WIDE, 106, "frame turn", moving)]
        parts.append(text(36, y + 32, f"{k + 1}  {low:.2f} to {high:.2f}  {verdict}", "ink name", 610))
        parts.append(lines(36, y + 62, said, room=610))
    told = " ".join(f"Strength {low:.2f} to {high:.2f}: {said}" for low, high, said in spans)
    return page(226 + 118 * len(spans), "The text as the strength grows", told, *parts)


def course() -> str:
    """Fourteen notebooks, the two-hour path and what each needs: notebooks/README.md."""
    line = re.search(r"\*\*Two hours:\*\*.*", (FOLDER / "README.md").read_text("utf-8")).group()
    core = re.findall(r"\b\d\d\b", line)
    books = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))]
    places = {f"{k:02}": (20 + 340 * (k // 7), 56 + 98 * (k % 7)) for k in range(len(books))}
    parts, told = [text(20, 36, "★ the two-hour path", "ink name"), text(460, 36, "→ is read before", "quiet")], []
    for (number, (x, y)), book in zip(places.items(), books):
        first, star = "".join(book["cells"][0]["source"]), number in core
        title = re.search(rf"^# {number} · (.*)$", first, re.M).group(1)
        needs = re.findall(r"\]\((\d\d)_", re.search(r"Before this: .*?\. \[Glossary|$", first).group())
        parts += [box(x, y, 300, 74, "core" if star else "box"), *[text(x + 18, y + 62, "★")] * star]
        parts.append(text(x + 14, y + (32 if star else 45), number, "ink name"))
        parts.append(lines(x + 62, y + 59 - 14 * len(wrapped(title, 232)), title, room=232))
        told.append(f"{number} {title}" + f" (after {' or '.join(needs)})" * bool(needs) + ", two-hour path" * star)
        for left, top in map(places.get, needs):
            bend = 332 if top > y else 346
            around = [(left + 300, top + 20), (bend, top + 20), (bend, y + 54), (x, y + 54)]
            parts.append(arrow(*([(x + 150, top + 74), (x + 150, y)] if left == x else around)))
    parts.append(lines(20, 770, line.replace("*", "").removeprefix("- "), "quiet"))
    return page(812, "The map of the course", "; ".join(told) + ".", *parts)


DRAWN = {"subtraction": subtraction, "round": speculative_round, "cache": cache, "sources": sources, "mask": mask}
DRAWN |= {"dola": dola, "methods": methods, "strength": strength, "course": course}


def drawn() -> dict[str, str]:
    return {f"{name}.svg": draw() for name, draw in DRAWN.items()}
