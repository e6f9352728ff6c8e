import itertools
import math

import pytest
import torch
from conftest import character_tokenizer
from tiny import ARCHITECTURES, tiny_model

import cdlearn
from cdlearn import metrics
from cdlearn.metrics import MASKED, choice_scores, encode_pair, token_log_probs

ROWS = [([1, 5, 9, 4], [8, 3]), ([6], [2]), ([1, 7], []), ([4, 4], [5, 5, 5, 9])]


def logits_of(model, prompt, new):
    """[len(new), V]: what the bare model says before every token of a continuation."""
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *new]])).logits[0, len(prompt) - 1 : -1].double()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_scores_as_the_bare_model_does(name):
    model = tiny_model(name)
    for size in (1, 3, 16):
        for (prompt, new), values in zip(ROWS, token_log_probs(model, ROWS, batch_size=size)):
            expected = logits_of(model, prompt, new).log_softmax(-1)[range(len(new)), new]
            assert values.shape == (len(new),)
            assert torch.allclose(values.double(), expected, atol=2e-4), (size, prompt)


@pytest.mark.parametrize("convention", ["textbook", "reference"])
def test_long_texts_are_scored_in_pieces(convention, monkeypatch):
    """Never a whole text's scores at once: five columns of one row here, and the same numbers."""
    source = cdlearn.Contrast(tiny_model("llama"), tiny_model("llama", seed=1))
    rows = [*ROWS, ([3, 4], list(range(5, 30)))]
    whole = token_log_probs(source, rows, convention=convention)
    monkeypatch.setattr(metrics, "_NUMBERS", 5 * 97)
    shapes, ask = [], source.scores
    monkeypatch.setattr(source, "scores", lambda ids, mask, n: shapes.append((len(ids), n)) or ask(ids, mask, n))
    for values, pieces in zip(whole, token_log_probs(source, rows, convention=convention)):
        assert torch.allclose(values, pieces, atol=1e-4)
    assert max(rows * n for rows, n in shapes) == 5


def by_hand(expert, amateur, prompt, new, *, alpha, strength, convention):
    """Contrastive multiple choice written out: the normalisation over the kept tokens, or over all of them."""
    total = 0.0
    for e, a, token in zip(logits_of(expert, prompt, new), logits_of(amateur, prompt, new), new):
        score = e.log_softmax(-1) - strength * a.log_softmax(-1)
        kept = [v for v in range(len(e)) if e[v] >= e.max() + math.log(alpha)]
        over = kept if convention == "textbook" else range(len(e))
        norm = math.log(sum(math.exp(score[v]) for v in over))
        total += float(score[token]) - norm if token in kept else -1000.0
    return total


@pytest.mark.parametrize("convention", ["textbook", "reference"])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_choices_of_a_contrast_by_hand(convention, alpha, tokenizer):
    expert, amateur = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    source = cdlearn.Contrast(expert, amateur, alpha=alpha, strength=0.7)
    prompt = tokenizer("Who?").input_ids
    best = tokenizer.decode(logits_of(expert, prompt, [3, 3])[0].argmax())
    choices = [best, "Ada", "Ben did", best + "x"]
    made = choice_scores(source, "Who?\n", choices, tokenizer=tokenizer, convention=convention)
    front, masked = tokenizer("Who?").input_ids, 0
    for choice, value in zip(choices, made):
        new = tokenizer("\n" + choice).input_ids
        expected = by_hand(expert, amateur, front, new, alpha=alpha, strength=0.7, convention=convention)
        assert value == pytest.approx(expected, abs=2e-3)
        masked += expected < -900
    assert masked and len(set(made)) == len(made)  # tokens were masked, and the choices do not tie


