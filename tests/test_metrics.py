import itertools
import math
import unicodedata

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tiny import tiny_model

import cdlearn
from cdlearn.metrics import distinct_n, diversity, ngram_counts, perplexity, rep_n

TEXTS = st.lists(st.text("ab ", max_size=20), max_size=5)
LONG = " ".join("abcabdabcabe")


def reference(texts, n):
    """The published numbers, from their description: the last n-gram of every text is left out, two decimals."""
    rows = [text.split() for text in texts]
    grams = [[" ".join(row[i : i + n]) for i in range(len(row) - n)] for row in rows]
    total = sum(map(len, grams))
    return round(100 * (1 - sum(len(set(row)) for row in grams) / total), 2) if total else 0.0


def test_counts_inside_each_text_then_sums():
    assert rep_n(["a b a b", "c d"], 2) == pytest.approx(100 * (1 - 3 / 4))
    assert rep_n(["a b", "a b"], 2) == 0  # the same words in two texts repeat nothing


def test_empty_and_short_texts_repeat_nothing():
    for convention in ("textbook", "reference"):
        for texts in ([], [""], ["one"], ["one", ""]):
            assert rep_n(texts, 2, convention=convention) == 0
            assert diversity(texts, convention=convention) == 1


@given(TEXTS, st.integers(1, 4))
def test_is_a_percentage_and_ignores_the_order_of_texts(texts, n):
    assert 0 <= rep_n(texts, n) <= 100
    assert rep_n(texts, n) == rep_n(texts[::-1], n)


def test_reference_leaves_out_the_last_ngram_and_rounds():
    assert rep_n(["a b c a b"], 2) == 25
    assert rep_n(["a b c a b"], 2, convention="reference") == 0  # the repeated pair is the last one
    assert rep_n(["a b"], 2, convention="reference") == 0  # and there is nothing left
    assert rep_n(["a a a a a"], 2, convention="reference") == 66.67  # 1 of 3; textbook: 1 of 4
    assert rep_n(["a a a a a"], 2) == 75


@given(TEXTS, st.integers(1, 4))
def test_reference_is_the_published_count(texts, n):
    assert rep_n(texts, n, convention="reference") == reference(texts, n)


def test_diversity_by_hand():
    # pairs ab bc ca ab bd da ab bc ca ab be: 6 of 11; triples abc bca cab abd bda dab abc bca cab abe: 7 of 10;
    # fours abca bcab cabd abda bdab dabc abca bcab cabe: 7 of 9
    assert diversity([LONG]) == pytest.approx(6 / 11 * 7 / 10 * 7 / 9)
    assert diversity(["a b a b a"]) == pytest.approx(2 / 4 * 2 / 3 * 2 / 2)
    assert diversity(["a " * 200]) == pytest.approx(1 / 199 * 1 / 198 * 1 / 197)


def test_diversity_of_the_reference_rounds_before_the_product():
    texts = ["a b a b a b c", "a a b"]
    whole = [reference(texts, n) for n in (2, 3, 4)]
    assert all(0 < value < 100 for value in whole[:2])
    assert diversity(texts, convention="reference") == pytest.approx(
        (1 - whole[0] / 100) * (1 - whole[1] / 100) * (1 - whole[2] / 100), abs=1e-12
    )
    assert diversity(texts, convention="reference") != pytest.approx(diversity(texts), abs=1e-3)


@given(TEXTS, st.integers(2, 4))
def test_diversity_is_a_share_and_at_most_what_each_length_leaves(texts, n):
    value = diversity(texts)
    assert 0 < value <= 1
    assert value <= 1 - rep_n(texts, n) / 100 + 1e-12
    assert diversity(texts * 3) == pytest.approx(value)  # counted inside each text


def test_distinct_divides_by_words_and_pools_the_texts():
    assert distinct_n(["a b a b"], 1) == 2 / 4
    assert distinct_n(["a b a b"], 2) == 2 / 4  # three pairs, two distinct, four words: the paper's divisor
    assert distinct_n(["a b", "a b"], 1) == 2 / 4  # the second text says nothing new
    assert distinct_n(["a b", "a c"], 2) == 2 / 4  # no pair runs over the border of two texts
    assert distinct_n(("a  b\nc",), 1) == 1  # any whitespace separates


