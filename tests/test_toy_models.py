"""The checks' model with a cache behaves like a real one."""

import pytest
import torch
from transformers import DynamicCache

from cdlearn.classroom.checks.models import TOY as CHECKS_TOY
from cdlearn.classroom.checks.models import PositionLM, filled

TOY = PositionLM(8, CHECKS_TOY.steps)  # one of our own: the checks count what theirs is fed


def test_the_toy_says_the_sum_of_token_times_position():
    logits = TOY(torch.tensor([[3, 5, 5]])).logits  # 3, then 3 + 10, then 3 + 10 + 15: modulo 8
    assert logits.argmax(-1).tolist() == [[3, 5, 4]] and logits.topk(2).indices[0, 1].tolist() == [5, 6]


def test_the_toy_with_a_cache_equals_the_toy_without():
    ids, cache = torch.tensor([[3, 1, 4, 1, 5]]), DynamicCache(config=TOY.config)
    whole = TOY(ids).logits
    pieces = [TOY(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 2), (2, 3), (3, 5))]
    assert torch.equal(torch.cat(pieces, dim=1), whole) and cache.get_seq_length() == 5
    cache.crop(-3)
    assert torch.equal(TOY(ids[:, 2:], past_key_values=cache).logits, whole[:, 2:])
    assert filled([3, 1]).get_seq_length() == 2


def test_the_toy_needs_mask_and_positions_for_padding():
    row, padded = torch.tensor([[3, 2]]), torch.tensor([[7, 7, 3, 2]])
    mask, positions = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]])
    truth, model = TOY(row).logits[:, -1], PositionLM(8, TOY.steps)
    assert torch.equal(model(padded, attention_mask=mask, position_ids=positions).logits[:, -1], truth)
    assert not torch.equal(model(padded, attention_mask=mask).logits[:, -1], truth)
    assert not torch.equal(model(padded, position_ids=positions).logits[:, -1], truth)
    with pytest.raises(ValueError, match="attention_mask"):
        model(padded, attention_mask=mask[:, 1:])
    assert len(model.fed) == 4
