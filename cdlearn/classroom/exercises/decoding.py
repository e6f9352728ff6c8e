"""The checks of notebooks 00 to 06: a student's answer in; "Right." out, or one sentence that says what to change.

A check builds its own inputs, never from the notebook's variables. A mistake is named only if it gives the student's
answer in every case: no reason is a guess.
"""

import functools
import math

import torch

import cdlearn
from cdlearn.classroom.exercises.core import called, exercise, explained, named
from cdlearn.scores import contrastive_scores, dola_scores, js_divergence, plausibility_mask
from cdlearn.toyworld.tasks import TASKS

pair = functools.cache(cdlearn.load_pair)


def rows(*shape, seed):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masked(scores, keep, fill=-math.inf):
    return scores.masked_fill(~keep, fill)


def bare(e, a, s=1.0, t=1.0):
    return e.log_softmax(-1) - s * (a / t).log_softmax(-1)


def scores_differ(scores, right):
    """What is wrong with scores [..., V] that no known mistake gives."""
    out = scores[~right.isfinite()]
    if len(out) and out.isfinite().all() and (out == out[0]).all():
        return f"The tokens outside the mask score {out[0]:g}: they must score -inf, which is -math.inf."
    if torch.equal(scores.isfinite(), right.isfinite()):
        return "The mask is right, but the scores inside it differ."
    return f"The mask differs: {scores.isfinite().sum()} tokens, not {right.isfinite().sum()}. Is each maximum over -1?"


# fmt: off
MASKS = {  # what keeps a token, wrongly; e, a: the expert's and the amateur's logits (06: the early layer's), x: alpha
    "There is no mask, or it looks at the difference: ask the expert first.": lambda e, a, x: e > -math.inf,
    "alpha is not used: the mask is that of 0.1, whatever is given.": lambda e, a, x: plausibility_mask(e, 0.1),
    "log10 is not the natural logarithm.": lambda e, a, x: e >= e.amax(-1, True) + math.log10(x),
    "No token passes the mask, not even the best: log(alpha) is at most 0, so add it.": (
        lambda e, a, x: e > e.amax(-1, True)),
    "alpha is subtracted where its logarithm should be added.": lambda e, a, x: e >= e.amax(-1, True) - x,
    "The threshold lies above the best token: add log(alpha), which is below 0.": (
        lambda e, a, x: e >= e.amax(-1, True) - math.log(x)),
    "A factor alpha becomes a sum: on logits, add log(alpha).": lambda e, a, x: e >= e.amax(-1, True) * x,
    "alpha is a share of the best token's probability, not a probability.": lambda e, a, x: e.softmax(-1) >= x,
    "The threshold is the amateur's: it belongs to the expert.": lambda e, a, x: plausibility_mask(a, x),
    "One maximum serves all rows: each row needs its own.": lambda e, a, x: e >= e.max() + math.log(x),
    "At alpha 1 the best token must stay: >=, not >.": lambda e, a, x: e > e.amax(-1, True) + math.log(x),
    "The maximum goes over the last dimension, -1.": lambda e, a, x: e >= e.amax(1, True) + math.log(x),
    "The mask is the wrong way round.": lambda e, a, x: ~plausibility_mask(e, x),
}
SCORES = {  # of 01; s: strength, t: tau
    "strength is not used: the scores are those of 1, whatever is given.": lambda e, a, s, t: bare(e, a, 1.0, t),
    "tau is not used: the scores are those of 1, whatever is given.": lambda e, a, s, t: bare(e, a, s),
    "tau multiplies the amateur's logits: divide.": lambda e, a, s, t: bare(e, a, s, 1 / t),
    "Probabilities are subtracted: take logarithms.": lambda e, a, s, t: e.softmax(-1) - s * (a / t).softmax(-1),
    "The amateur is added: subtract it.": lambda e, a, s, t: bare(e, a, -s, t),
    "The amateur is missing.": lambda e, a, s, t: bare(e, a, 0.0),
    "The signs are swapped: expert minus amateur.": lambda e, a, s, t: -bare(e, a, s, t),
    "The strength belongs to the amateur, not to the difference.": lambda e, a, s, t: s * bare(e, a, 1.0, t),
}
TWO = "The strength comes first, then the temperature."
NUMBERS = {  # of 04: strength, tau, T_E -> strength, T
    "tau is upside down: a small tau is a strong contrast.": lambda s, t, T: (s * t * T, T),
    "T divides the amateur's part too: make up for it in the strength.": lambda s, t, T: (s / t, T),
    "T_E is upside down in the strength.": lambda s, t, T: (s / t / T, T),
    "T is upside down: T_E divides log p_E, and so does T.": lambda s, t, T: (s * T / t, 1 / T),
    "expert_temperature is not used.": lambda s, t, T: (s / t, 1.0),
    "tau is not used.": lambda s, t, T: (s * T, T),
    "strength is not used.": lambda s, t, T: (T / t, T),
    TWO: lambda s, t, T: (T, s * T / t),
}
RECIPES = {  # of 05: beta, temperature -> strength, temperature
    "temperature is not used.": lambda b, T: (b / (1 + b), 1 / (1 + b)),
    "beta is not used.": lambda b, T: (1 / 3, T / 1.5),
    "Too warm: the logit form stretches the scores by 1 + beta.": lambda b, T: (b / (1 + b), T),
    "Too warm: a stretch by 1 + beta divides the temperature.": lambda b, T: (b / (1 + b), T * (1 + b)),
    "beta is not the strength: which share of log p_A goes, per log p_E?": lambda b, T: (b, T / (1 + b)),
    TWO: lambda b, T: (T / (1 + b), b / (1 + b)),
}
# fmt: on