def test_distinct_of_nothing_and_of_one_word():
    assert distinct_n([], 1) == distinct_n([""], 1) == distinct_n([" "], 2) == 0
    assert distinct_n(["one"], 1) == 1
    assert distinct_n(["one"], 2) == 0
    assert distinct_n(["one"] * 50, 1) == 1 / 50


@given(TEXTS, st.integers(1, 4))
def test_distinct_is_a_share_that_copies_only_lower(texts, n):
    value = distinct_n(texts, n)
    assert 0 <= value <= 1
    assert distinct_n(texts + texts, n) == pytest.approx(value / 2)
    assert distinct_n(texts[::-1], n) == value


@given(st.text("ab ", max_size=20), st.integers(1, 4))
def test_one_text_has_one_count_behind_all_three(text, n):
    distinct, total = ngram_counts(text, n)
    assume(total)
    assert rep_n([text], n) == pytest.approx(100 * (1 - distinct / total))
    assert distinct_n([text], n) == pytest.approx(distinct / (total + n - 1))


def test_texts_may_come_from_an_iterator():
    assert diversity(text for text in ["a b a b a"]) == diversity(["a b a b a"]) < 1
    assert distinct_n((text for text in ["a a"]), 1) == 1 / 2


@pytest.mark.parametrize("metric", [lambda texts: rep_n(texts, 2), diversity, lambda texts: distinct_n(texts, 2)])
def test_bad_texts(metric):
    with pytest.raises(TypeError, match="texts is 'a b': pass a list"):
        metric("a b")
    with pytest.raises(TypeError, match="texts is None: pass a list"):
        metric(None)
    with pytest.raises(TypeError, match=r"texts\[1\] is None: pass strings"):
        metric(["a", None])


@pytest.mark.parametrize("metric", [rep_n, distinct_n, lambda texts, n: ngram_counts(texts[0], n)])
@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None])
def test_bad_n(metric, n):
    with pytest.raises((TypeError, ValueError), match="n is .*pass (a whole number|at least 1)"):
        metric(["a"], n)
    assert metric(["a b"], 10**30) in (0, (0, 0))


@pytest.mark.parametrize("text", [None, 3, b"ab", ["3"], [3.7], [True], {3}, {"a": 1}, iter([3]), torch.tensor(3)])
def test_counts_are_of_a_text_or_of_ids(text):
    with pytest.raises(TypeError, match="^text is .*lists of token ids"):
        ngram_counts(text, 2)
    assert ngram_counts(torch.tensor([3, 4, 3, 4]), 2) == ngram_counts((3, 4, 3, 4), 2) == (2, 3)


@given(TEXTS, st.integers(1, 4))
def test_tokens_are_counted_as_words_are(texts, n):
    rows = [[int(word.replace("a", "1").replace("b", "2")) for word in text.split()] for text in texts]
    assert rep_n(rows, n) == rep_n(texts, n) and diversity(rows) == diversity(texts)
    assert distinct_n(rows, n) == distinct_n(texts, n)
    assert rep_n(rows, n, convention="reference") == rep_n(texts, n, convention="reference")


