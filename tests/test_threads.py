"""Threads: sources of one model do not disturb each other, and one source belongs to one thread at a time."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from architectures import model_of
from conftest import character_tokenizer
from test_sources import random_ids
from tiny import Interrupted, tiny_model

from cdlearn import (
    SLED,
    AdaCAD,
    CachedLM,
    Contrast,
    DoLa,
    EarlyExit,
    Mix,
    Prompted,
    TextSpace,
    Window,
    beam_search,
    generate,
    speculate,
)
from cdlearn.sources import Lookup, base

EXPERT, AMATEUR = tiny_model("llama").double(), tiny_model("gpt2", seed=1).double()
TOKENIZER = character_tokenizer()
PROMPTS = [random_ids(60 + k, 1, 4 + k % 5) for k in range(16)]
KINDS = {
    "CachedLM": lambda: CachedLM(EXPERT),
    "Contrast": lambda: Contrast(EXPERT, AMATEUR),
    "DoLa": lambda: DoLa(EXPERT, layers=[0, 1]),
    "SLED": lambda: SLED(EXPERT),
    "AdaCAD": lambda: AdaCAD(EXPERT, AMATEUR),
    "EarlyExit": lambda: EarlyExit(EXPERT, 2),
    "Mix": lambda: Mix([(1.5, EXPERT), (-0.5, AMATEUR)], alpha=0.1),
    "Prompted": lambda: Prompted(EXPERT, [7, 8, 9]),
    "Window": lambda: Window(EXPERT, 3),
    "TextSpace": lambda: Contrast(EXPERT, TextSpace(AMATEUR, TOKENIZER, TOKENIZER), alpha=0.5),
    "DoLa of EarlyExit's model": lambda: Contrast(DoLa(EXPERT, layers=[1]), EarlyExit(EXPERT, 1)),
}
FAMILIES = ("RWKV", "RecurrentGemma", "Phi 3, longrope", "Mamba 2")  # three of them change while they run
MODELS = {family: model_of(family) for family in FAMILIES}
KINDS |= {family: lambda family=family: CachedLM(MODELS[family]) for family in FAMILIES}


def in_threads(*works):
    """What each work gives, in a thread of its own, and the errors."""
    found, errors = [None] * len(works), []

    def run(k):
        try:
            found[k] = works[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(works))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return found, errors


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_runs_in_each_of_four_threads_equal_those_one_after_the_other(kind):
    make, options = KINDS[kind], dict(max_new_tokens=3, eos_token_ids=(), trace=False)
    source = make()

    def writes(one, other):  # alone, as the target of a speculation, and as its draft
        pairs = [(one, EarlyExit(EXPERT, 1)), (CachedLM(EXPERT), other if other.rewindable else Window(other, 9))]
        return lambda: (
            [generate(one, ids, **options).token_ids for ids in PROMPTS[:8]]
            + [speculate(*pairs[k % 2], ids, gamma=2, **options).token_ids for k, ids in enumerate(PROMPTS[8:])]
        )

    def team():
        return [writes(one, one.fork()) for one in (source, source.fork(), make(), make())]

    alone = [work() for work in team()]
    beside, errors = in_threads(*team())
    assert not errors and beside == alone and [len(runs) for runs in beside] == [16] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_use_is_refused_to_another_thread(kind):
    source, ids = KINDS[kind](), PROMPTS[0]
    calls = [lambda: source(ids), lambda: source.ask(ids), lambda: generate(source, ids, max_new_tokens=2),
             lambda: speculate(source, Lookup(), ids, max_new_tokens=2),
             lambda: beam_search(source, ids, max_new_tokens=2)]  # fmt: skip
    with source.alone():
        found, errors = in_threads(*calls)
        assert source.fork()(ids).shape == source(ids).shape  # this thread, and forks, go on
        assert in_threads(lambda: source.fork()(ids))[1] == []
    assert found == [None] * 5 and {type(error) for error in errors} == {RuntimeError}
    assert all("fork()" in str(error) and type(source).__name__ in str(error) for error in errors)
    assert in_threads(*calls[:1])[1] == [] and base._ASKED == {}


def test_a_whole_text_belongs_to_its_thread_from_the_first_token_on():
    started, go, source = threading.Event(), threading.Event(), CachedLM(EXPERT)

    def stream(text):
        started.set()
        assert go.wait(20)

    def write(**options):
        return generate(source, "abc", tokenizer=TOKENIZER, max_new_tokens=4, eos_token_ids=(), **options)

    want, made = write().token_ids, []
    thread = threading.Thread(target=lambda: made.append(write(stream=stream)))
    thread.start()
    assert started.wait(20)
    with pytest.raises(RuntimeError, match=r"CachedLM.*fork\(\)"):  # between two passes of the other thread
        source(PROMPTS[0])
    go.set()
    thread.join()
    assert made[0].token_ids == want and write().token_ids == want


def test_what_two_sources_share_is_guarded_too():
    amateur = CachedLM(AMATEUR)
    one, other = Contrast(EXPERT, amateur), Contrast(EXPERT, amateur)
    with amateur.alone():
        assert "GPT2LMHeadModel" in str(in_threads(lambda: one(PROMPTS[0]))[1][0])
    assert in_threads(lambda: one(PROMPTS[0]))[1] == in_threads(lambda: other(PROMPTS[0]))[1] == []


def test_the_guard_is_gone_after_errors_and_interrupts():
    source = CachedLM(EXPERT)
    with pytest.raises(ValueError):
        source(PROMPTS[0] + 97)
    with pytest.raises(ValueError):
        generate(source, PROMPTS[0], temperature=-1)
    assert generate(Interrupted(EXPERT), PROMPTS[0], max_new_tokens=9).finish_reason == "interrupted"
    held = source.alone()
    held.__enter__()  # an interrupt between here and the block
    del held
    gc.collect()
    assert base._ASKED == {} and in_threads(lambda: source(PROMPTS[0]))[1] == []


def test_threads_that_meet_in_one_source_get_right_answers_or_the_error():
    for make in (KINDS["CachedLM"], KINDS["Contrast"], KINDS["DoLa"]):
        source = make()

        def write(source=source):
            got = []
            for ids in PROMPTS:
                try:
                    made = generate(source, ids, max_new_tokens=4, eos_token_ids=())
                    got.append((made.token_ids, made.trace.to_frame()["expert_logit"].round(4).tolist()))
                except RuntimeError as error:
                    got.append(str(error))
            return got

        want, (found, errors) = write(), in_threads(write, write, write, write)
        assert not errors
        for runs in found:
            assert all("fork()" in got if isinstance(got, str) else got == right for got, right in zip(runs, want))


def test_sources_that_were_asked_are_copied_and_pickled_as_before():
    for kind in ("CachedLM", "Contrast", "EarlyExit", "Mix", "Prompted", "Window"):
        source = KINDS[kind]()
        want = source(PROMPTS[3])
        with source.alone():
            twins = copy.deepcopy(source), pickle.loads(pickle.dumps(source))
        for twin in twins:
            assert torch.allclose(twin(PROMPTS[3]), want) and in_threads(lambda twin=twin: twin(PROMPTS[3]))[1] == []