@functools.cache
def _solves(tenths):
    puzzle, source = (
        TASKS["puzzles"].items(40)[7],
        cdlearn.Contrast(pair().expert, pair().amateur, strength=tenths / 10),
    )
    text = cdlearn.generate(source, puzzle.prompt, tokenizer=pair().tokenizer, trace=False, progress=False).text
    return TASKS["puzzles"].grade(puzzle, text)["right"][0]


@exercise
def check_my_strength(strength):
    """Notebook 00: the smallest strength, in steps of 0.1, that solves the puzzle."""
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        return "Not yet: set my_strength to 0.0, 0.1, 0.2, ... or 1.0, run its cell, then this one."
    tenths = round(10 * strength) if math.isfinite(strength) else -1
    if abs(tenths - 10 * strength) > 1e-6 or not 0 <= tenths <= 10:
        return f"{strength} is none of the steps: take 0.0, 0.1, 0.2, ... or 1.0."
    if not _solves(tenths):
        return f"At {tenths / 10} the answer is still wrong. Take more of the contrast."
    if any(_solves(less) for less in range(tenths)):
        return f"At {tenths / 10} the answer is right, but it is right with less as well."
    return f"Right: {tenths / 10} is where it turns."


@exercise
def check_my_scores(function):
    """Notebook 01: log p_E - strength * log p_A at tau, masked. A constant per row is accepted: no choice sees it."""

    def right(e, a, x, s, t):
        return contrastive_scores(e, a, alpha=x, strength=s, amateur_temperature=t)

    e, a = rows(2, 4, 30, seed=0), rows(2, 4, 30, seed=1)
    knobs = ((0.1, 1.0, 1.0), (0.1, 1.0, 0.5), (0.1, 0.4, 2.0), (0.7, 1.0, 1.0), (1e-3, 0.4, 0.5), (1.0, 1.0, 1.0))
    cases = [(e[0], a[0], *some) for some in knobs] + [(e, a, 0.1, 1.0, 1.0)]
    mistakes = {w: lambda e, a, x, s, t, f=f: masked(f(e, a, s, t), plausibility_mask(e, x)) for w, f in SCORES.items()}
    for says, keep in MASKS.items():
        mistakes[says] = lambda e, a, x, s, t, k=keep: masked(bare(e, a, s, t), k(bare(e, e, 0), bare(a / t, a, 0), x))
    mistakes["tau divides the expert's logits too: leave them."] = lambda e, a, x, s, t: right(e / t, a, x, s, t)
    mistakes["tau divides the expert's logits: it is the amateur's."] = lambda e, a, x, s, t: right(e / t, a, x, s, 1.0)
    explained(function, cases, right, mistakes, lambda mine, *case: scores_differ(mine, right(*case)))