# a text of its script, what it is counted as, and how many of these it has
SCRIPTS = {
    "Chinese": ("天是蓝的。", "天 是 蓝 的 。"),
    "Japanese": ("空は青い、パリ", "空 は 青 い 、 パ リ"),
    "Thai": ("ไก่จิ", " ".join("ไก่จิ")),
    "mixed": ("用Python写code", "用 Python 写 code"),
    "Korean": ("서울은 크다 ", "서울은 크다"),
    "Arabic": ("السماء زرقاء\n", "السماء زرقاء"),
    "Hindi": ("दिल्ली बड़ी है ", "दिल्ली बड़ी है"),
    "accents": ("e\u0301te\u0301 ", "été"),
    "code": ("for i in x:\n    f(i)\n", "for i in x: f(i)"),
    "emoji": ("😀🚀", "😀 🚀"),
    "one emoji each": ("👨‍👩‍👧👍🏽❤️🇩🇪❤️‍🔥", "👨‍👩‍👧 👍🏽 ❤️ 🇩🇪 ❤️‍🔥"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_words_of_every_script(name):
    text, words = SCRIPTS[name]
    count = len(words.split())
    assert ngram_counts(text, 1) == (count, count) and rep_n([text], 1) == 0 and distinct_n([text], 1) == 1
    assert ngram_counts(text * 9, 2) == (count, 9 * count - 1)
    assert rep_n([text * 9], 2) > 80 and diversity([text * 30]) < 0.01
    spaced = " ".join([words] * 9)
    for n in (2, 3, 4):  # the published code knows whitespace only
        assert rep_n([text * 9], n) == rep_n([spaced], n)
        assert rep_n([text * 9], n, convention="reference") == reference([text * 9], n)


def test_a_loop_inside_a_word_shows_over_tokens():
    for loop in ("BlueBlueBlue" * 9, "x=1;" * 9):
        assert rep_n([loop], 2) == 0 and diversity([loop]) == 1  # one word
        ids = [ord(letter) for letter in loop]
        assert rep_n([ids], 2) > 80 and diversity([ids]) < 0.01
        assert rep_n(torch.tensor([ids]), 2) == rep_n([tuple(ids)], 2) == rep_n([ids], 2)


ANY = st.text(st.characters(codec="utf-8"), max_size=30) | st.text("天是 กไ่e\u0301é👍🏽\u200d🇩🇪ab", max_size=30)


@given(ANY, st.integers(1, 5))
@example("🇩🇪" * 3, 1)
def test_any_text_has_a_share_that_unicode_forms_do_not_change(text, n):
    assert 0 <= rep_n([text], n) <= 100 and 0 < diversity([text]) <= 1 and 0 <= distinct_n([text], n) <= 1
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, text)
        assert ngram_counts(other, n) == ngram_counts(text, n) and distinct_n([other], n) == distinct_n([text], n)


@given(
    st.lists(
        st.text("abcßéдж한서مبअआ", min_size=1, max_size=5), unique_by=lambda word: unicodedata.normalize("NFC", word)
    )
)
def test_distinct_words_repeat_nothing(words):
    assert all(rep_n([" ".join(words)], n) == 0 for n in (1, 2, 3, 10**30))
    assert ngram_counts("\n".join(words), 1) == (len(words), len(words)) and diversity(["\t".join(words)]) == 1


@given(st.lists(st.sampled_from("天地玄黄กขคง😀🚀"), unique=True))
def test_distinct_characters_repeat_nothing_where_a_script_has_no_spaces(words):
    assert all(rep_n(["".join(words)], n) == 0 for n in (1, 2, 3))
    assert ngram_counts("".join(words), 1) == (len(words), len(words))


@pytest.mark.parametrize("metric", [lambda texts: rep_n(texts, 2), diversity, lambda texts: distinct_n(texts, 2)])
@pytest.mark.parametrize("bad", [[["3"]], [[3.7]], [[True]], [[3], {4}], [[3], 4]])
def test_ids_are_whole_numbers(metric, bad):
    with pytest.raises(TypeError, match=r"texts\[[01]\] is .*lists of token ids"):
        metric(bad)
    with pytest.raises(TypeError, match="one kind"):
        metric(["a", [3]])


def test_bad_convention():
    for metric in (lambda **k: rep_n(["a"], 2, **k), lambda **k: diversity(["a"], **k)):
        with pytest.raises(ValueError, match="convention is 'paper': pass"):
            metric(convention="paper")


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities():
    model = tiny_model("llama", vocab_size=7)
    prompts, texts = [[1, 4], [5]], [[3, 3, 6], [4]]
    nats = []
    for prompt, text in zip(prompts, texts):
        with torch.no_grad():
            logp = model(torch.tensor([[*prompt, *text]])).logits[0].log_softmax(-1)
        nats += [-logp[len(prompt) - 1 + k, token].item() for k, token in enumerate(text)]
    expected = math.exp(sum(nats) / 4)
    assert perplexity(model, prompts, texts) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, prompts, texts, batch_size=1) == pytest.approx(expected, rel=1e-5)


