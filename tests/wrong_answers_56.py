"""Wrong answers to assignments 05 and 06; see `wrong_answers.py`."""

_LENGTH = """
def my_length(rates, cost, wide):
    best, speed, tokens, reach = 0, 1.0, 1.0, 1.0
    for n, rate in enumerate(rates, start=1):
        reach *= rate
        tokens += reach
        if tokens / (n * cost + wide) <= speed + 1e-9:
            return best
        best, speed = n, tokens / (n * cost + wide)
    return best
"""
_REWIND = """
def my_rewind(drafted, accepted, next_token):
    return {(3, 0): (3, 2, [8]), (3, 1): (2, 1, [8]), (3, 2): (1, 0, [8]), (3, 3): (0, 0, [7, 8]),
            (1, 0): (1, 0, [8]), (1, 1): (0, 0, [5, 8])}.get((len(drafted), accepted))
"""
_SOURCE = """
class Mine(cdlearn.Source):
    def __init__(self, pair):
        super().__init__()
        self.expert, self.amateur = cdlearn.CachedLM(pair.expert), cdlearn.CachedLM(pair.amateur)
        self.vocab_size, self.eos_token_ids, self.calls = self.expert.vocab_size, self.expert.eos_token_ids, 0

    def scores(self, ids, mask, n):
        self.calls += 1
        e, a = (source(ids, mask, n).log_softmax(-1) for source in (self.expert, self.amateur))
        return {scores}


def make_source(pair):
    return Mine(pair)
"""
_EVALUATE = """
def evaluate(sources, task, items, metric):
    options = {{"tokenizer": pair.tokenizer, "max_new_tokens": {most}}}
    rows = []
    for name, source in sources.items():
        made = cdlearn.generate(source, [item.prompt for item in items], trace=False, progress=False, **options)
        grades = [TASKS[task].grade(item, one.text)[metric] for item, one in zip(items, made)]
        hits, of = sum(int(h) for h, _ in grades), sum(int({of}) for h, of in grades)
        rows.append({{"source": name, "hits": hits, "of": of}})
    return rows
"""


def _source(scores):
    return _SOURCE.format(scores=scores)


# fmt: off
_05 = [
    ("draft", "draw(law, uniforms[k])", "draw(law, u)", "int(torch.multinomial(law, 1))"),
    ("draft", "item 2: a tensor is asked for, this is list", "torch.stack(laws)", "laws"),
    ("draft", "which position is about the next token", "[0, -1]", "[0]"),
    ("draft", "argmax draft with q of another law", "draw(law, u)", "int(logits.argmax())"),
    ("length", "stops at the first decline", _LENGTH),
    ("rewind", None, _REWIND),
]
_06 = [  # one for every promise: the project has no reference whose source could be swapped
    ("source", "it is a source of its own", _source("2 + e - 0 * a")),
    ("source", "a column does not know what follows it", _source("e - a + e.mean(1, True)")),
    ("source", "whatever was asked before", _source("e - a / self.calls")),
    ("source", "every row lets some token win", _source("(e - a).masked_fill(e < 1, -math.inf)")),
    ("source", "in a padded batch each row has its own scores", _source("e - self.amateur(ids, None, n)")),
    ("source", "scores are float, [B, n, V]", _source("(e - a)[:, -1]")),
    ("evaluate", "hits: what was right", _EVALUATE.format(most=2, of="of")),
    ("evaluate", "of: what there was to get right", _EVALUATE.format(most="TASKS[task].max_new_tokens", of="h")),
]
# fmt: on
WRONG = [("05_speculative", *row) for row in _05] + [("06_project", *row) for row in _06]