@functools.cache
def question():
    """The prompt [1, T] of notebook 02's check, and four endings [1, n]."""
    words = (" Sydney.", " Canberra", " a very nice day.", " Canberra.")
    ids = functools.partial(pair().tokenizer, return_tensors="pt")
    prompt = ids("The capital of Australia is").input_ids
    return prompt, [ids(text, add_special_tokens=False).input_ids for text in words]


@functools.cache
@torch.inference_mode()
def around(model, crop):
    """For each ending the logits [n + 1, V] before its n tokens and after the last, and the tokens [n, 1]."""
    (prompt, endings), found = question(), []
    first = model(input_ids=prompt).logits[0, -1:]  # kept, whatever else is in the cache
    for k, ending in enumerate(endings):
        seen = torch.cat([prompt, *endings[: 0 if crop else k], ending], dim=1)
        logits = model(input_ids=seen).logits[0, -ending.shape[1] :]
        found.append((torch.cat([first, logits]), ending[0][:, None]))
    return found


def endings_by(count, crop=True):
    """A function like the student's, from what is around each ending."""
    return lambda model, *_: [count(logits, tokens).item() for logits, tokens in around(model, crop)]


@exercise
def check_score_endings(function):
    """Notebook 02: the log-probability of each ending, the prompt fed once."""

    def log_p(z, t):
        return z.log_softmax(-1).gather(-1, t)

    def otherwise(mine, *case):
        k, x, y = next((k, x, y) for k, (x, y) in enumerate(zip(mine, right(*case))) if abs(x - y) > 1e-3)
        return f"Ending {k} has {x:.3f}, expected {y:.3f}: which column predicts which token?"

    right = endings_by(lambda z, t: log_p(z[:-1], t).sum())
    # fmt: off
    mistakes = {
        "The ending before is still in the cache: crop its columns.": (
            endings_by(lambda z, t: log_p(z[:-1], t).sum(), crop=False)),
        "A column predicts the token after it; the prompt's last logits predict the first.": (
            endings_by(lambda z, t: log_p(z[1:], t).sum())),
        "The first token of each ending is missing: the prompt's last logits predict it.": (
            endings_by(lambda z, t: log_p(z[1:-1], t[1:]).sum())),
        "Take the sum over the tokens, not their mean.": endings_by(lambda z, t: log_p(z[:-1], t).mean()),
        "Raw logits are added: take log_softmax first.": endings_by(lambda z, t: z[:-1].gather(-1, t).sum()),
        "Probabilities are added: take log_softmax.": endings_by(lambda z, t: log_p(z[:-1], t).exp().sum()),
        "That is a probability: leave the logarithm.": endings_by(lambda z, t: log_p(z[:-1], t).sum().exp()),
        "model is not used: the expert is asked, whatever is given.": lambda model, *rest: right(pair().expert, *rest),
    }
    # fmt: on
    (prompt, endings), fed = question(), []

    def note(model, args, kwargs):
        fed.append((args[0] if args else kwargs["input_ids"]).numel())

    hook = pair().expert.register_forward_pre_hook(note, with_kwargs=True)
    try:
        called(function, pair().expert, prompt, endings)
    finally:
        hook.remove()
    if sum(fed) > (enough := prompt.numel() + sum(ending.numel() for ending in endings)):
        return f"{sum(fed)} positions were fed, {enough} are enough: is the prompt fed more than once?"
    cases = [(model, prompt, endings) for model in (pair().expert, pair().amateur)]
    explained(function, cases, right, mistakes, otherwise)