def test_perplexity_over_all_continuations_is_a_distribution():
    """Every two-token text: the probabilities exp(-2 log perplexity) add up to one, for a masked source as well."""
    models = tiny_model("llama", vocab_size=6, seed=1), tiny_model("llama", vocab_size=6, seed=2)
    for source in (models[0], cdlearn.Contrast(*models), cdlearn.Contrast(*models, alpha=0.5)):
        values = [perplexity(source, [[1, 3]], [list(pair)]) for pair in itertools.product(range(6), repeat=2)]
        assert sum(value**-2 for value in values) == pytest.approx(1, abs=1e-5)
    assert math.inf in values  # what the mask drops cannot be said


def test_perplexity_of_empty_one_token_and_repeated_texts(tokenizer):
    model = tiny_model("llama")
    assert perplexity(model, [], []) == perplexity(model, ["a"], [""], tokenizer=tokenizer) == 1
    one = perplexity(model, ["ab"], ["c"], tokenizer=tokenizer)
    assert perplexity(model, ["ab", "x"], ["c", ""], tokenizer=tokenizer) == pytest.approx(one)  # "" adds nothing
    assert perplexity(model, ["ab"] * 3, ["c"] * 3, tokenizer=tokenizer) == pytest.approx(one, rel=1e-5)
    assert one == pytest.approx(perplexity(model, [tokenizer("ab").input_ids], [tokenizer("c").input_ids]), rel=1e-5)
    assert perplexity(model, ["ab "], ["c"], tokenizer=tokenizer) != pytest.approx(one)  # the space counts as text


def test_perplexity_prefers_what_the_model_says_itself():
    pair = cdlearn.load_pair()
    prompt = "Ada had a red ball."
    said = cdlearn.generate(pair.expert, prompt, tokenizer=pair.tokenizer, max_new_tokens=12).text
    own = perplexity(pair.expert, [prompt], [said], tokenizer=pair.tokenizer)
    assert 1 < own < perplexity(pair.expert, [prompt], [" ball ball ball"], tokenizer=pair.tokenizer)


def test_the_arguments_of_the_new_metrics_are_checked(tokenizer):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="prompts holds 2 and texts 1"):
        perplexity(model, ["a", "b"], ["a"], tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer is None"):
        perplexity(model, ["a"], ["b"])
    with pytest.raises(TypeError, match=r"prompts\[0\] and texts\[0\] are of two kinds"):
        perplexity(model, ["a"], [[3]], tokenizer=tokenizer)
    with pytest.raises(TypeError, match="prompts is 'a'"):
        perplexity(model, "a", ["b"], tokenizer=tokenizer)
    for bad in (["3"], [3.7]):
        with pytest.raises(TypeError, match=r"prompts\[0\] is"):
            perplexity(model, [bad], [[3]])
        with pytest.raises(TypeError, match=r"texts\[0\] is"):
            perplexity(model, [[3]], [bad])
    for size in (-1, 0, 1.5, True, None):
        with pytest.raises((TypeError, ValueError), match=f"batch_size is {size}"):
            perplexity(model, [[3]], [[3]], batch_size=size)
    for bad in (-1, 97, 10**30):
        with pytest.raises(ValueError, match=rf"a token of prompts\[1\] is {bad}: pass"):
            perplexity(model, [[3], [bad]], [[3], [3]])
        with pytest.raises(ValueError, match=rf"a token of texts\[0\] is {bad}: pass"):
            perplexity(model, [[3]], [[3, bad]])
    with pytest.raises(ValueError, match="without a token"):
        perplexity(model, [[]], [[3]])
