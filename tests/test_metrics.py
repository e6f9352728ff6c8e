import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdlearn.metrics import rep_n


def test_counts_inside_each_text_then_sums():
    assert rep_n(["a b a b", "c d"], 2) == pytest.approx(100 * (1 - 3 / 4))
    assert rep_n(["a b", "a b"], 2) == 0  # the same words in two texts repeat nothing


def test_empty_and_short_texts_repeat_nothing():
    assert rep_n([], 2) == rep_n([""], 2) == rep_n(["one"], 2) == 0


@given(st.lists(st.text("ab ", max_size=20), max_size=5), st.integers(1, 4))
def test_is_a_percentage_and_ignores_the_order_of_texts(texts, n):
    assert 0 <= rep_n(texts, n) <= 100
    assert rep_n(texts, n) == rep_n(texts[::-1], n)


def test_bad_input():
    with pytest.raises(TypeError, match="single string"):
        rep_n("a b", 2)
    with pytest.raises(ValueError, match="n is 0"):
        rep_n(["a"], 0)