@exercise
def check_my_choice(function):
    """Notebook 03: the greedy choice of the contrast from raw logits."""

    def right(e, a, x, scores=torch.sub, fill=-math.inf, keep=plausibility_mask):
        return masked(scores(e, a), keep(e, x), fill).argmax(-1)

    def otherwise(mine, *case):
        return f"{int((mine != right(*case)).sum())} of {mine.numel()} choices differ at alpha {case[2]}."

    e, a = rows(200, 40, seed=0), rows(200, 40, seed=1)
    cases = [(e, a, x) for x in (0.1, 0.5, 1.0, 0.02)] + [
        (e, a + 50, 0.1),
        (e.view(2, 100, 40), a.view(2, 100, 40), 0.1),
    ]
    # fmt: off
    mistakes = {says: lambda e, a, x, k=k: masked(e - a, k(e, a, x)).argmax(-1) for says, k in MASKS.items()} | {
        "This is greedy decoding: the amateur is not used.": lambda e, a, x: e.argmax(-1),
        "Masked tokens get 0: a kept score may be below 0, so fill with -inf.": functools.partial(right, fill=0.0),
        "The signs are swapped: expert minus amateur.": functools.partial(right, scores=lambda e, a: a - e),
        "Probabilities are subtracted: take the logits as they are.": (
            functools.partial(right, scores=lambda e, a: e.softmax(-1) - a.softmax(-1))),
        "The amateur chooses among the kept tokens.": functools.partial(right, scores=lambda e, a: a),
    }
    # fmt: on
    explained(function, cases, right, mistakes, otherwise)
    e[:, 0], a[:, 0] = -math.inf, -math.inf
    if not torch.equal(called(function, e, a, 0.1), right(e, a, 0.1)):
        return "A token that both models forbid: -inf minus -inf is NaN. masked_fill takes it out, a product does not."
    short = [torch.tensor([row]).bfloat16() for row in ([20.0, 18.375, 0.0], [10.0, 0.0, 0.0])]
    if called(function, *short, 0.2).item() != 0:  # the threshold is 18.391, in 16 bits 18.375
        return "Right in 32 bits. In 16 bits the threshold is rounded: convert with float() first."


def _two(right):
    """What to say of two numbers (strength, temperature) that no known mistake gives."""

    def otherwise(mine, *case):
        if abs(mine[0] - right(*case)[0]) > 1e-3:
            return f"{named(right, case)}: the strength {mine[0]:.3f} gives another distribution."
        return f"{named(right, case)}: too {'cold' if mine[1] < right(*case)[1] else 'warm'}, at {mine[1]:.3f}."

    return otherwise


@exercise
def check_two_numbers(function):
    """Notebook 04: the strength and the temperature that do what strength, tau and T_E do."""

    def right(s, t, T):
        return s * T / t, T

    explained(function, [(1.0, 0.5, 1.0), (1.0, 1.0, 2.0), (0.5, 2.0, 0.7)], right, NUMBERS, _two(right))


@exercise
def check_translate(function):
    """Notebook 05: the logit form at beta and temperature, as a strength and a temperature."""

    def right(b, T):
        return b / (1 + b), T / (1 + b)

    explained(function, [(0.0, 0.7), (0.5, 1.0), (2.0, 0.5)], right, RECIPES, _two(right))


@exercise
def check_dola_batch(function):
    """Notebook 06: DoLa's scores and the chosen candidate, row by row."""

    def by(choose=lambda d: d.argmax(-1), score=dola_scores):
        def answer(final, early, alpha):
            chosen = choose(js_divergence(final[:, None], early)).expand(len(final))
            return score(final, early[torch.arange(len(final)), chosen], alpha=alpha), chosen

        return answer

    def otherwise(mine, *case):
        scores, chosen = by()(*case)
        same = torch.equal(mine[1], chosen)
        differ = f"The chosen candidates differ: {mine[1].tolist()} instead of {chosen.tolist()}."
        return scores_differ(mine[0], scores) if same else differ

    # fmt: off
    mistakes = {
        "One layer for all rows: the argmax goes over each row's candidates, not over their mean.": (
            by(lambda d: d.mean(0).argmax())),
        "One layer for all rows: that of the first row.": by(lambda d: d[0].argmax()),
        "That is the nearest layer. DoLa takes the farthest.": by(lambda d: d.argmin(-1)),
        "The signs are swapped: final minus early.": (
            by(score=lambda f, p, alpha: masked(bare(p, f), plausibility_mask(f, alpha)))),
    }
    # fmt: on
    for says, k in MASKS.items():
        mistakes[says] = by(score=lambda f, p, alpha, k=k: masked(bare(f, p), k(bare(f, f, 0), bare(p, p, 0), alpha)))
    final, early = rows(6, 20, seed=14), rows(6, 4, 20, seed=15)
    explained(function, [(final, early, alpha) for alpha in (0.3, 0.02, 1.0)], by(), mistakes, otherwise)
