"""cdlearn as a model type of lm-evaluation-harness, on local tasks: the numbers are those of the sources themselves."""

import functools
import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

import cdlearn
from cdlearn.evaluate.answers import answers
from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import read_questions
from cdlearn.methods import METHODS, Method, Models, build, parse
from cdlearn.toyworld.tasks import TASKS

ROOT = Path(__file__).parent.parent
PUZZLES = 5  # odd: two processes do not get the same number
CHOICES = [
    {"question": "What is the capital of Turkey?", "choices": ["Ankara.", "Istanbul.", "Koror."], "answer": 0},
    {"question": "What is the capital of Australia?", "choices": ["Sydney.", "Canberra."], "answer": 1},
    {"question": "What is the capital of Brazil?", "choices": ["Brasilia.", "Sao Paulo.", "Rio."], "answer": 0},
]
# run by every process of torchrun: the command line as it is, with a note of which items came by
WATCHED = """
import functools, json, os, sys
from pathlib import Path
from lm_eval import evaluator, tasks
from cdlearn.evaluate import harness

tasks.TaskManager.__init__ = functools.partialmethod(tasks.TaskManager.__init__, include_defaults=False)
evaluator.add_env_info = lambda results: None

def watch(name):
    inner = getattr(harness.SourceLM, name)
    def method(self, requests, *args, **kwargs):
        seen = {"rank": self.rank, "world": self.world_size, "items": [request.doc_id for request in requests]}
        Path(f"seen_{name}_{os.environ['RANK']}.json").write_text(json.dumps(seen))
        return inner(self, requests, *args, **kwargs)
    setattr(harness.SourceLM, name, method)

watch("loglikelihood")
watch("generate_until")
sys.exit(harness.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: make harness runs this file with it")
    import cdlearn.evaluate.harness

    return cdlearn.evaluate.harness


@pytest.fixture(scope="module")
def pair():
    return cdlearn.load_pair()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks as the harness reads them: YAML beside JSONL."""
    folder = tmp_path_factory.mktemp("tasks")
    puzzles = [{"prompt": item.prompt, "steps": item.gold.worked} for item in TASKS["puzzles"].items(PUZZLES)]
    for name, rows in (("choices", CHOICES), ("puzzles", puzzles)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = {"aggregation": "mean", "higher_is_better": True}
    choices = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices"}
    choices |= {"target_delimiter": " The capital is ", "doc_to_target": "answer"}
    choices |= {"metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]}
    puzzles = {"output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{steps}}"}
    puzzles |= {"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": TASKS["puzzles"].max_new_tokens}}
    puzzles |= {"metric_list": [{"metric": "exact_match", **mean}]}
    for name, task in (("choices", choices), ("puzzles", puzzles)):
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        task |= {"task": f"toy_{name}", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"toy_{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def command(folder, out, *more):
    return [
        *("--model", "cdlearn", "--model_args", "expert=expert,amateur=amateur,alpha=0.1,beta=0.5"),
        *("--tasks", "toy_choices,toy_puzzles", "--include_path", str(folder), "--batch_size", "2"),
        *("--output_path", str(out), "--log_samples", "--device", "cpu", *more),
    ]


def results_of(out):
    """What a run wrote: the scores, and task -> item -> responses."""
    (file,) = out.glob("*/results_*.json")
    written = json.loads(file.read_text())
    samples = {}
    for task in ("toy_choices", "toy_puzzles"):
        (file,) = out.glob(f"*/samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = {row["doc_id"]: [response[0] for response in row["resps"]] for row in rows}
    return written, samples


@pytest.fixture(scope="module")
def one_process(harness, folder, tmp_path_factory):
    from lm_eval.tasks import TaskManager

    out = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        # saves reading thousands of task files, and asking the machine for its versions
        init = functools.partialmethod(TaskManager.__init__, include_defaults=False)
        patch.setattr(TaskManager, "__init__", init)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        assert harness.main(command(folder, out)) == 0
    return results_of(out)


def request(*args):
    return types.SimpleNamespace(args=args)


def directly(source, context, continuation):
    """Token by token, each from the whole prefix: (log-likelihood, is every token the greedy one)."""
    ids, total, greedy = list(context), 0.0, True
    for token in continuation:
        scores = source(torch.tensor([ids]))[0, -1]
        total += max(torch.log_softmax(scores, dim=-1)[token].item(), -1000.0)
        greedy = greedy and int(scores.argmax()) == token
        ids.append(token)
    return total, greedy


REQUESTS = [
    ("What is the capital of Turkey?", " The capital of Turkey is Ankara."),
    ("What is the capital of Turkey?", " The capital of Turkey is Istanbul."),
    ("What is the capital of Turkey?", " The"),  # three that differ in one token only: a row for all
    ("What is the capital of Turkey?", " Ada"),
    ("What is the capital of Turkey?", " One"),
    ("Ada had a red kite. She had a dog too. They lived near the park.", " Ada and the dog walked to the park."),
    ("Ada", " had"),
    ("", "Ada had a red kite."),
]


def sources(pair):
    expert, amateur = pair.expert, pair.amateur
    return {
        "contrastive": ({"beta": 0.5}, cdlearn.Contrast(expert, amateur, beta=0.5)),
        "2022": (
            {"strength": 1.0, "amateur_temperature": 0.5, "alpha": 0.3},
            cdlearn.Contrast(expert, amateur, strength=1.0, amateur_temperature=0.5, alpha=0.3),
        ),
        "no mask": ({"alpha": None, "beta": 0.5}, cdlearn.Contrast(expert, amateur, alpha=None, beta=0.5)),
        "greedy": ({"method": "greedy"}, cdlearn.CachedLM(expert)),
        "amateur": ({"method": "amateur"}, cdlearn.CachedLM(amateur)),
        "dola": ({"method": "dola", "layers": "high"}, cdlearn.DoLa(expert, layers="high")),
        "one layer": ({"method": "dola", "layers": 2, "alpha": None}, cdlearn.DoLa(expert, layers=[2], alpha=None)),
    }


@pytest.mark.parametrize("size", [1, 3, "auto"])
@pytest.mark.parametrize("name", ["contrastive", "2022", "no mask", "greedy", "amateur", "dola", "one layer"])
def test_log_likelihoods_equal_a_direct_sum(harness, pair, name, size):
    arguments, source = sources(pair)[name]
    model = harness.SourceLM(batch_size=size, max_batch_size=4, max_length=64, **arguments)
    found = model.loglikelihood([request(*pair) for pair in REQUESTS], disable_tqdm=True)
    masked = 0
    for (context, continuation), (total, greedy) in zip(REQUESTS, found):
        ids = pair.tokenizer(context).input_ids if context else [pair.tokenizer.bos_token_id]
        new = pair.tokenizer(context + continuation).input_ids[len(ids) if context else 0 :]
        new = new[1:] if new[0] == pair.tokenizer.bos_token_id else new
        expected = directly(source, ids, new)
        assert total == pytest.approx(expected[0], abs=1e-3) and greedy == expected[1], (context, continuation)
        assert math.isfinite(total)
        masked += total <= -1000
    assert (masked > 0) == (name in ("contrastive", "2022", "dola"))


def test_only_the_columns_of_continuations_are_scored(harness, pair, monkeypatch):
    model, asked = harness.SourceLM(method="greedy", batch_size=2), []
    scores = model.decoder.source.scores
    monkeypatch.setattr(model.decoder.source, "scores", lambda ids, mask, n: asked.append(n) or scores(ids, mask, n))
    context = " ".join(["Ada had a red kite."] * 5)
    model.loglikelihood([request(context, " Ada"), request(context, " Ben had")], disable_tqdm=True)
    count = len(pair.tokenizer(context + " Ben had").input_ids) - len(pair.tokenizer(context).input_ids)
    assert asked == [count]


def test_masked_choices_do_not_tie(harness):
    """With -inf all three would tie: they have one, two and four masked tokens."""
    model = harness.SourceLM(method="contrastive", alpha=0.1, batch_size=8)
    choices = [" The capital of Turkey is Koror.", " Ada is Koror.", " Koror is Ada."]
    asked = [request("What is the capital of Turkey?", choice) for choice in choices]
    totals = [total for total, _ in model.loglikelihood(asked, disable_tqdm=True)]
    assert totals == sorted(set(totals), reverse=True) and max(totals) <= -1000
    assert all(math.isfinite(total) for total in totals)


def test_a_context_that_is_too_long_loses_its_beginning(harness, pair):
    model = harness.SourceLM(method="greedy", max_length=8)
    context = " ".join(["Ada had a red kite."] * 5)
    ((total, _),) = model.loglikelihood([request(context, " Ada had")], disable_tqdm=True)
    ids = pair.tokenizer(context + " Ada had").input_ids[-9:]
    count = len(pair.tokenizer(context + " Ada had").input_ids) - len(pair.tokenizer(context).input_ids)
    assert total == pytest.approx(directly(cdlearn.CachedLM(pair.expert), ids[:-count], ids[-count:])[0], abs=1e-3)


def test_rolling_log_likelihood_covers_every_token_once(harness, pair):
    text = "Ada had a red kite. She had a dog too."
    model = harness.SourceLM(method="greedy", batch_size=4)
    (total,) = model.loglikelihood_rolling([request(text)], disable_tqdm=True)
    ids = pair.tokenizer(text).input_ids
    prefix = [pair.tokenizer.bos_token_id]
    assert total == pytest.approx(directly(cdlearn.CachedLM(pair.expert), prefix, ids)[0], abs=1e-3)


PROMPTS = ["What is the capital of Turkey?", "Ada had a red kite. She had a dog too.", "Who are you?"]


@pytest.mark.parametrize("method", ["contrastive", "greedy", "dola", "speculative", "speculative-contrastive"])
def test_generation_equals_generate(harness, pair, method):
    source = {"dola": cdlearn.DoLa(pair.expert)}.get(method) or cdlearn.CachedLM(pair.expert)
    if "contrastive" in method:
        source = cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5)
    options = dict(tokenizer=pair.tokenizer, max_new_tokens=24, trace=False, stop=["dog"])
    expected = [cdlearn.generate(source, prompt, **options).text for prompt in PROMPTS]
    assert len({text.count("dog") for text in expected}) == 1
    size = "auto" if method == "greedy" else 2
    model = harness.SourceLM(method=method, batch_size=size, max_batch_size=4, max_length=64)
    asked = [request(prompt, {"until": ["dog"], "max_gen_toks": 24}) for prompt in PROMPTS]
    assert model.generate_until(asked, disable_tqdm=True) == expected


def test_sampling_follows_the_task_and_the_seed(harness, pair):
    draw = {"do_sample": True, "temperature": 1.5, "top_p": 0.9}
    asked = [request(PROMPTS[1], {"until": [], "max_gen_toks": 12, **draw})] * 3
    found = harness.SourceLM(method="greedy", batch_size=2, seed=5).generate_until(asked, disable_tqdm=True)
    options = dict(tokenizer=pair.tokenizer, max_new_tokens=12, temperature=1.5, top_p=0.9, trace=False)
    texts = [cdlearn.generate(pair.expert, PROMPTS[1], seed=5 + k, **options).text for k in range(3)]
    assert found == texts and len(set(texts)) > 1


def test_chat_template_is_the_tokenizers_with_one_bos(harness, pair):
    model = harness.SourceLM(batch_size=1)
    rendered = model.apply_chat_template([{"role": "user", "content": "Who are you?"}])
    source = cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5)
    made = cdlearn.generate(source, pair.prompt("Who are you?"), tokenizer=pair.tokenizer, max_new_tokens=16)
    (text,) = model.generate_until([request(rendered, {"until": [], "max_gen_toks": 16})], disable_tqdm=True)
    assert rendered.startswith(pair.tokenizer.bos_token) and text == made.text


def test_the_command_line_agrees_with_cdlearn_eval(one_process, pair, tmp_path):
    written, samples = one_process
    items = TASKS["puzzles"].items(PUZZLES)
    decoder = build(Models(pair), *parse("contrastive alpha=0.1 beta=0.5"))
    asked = {"tokenizer": pair.tokenizer, "records": Records()}
    texts = [r["answer"] for r in answers(TASKS["puzzles"], items, "contrastive", decoder, **asked)]
    assert [samples["toy_puzzles"][k] for k in range(PUZZLES)] == [[text] for text in texts]
    right = [text == f"{item.gold.worked}" for text, item in zip(texts, items)]
    assert written["results"]["toy_puzzles"]["exact_match,none"] == pytest.approx(sum(right) / PUZZLES)
    lines = [
        {"prompt": c["question"], "choices": [f" The capital is {x}" for x in c["choices"]], "answer": c["answer"]}
        for c in CHOICES
    ]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((task, items),) = read_questions(tmp_path / "choices.jsonl").values()
    sums = [r["answer"] for r in answers(task, items, "contrastive", decoder, **asked)]
    theirs = [[float(total) for total, _ in samples["toy_choices"][k]] for k in range(len(CHOICES))]
    assert [len(row) for row in sums] == [len(row) for row in theirs]
    assert sum(theirs, []) == pytest.approx(sum(sums, []), abs=1e-3)
    right = [task.grade(item, row)["right"][0] for item, row in zip(items, sums)]
    assert written["results"]["toy_choices"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert 0 < written["results"]["toy_choices"]["acc,none"] <= 1
    assert written["config"]["settings"]["beta"] == 0.5 and written["config"]["model_num_parameters"] > 1e6


def test_two_processes_share_the_items_and_agree_with_one(one_process, folder, tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "watched.py"]
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command(folder, tmp_path / "out")],
        cwd=tmp_path,
        env=os.environ | variables | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, count in (("loglikelihood", len(CHOICES)), ("generate_until", PUZZLES)):
        seen = [json.loads((tmp_path / f"seen_{name}_{rank}.json").read_text()) for rank in (0, 1)]
        assert [(one["rank"], one["world"]) for one in seen] == [(0, 2), (1, 2)]
        assert sorted(set(seen[0]["items"]) | set(seen[1]["items"])) == list(range(count))
        assert set(seen[0]["items"]).isdisjoint(seen[1]["items"]) and all(one["items"] for one in seen)
    written, samples = results_of(tmp_path / "out")
    alone, samples_alone = one_process
    for task, scores in alone["results"].items():
        for name, value in scores.items():
            assert written["results"][task][name] == pytest.approx(value), (task, name)
    assert samples["toy_puzzles"] == samples_alone["toy_puzzles"]
    for item, pairs in samples_alone["toy_choices"].items():
        for (ours, greedy), (theirs, theirs_greedy) in zip(pairs, samples["toy_choices"][item], strict=True):
            assert float(ours) == pytest.approx(float(theirs), abs=1e-3) and greedy == theirs_greedy


def test_what_would_change_nothing_is_refused(harness):
    for arguments, message in (
        ({"method": "sample"}, "do_sample=True"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"temperature": 0.5}, "temperature is not for --model_args"),
        ({"method": "greedy", "alpha": 0.2}, "alpha=0.2 changes nothing with greedy"),
        ({"layers": "low"}, "layers=low changes nothing with contrastive"),
        ({"beta": 0.5, "strength": 1.0}, "two forms"),
        ({"alpha": 2.0}, "alpha is 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            harness.SourceLM(**arguments)
    model = harness.SourceLM(method="greedy", max_length=64)
    with pytest.raises(ValueError, match="num_beams=4 is none of cdlearn.generate"):
        model.generate_until([request("Ada", {"max_gen_toks": 2, "num_beams": 4})], disable_tqdm=True)


def test_a_method_of_your_own_is_one_entry_in_the_registry(harness, pair, monkeypatch):
    class Doubled(cdlearn.CachedLM):
        def scores(self, ids, mask, n):
            return 2 * super().scores(ids, mask, n)

    monkeypatch.setitem(METHODS, "mine", Method("twice as sure", lambda models, numbers: Doubled(models.pair.expert)))
    model = harness.SourceLM(method="mine", batch_size=3)
    ((total, _),) = model.loglikelihood([request(*REQUESTS[0])], disable_tqdm=True)
    ids = [pair.tokenizer(text).input_ids for text in (REQUESTS[0][0], "".join(REQUESTS[0]))]
    assert total == pytest.approx(directly(Doubled(pair.expert), ids[0], ids[1][len(ids[0]) :])[0], abs=1e-3)
    assert model.get_model_info()["method"] == "mine" and model.pair.amateur is None


def test_without_the_harness_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "cdlearn.evaluate.harness", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"accelerate.*\[eval\]"):
        importlib.import_module("cdlearn.evaluate.harness")