@pytest.mark.parametrize("convention", ["textbook", "reference"])
def test_choices_of_dola_by_hand(convention, tokenizer):
    model = tiny_model("llama", num_hidden_layers=4)
    settings = {} if convention == "textbook" else {"final_norm": False, "divergence": "reference"}
    source = cdlearn.DoLa(model, layers=[0, 2], **settings)
    prompt, new = tokenizer("Who?").input_ids, tokenizer(" Ada").input_ids
    with torch.no_grad():
        hidden = model(torch.tensor([prompt + new]), output_hidden_states=True).hidden_states
        norm = model.model.norm if convention == "textbook" else torch.nn.Identity()
        early = torch.stack([model.lm_head(norm(hidden[k]))[0, len(prompt) - 1 : -1] for k in (0, 2)])
    final = logits_of(model, prompt, new)
    expected = 0.0
    for at, token in enumerate(new):
        diverges = []
        for layer in early[:, at].double():
            p, q = final[at].softmax(-1), layer.softmax(-1)
            m = (p + q) / 2
            pairs = ((p, m), (q, m)) if convention == "textbook" else ((m, p), (m, q))
            diverges.append(sum(float((x * (x / y).log()).sum()) for x, y in pairs))
        layer = early[diverges.index(max(diverges)), at].double()
        score = final[at].log_softmax(-1) - layer.log_softmax(-1)
        kept = final[at] >= final[at].max() + math.log(0.1)
        logp = (score.masked_fill(~kept, -math.inf) if convention == "textbook" else score).log_softmax(-1)
        expected += float(logp[token]) if kept[token] else MASKED
    (value,) = choice_scores(source, "Who?", ["Ada"], tokenizer=tokenizer, convention=convention)
    assert value == pytest.approx(expected, abs=2e-3)


def test_all_texts_of_two_tokens_share_one_probability():
    """Exact enumeration: the textbook convention is a distribution over texts, masked tokens have none of it."""
    models = tiny_model("llama", vocab_size=7, seed=3), tiny_model("llama", vocab_size=7, seed=4)
    rows = [([1, 3], list(pair)) for pair in itertools.product(range(7), repeat=2)]
    for source in (models[0], cdlearn.Contrast(*models, alpha=0.3), cdlearn.DoLa(models[0], layers=[0, 1])):
        sums = torch.stack([values.sum() for values in token_log_probs(source, rows)])
        assert sums.exp().sum().item() == pytest.approx(1, abs=1e-5)
    reference = token_log_probs(cdlearn.Contrast(*models, alpha=0.3), rows, convention="reference")
    assert torch.stack([values.sum() for values in reference]).exp().sum() < 0.999  # the masked share is lost


def test_a_source_without_a_mask_has_one_convention():
    model = tiny_model("llama")
    for a, b in zip(token_log_probs(model, ROWS), token_log_probs(model, ROWS, convention="reference")):
        assert torch.equal(a, b)


def test_a_pair_is_encoded_as_one_text():
    pair = cdlearn.load_pair()
    prompt, new = encode_pair(pair.tokenizer, "Who has the ring? ", "Sam.")
    assert pair.tokenizer.convert_ids_to_tokens(new) == ["ĠSam", "."]  # the space belongs to the word
    assert prompt == pair.tokenizer("Who has the ring?").input_ids
    assert encode_pair(character_tokenizer(add_bos=True), "", "ab") == ([1], character_tokenizer()("ab").input_ids)
    assert encode_pair(character_tokenizer(), "", "a") == ([1], character_tokenizer()("a").input_ids)


def test_the_space_between_prompt_and_choice(tokenizer):
    model = tiny_model("llama")
    (one,) = choice_scores(model, "ab", ["cd"], tokenizer=tokenizer)
    assert choice_scores(model, "ab", [" cd"], tokenizer=tokenizer) == pytest.approx([one])
    assert choice_scores(model, "ab ", ["cd"], tokenizer=tokenizer) == pytest.approx([one])
    assert choice_scores(model, "ab\n", ["cd"], tokenizer=tokenizer) != pytest.approx([one])


def test_bad_arguments(tokenizer):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="convention is 'paper'"):
        token_log_probs(model, ROWS, convention="paper")
    with pytest.raises(ValueError, match=r"rows\[0\] has a prompt without a token"):
        token_log_probs(model, [([], [3])])
    for bad in (["3"], [3.7], 3, "3"):
        with pytest.raises(TypeError, match=r"rows\[1\] is"):
            token_log_probs(model, [([3], [3]), ([3], bad)])
    with pytest.raises(ValueError, match=r"a token of rows\[0\] is 97"):
        token_log_probs(model, [([3], [97])])
    with pytest.raises(ValueError, match=r"choices\[1\] is ' '"):
        choice_scores(model, "a\n", ["b", " "], tokenizer=tokenizer)
    nothing = character_tokenizer()
    nothing.bos_token = nothing.eos_token = None
    with pytest.raises(ValueError, match="no BOS or EOS"):
        encode_pair(nothing, "", "a")
