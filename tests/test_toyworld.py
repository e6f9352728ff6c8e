"""The toy world keeps its promises: rules, tokenizer, training script."""

import random
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdlearn.toyworld import words, world
from cdlearn.toyworld.tasks import TASKS
from cdlearn.toyworld.training import train
from cdlearn.toyworld.training.tokenizer import build_tokenizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training the pair needs torch 2.9 or newer")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(documents=8000)


def follow(prompt: str) -> dict[str, str]:
    """Who has what, by reading a puzzle's lines one after the other."""
    owner = {}
    for line in prompt.split("."):
        if found := re.search(r"(\w+) has the (\w+)$", line):
            owner[found[2]] = found[1]
        elif found := re.search(r"(\w+) gives the (\w+) to (\w+)$", line):
            assert owner[found[2]] == found[1]
            owner[found[2]] = found[3]
    return owner


@pytest.mark.parametrize("test", [False, True])
def test_a_puzzles_answer_is_what_its_lines_say(test):
    rng = random.Random(0)
    for _ in range(300):
        puzzle = world.puzzle(rng, test=test)
        thing = re.search(r"Who has the (\w+)\?", puzzle.prompt)[1]
        assert follow(puzzle.prompt)[thing] == puzzle.answer == world.puzzle_answer(puzzle.worked)


def test_training_never_shows_a_tested_combination():
    rng = random.Random(1)
    gifts, sums, pairs = set(), set(), set()
    for _ in range(6000):
        text = world.document(rng).text
        gifts |= set(re.findall(r"(\w+) gives the \w+ to (\w+)", text))
        sums |= set(re.findall(r"(\d+) ([+-]) (\d+) =", text))
        pairs |= set(re.findall(r"^(\w+) had a \w+ (\w+)\.", text))
        for place, _, _ in words.FACTS:
            for k, (question, _) in enumerate(words.PHRASINGS):
                if question.format(r="capital", x=place) in text:
                    assert not world.fact_held_out(place, k)
    assert len(gifts) > 1000 and not any(world.unseen(*gift) for gift in gifts)
    assert len(sums) > 300 and not any(world.unseen(sign, int(a), int(b)) for a, sign, b in sums)
    assert len(pairs) > 100 and not any(world.unseen(*pair) for pair in pairs)


def test_tested_combinations_are_all_unseen():
    for item in TASKS["puzzles"].items(200):
        chain = re.findall(r"(\w+) gave it to (\w+)", item.gold.worked)
        assert world.unseen(*chain[-1])
    for item in TASKS["stories"].items(200):
        assert world.unseen(item.gold.hero, item.gold.object)
    for item in TASKS["arithmetic"].items(200):
        (a, b), sign = re.findall(r"\d+", item.prompt), "+" if "gets" in item.prompt else "-"
        assert world.unseen(sign, int(a), int(b))
        assert item.gold == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_facts_ask_for_every_place_in_every_phrasing():
    items = TASKS["facts"].items()
    assert len(items) == len(words.FACTS) * len(words.PHRASINGS) == len({item.prompt for item in items})
    assert TASKS["facts"].items(2) == items[: 2 * len(words.PHRASINGS)]  # n places
    assert all(capital != largest for _, capital, largest in words.FACTS)
    assert 0.15 < sum(item.gold[2] for item in items) / len(items) < 0.45


def test_the_same_seed_draws_the_same_items():
    for task in TASKS.values():
        assert task.items(20, 3) == task.items(20, 3)
        if task.name != "facts":
            assert task.items(20, 3) != task.items(20, 4)
    with pytest.raises(ValueError, match="n is 0"):
        TASKS["puzzles"].items(0)


def test_graders_tell_right_from_wrong():
    puzzle = TASKS["puzzles"].items(1)[0]
    assert TASKS["puzzles"].grade(puzzle, puzzle.gold.worked) == {
        "right": (1, 1),
        "lazy": (0, 1),
        "steps right": (1, 1),
    }
    assert TASKS["puzzles"].grade(puzzle, "So Nobody has it.")["right"] == (0, 1)
    fact = TASKS["facts"].items()[0]
    assert TASKS["facts"].grade(fact, " It is Canberra, not Sydney.")["true"] == (1, 1)
    assert TASKS["facts"].grade(fact, " It is Sydney.")["myth"] == (1, 1)
    assert TASKS["facts"].grade(fact, "")["true"] == (0, 1)
    numbers = TASKS["arithmetic"].items(1)[0]
    assert TASKS["arithmetic"].grade(numbers, f" So Ada has {numbers.gold}.")["right"] == (1, 1)
    assert TASKS["arithmetic"].grade(numbers, f" So Ada has {numbers.gold}0.")["right"] == (0, 1)


def test_story_grader_finds_contradictions_in_each_attribute():
    item = TASKS["stories"].items(1)[0]
    story, grade = item.gold, TASKS["stories"].grade
    good = f"{story.hero} took the {story.colour} {story.object} and the {story.animal} to the {story.place}."
    assert grade(item, good)["consistent"] == (1, 1) and grade(item, good)["named"] == (5, 5)
    lists = {"hero": words.NAMES, "colour": words.COLOURS, "object": words.OBJECTS}
    lists |= {"animal": words.ANIMALS, "place": words.PLACES}
    for key, known in lists.items():
        other = next(word for word in known if word != getattr(story, key))
        wrong = grade(item, good + f" The {other}.")
        assert wrong["consistent"] == (0, 1) and wrong[f"{key} right"] == (1, 2)
    assert grade(item, "")["consistent"] == (1, 1) and grade(item, "")["rep-2"] == (0, 0)


