"""The registry of methods: the command line, compare and the doctor know a method from it alone."""

import json

import pytest

import cdlearn
from cdlearn.cli.main import main
from cdlearn.methods import METHODS, OPTIONS, Method, Models, build, parse


class Shifted(cdlearn.Source):
    """A method of a reader: the expert's scores, the token after its favourite."""

    def __init__(self, expert, alpha):
        super().__init__()
        self.expert, self.settings = expert, {"method": "mine", "alpha": alpha}
        self.vocab_size, self.eos_token_ids = expert.vocab_size, expert.eos_token_ids
        self.max_positions, self.device = expert.max_positions, expert.device

    def scores(self, ids, mask, n):
        return self.expert.scores(ids, mask, n).roll(1, dims=-1)


@pytest.fixture
def mine(monkeypatch):
    """A method that the package has never heard of."""
    method = Method("a method of mine", lambda models, n: Shifted(models.expert, n["alpha"]), ("alpha", "temperature"))
    monkeypatch.setitem(METHODS, "mine", method)
    pair = cdlearn.load_pair()
    return cdlearn.generate(
        Shifted(cdlearn.CachedLM(pair.expert), 0.1), "Ada", tokenizer=pair.tokenizer, max_new_tokens=6, progress=False
    )


def printed(capsys, *argv):
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as end:
        code = end.code
    out = capsys.readouterr()
    assert not code, out.err
    return out.out


def test_a_new_method_is_on_the_command_line(mine, capsys):
    short = ["--no-chat-template", "--max-new-tokens", "6"]
    record = json.loads(printed(capsys, "--prompt", "Ada", "--method", "mine", "--json", "--alpha", "0.3", *short))
    assert record["text"] == mine.text and record["settings"] == {"method": "mine", "alpha": 0.3, "temperature": 0.0}
    for command in ([], ["compare"]):
        assert "a method of mine" in printed(capsys, *command, "--help")
    records = json.loads(
        printed(capsys, "compare", "Ada", *short, "--format", "json", "--methods", "greedy", "mine alpha=0.2")
    )
    assert [record["text"] == mine.text for record in records] == [False, True]
    assert records[1]["settings"]["alpha"] == 0.2


def test_the_doctor_tries_every_method_and_names_one_that_is_wrong(mine, capsys, monkeypatch):
    (line,) = [line for line in printed(capsys, "doctor").splitlines() if line.split()[1] == "methods"]
    assert all(name in line for name in METHODS)

    class Forgetful(Shifted):  # its second call is wrong: a cache that is not what it says
        def scores(self, ids, mask, n):
            self.calls = getattr(self, "calls", 0) + 1
            return super().scores(ids, mask, n).roll(self.calls > 1, dims=-1)

    monkeypatch.setitem(METHODS, "mine", Method("wrong", lambda models, n: Forgetful(models.expert, 0.1)))
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BROKEN")]
    assert line.split()[1] == "mine"


def test_every_default_is_what_the_option_says_and_every_number_belongs_somewhere():
    pair = cdlearn.load_pair()
    for name, method in METHODS.items():
        decoder = build(Models(pair), name)
        for key, value in decoder.numbers.items():
            assert value == method.defaults.get(key, OPTIONS[key].default)
    assert {key for method in METHODS.values() for key in method.options} == set(OPTIONS)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("", "known are"),
        ("contrastiv", "contrastive?"),
        ("contrastive beta", "'beta'"),
        ("contrastive beta=x", "beta=x"),
        ("contrastive tau=1", "tau=1"),
        ("contrastive top_k=-1", "top_k=-1"),
        ("contrastive beta=1 amateur_temperature=2", "amateur_temperature=2"),
        ("dola beta=1", "beta=1"),
        ("dola choices=refrence", "choices=refrence"),
    ],
)
def test_a_wrong_spec_is_named(spec, names):
    with pytest.raises(ValueError, match=names.replace("?", "\\?")):
        parse(spec)


def test_a_spec_is_read():
    assert parse("contrastive beta=1 top_k=5") == ("contrastive", {"beta": 1.0, "top_k": 5})
    assert parse(" dola  layers=2,4 ") == ("dola", {"layers": "2,4"})
