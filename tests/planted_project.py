"""Mistakes planted into the project: (the solution's grade_id, words that the hint must carry, the cell)."""

ASSIGNMENT = "06_project"

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
        rows.append({{"source": name, "hits": sum(int(h) for h, _ in grades), "of": {of}}})
    return rows
"""
_OF = "sum(int(of) for _, of in grades)"


def _source(scores):
    return _SOURCE.format(scores=scores)


PLANTED = [
    ("source", "it is a source of its own", _source("2 + e - 0 * a")),
    ("source", "a column does not know what follows it", _source("e - a + e.mean(1, True)")),
    ("source", "whatever was asked before", _source("e - a / self.calls")),
    ("source", "every row lets some token win", _source("(e - a).masked_fill(e < 1, -math.inf)")),
    ("source", "in a padded batch each row has its own scores", _source("e - self.amateur(ids, None, n)")),
    ("source", "scores are float, [B, n, V]", _source("(e - a)[:, -1]")),
    ("evaluate", "hits: what was right", _EVALUATE.format(most=2, of=_OF)),
    (
        "evaluate",
        "of: what there was to get right",
        _EVALUATE.format(most="TASKS[task].max_new_tokens", of="sum(int(h) for h, _ in grades)"),
    ),
]