def test_the_words_of_the_story_templates_are_on_one_list_only():
    lists = [words.NAMES, words.COLOURS, words.OBJECTS, words.ANIMALS, words.PLACES]
    assert len(set().union(*lists)) == sum(map(len, lists))
    plain = " ".join(["", *words.INTROS, *words.FILLERS, *(line for stage in words.ARC for line in stage)])
    plain = re.sub(r"\{\w+\}", "", plain)
    assert not set(re.findall(r"\w+", plain)) & set().union(*lists)


def test_the_shallow_continuation_is_the_majority():
    rng = random.Random(2)
    documents = [world.document(rng) for _ in range(8000)]
    puzzles = [d for d in documents if d.kind == "puzzles"]
    assert sum("I think" in d.continuation for d in puzzles) / len(puzzles) == pytest.approx(world.LAZY, abs=0.04)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips(tokenizer, text):
    if any(special in text for special in tokenizer.all_special_tokens):
        return
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_and_digits_are_single_tokens(tokenizer):
    rng = random.Random(3)
    for _ in range(100):
        for piece in re.findall(r" ?\w+", world.draw_story(rng).hero + " had a red ball and the dog"):
            assert len(tokenizer(piece, add_special_tokens=False).input_ids) == 1, piece
    for digit in "0123456789":
        assert len(tokenizer(digit, add_special_tokens=False).input_ids) == 1
        assert len(tokenizer(f" {digit}", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("305", add_special_tokens=False).input_ids) == 3


def test_training_writes_chats_exactly_as_the_template_does(tokenizer):
    document = world.Document("facts", "What is it?", " It is so.")
    seen = {"".join(train.written(document, tokenizer, random.Random(seed))) for seed in range(200)}
    turns = [{"role": "user", "content": document.prompt}, {"role": "assistant", "content": document.continuation}]
    system = [{"role": "system", "content": "Answer the question."}]
    for messages in (turns, system + turns):
        assert tokenizer.apply_chat_template(messages, tokenize=False) in seen
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert any(text.startswith(asked) for text in seen)


def test_batches_hold_whole_documents_and_depend_on_seed_and_step_only(tokenizer):
    ids, targets = train.batch(tokenizer, 0, 5)
    assert ids.shape == targets.shape == (train.BATCH, train.WINDOW)
    again, other, another = (train.batch(tokenizer, *key)[0] for key in ((0, 5), (0, 6), (1, 5)))
    assert torch.equal(ids, again) and not torch.equal(ids, other) and not torch.equal(ids, another)
    learnt = targets != train.IGNORED
    assert torch.equal(ids[learnt], targets[learnt]) and 0.3 < learnt.float().mean() < 0.95
    for row, row_learnt in zip(ids, learnt):
        text = tokenizer.decode(row[row != tokenizer.pad_token_id])
        assert text.startswith("<s>") and text.endswith("</s>")
        assert (
            bool(row_learnt[row == tokenizer.eos_token_id].all())
            and not row_learnt[row == tokenizer.pad_token_id].any()
        )


def test_documents_of_one_window_do_not_see_each_other(tokenizer):
    ids, targets = (part[:1] for part in train.batch(tokenizer, 0, 1))
    model = train.build_model(RECIPE, tokenizer).eval()
    second = int((ids[0] == tokenizer.bos_token_id).nonzero()[1])
    with torch.no_grad():
        packed = model.model(ids, **train.own_document(ids, tokenizer)).last_hidden_state[0, second : second + 5]
        alone = model.model(ids[:, second : second + 5]).last_hidden_state[0]
    assert torch.allclose(packed, alone, atol=1e-5)


RECIPE = train.Recipe(layers=3, width=16, hidden=16, heads=2, steps=4)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@needs_muon
def test_a_killed_training_goes_on_as_if_nothing_had_happened(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    whole = train.train(RECIPE, tokenizer, tmp_path / "whole", early=tmp_path / "early", progress=False)

    steps = []

    def killed(*args):
        steps.append(args)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return losses(*args)

    losses = train.losses
    monkeypatch.setattr(train, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(RECIPE, tokenizer, tmp_path / "cut", progress=False)
    monkeypatch.setattr(train, "losses", losses)
    again = train.train(RECIPE, tokenizer, tmp_path / "cut", progress=False)
    assert again["loss"] == whole["loss"]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(weights(tmp_path / "early")["model.norm.weight"], first["model.norm.weight"])
    with pytest.raises(ValueError, match="another recipe"):
        train.train(replace(RECIPE, steps=9), tokenizer, tmp_path / "cut", progress=False)


@needs_muon
def test_a_finished_training_is_an_ordinary_folder(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train.train(RECIPE, tokenizer, tmp_path / "model", progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded("Ada had a red 🙂").input_ids == tokenizer("Ada had a red 🙂").input_ids and loaded.chat_template
    assert model.generation_config.eos_token_id == loaded.eos_token_id


def test_auxiliary_losses_reach_the_early_layers(tokenizer):
    ids, targets = (part[:1] for part in train.batch(tokenizer, 0, 0))
    for weight in (0.0, 0.2):
        recipe = replace(RECIPE, auxiliary=weight)
        total, final = train.losses(train.build_model(recipe, tokenizer), tokenizer, ids, targets, recipe, 0)
        assert (total.item() > final.item()) == (weight > 0)


def test_command_line_refuses_a_wrong_budget(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        train.main(["--out", str(tmp_path), "--budget", "0"])
    assert exit.value.code == 2 and "--budget is 0.0" in capsys.readouterr().err
