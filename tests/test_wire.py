"""The wire: every value comes back as it was, and nothing that arrives can run, grow, or fail in a way of its own."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from cdlearn.classroom.checks.models import TOY, filled
from cdlearn.classroom.grader.wire import DTYPES, LAYERS, Remote, Wire, line


def ends():
    """The grader's end and the student's, each asking the other directly."""

    def answer(other, own, request):
        if "call" in request:
            request["call"] = [own.pack(part) for part in request["call"]]
        request = json.loads(json.dumps(request))
        return own.unpack(json.loads(json.dumps(other.pack(other.use(request)))))

    here, there = Wire(None), Wire(None, find=lambda name: f"what is called {name}")
    here.ask = lambda request: answer(there, here, request)
    there.ask = lambda request: answer(here, there, request)
    return here, there


def travelled(value):
    """The value after a way from the grader to the student and back."""
    here, there = ends()
    return here.unpack(json.loads(line(there.pack(there.unpack(json.loads(line(here.pack(value))))))))


@st.composite
def tensors(draw):
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    whole = st.integers(0, 1 if dtype is torch.bool else 100)
    real = st.floats(width=16)
    count = math.prod(shape)
    numbers = draw(st.lists(real if dtype.is_floating_point else whole, min_size=count, max_size=count))
    return torch.tensor(numbers, dtype=dtype).reshape(shape)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS | tensors(),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inside, max_size=3)
        | st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), inside, max_size=3).map(
            lambda d: SimpleNamespace(**d)
        )
    ),
    max_leaves=8,
)


def alike(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, SimpleNamespace):
        return alike(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b or (a != a and b != b)


@given(VALUES)
def test_every_value_comes_back_as_it_was(value):
    assert alike(travelled(value), value)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_a_cache_comes_back_as_itself_with_what_the_other_side_added(tokens):
    here, there = ends()
    cache = filled(tokens)
    copy = there.unpack(json.loads(line(here.pack(cache))))
    more = torch.full((1, 1, 2, 1), 3.0)
    copy.update(more, more, 0)
    here.become(json.loads(line(there.changed())))
    assert here.unpack(json.loads(line(there.pack(copy)))) is cache
    assert cache.layers[0].keys.flatten().tolist() == [*map(float, tokens), 3.0, 3.0]


def test_what_is_no_data_stays_where_it_is_and_can_be_used_from_there():
    here, there = ends()

    class Model:
        width = 3

        def __call__(self, ids, *, scale=1):
            return SimpleNamespace(logits=ids * scale)

    model = Model()
    remote = there.unpack(json.loads(line(here.pack(model))))
    assert isinstance(remote, Remote) and type(remote).__name__ == "Model" and repr(remote) == "a Model"
    assert remote(torch.tensor([2]), scale=5).logits.tolist() == [10] and remote.width == 3
    assert here.unpack(json.loads(line(there.pack(remote)))) is model
    config = there.unpack(json.loads(line(here.pack(TOY.config))))
    assert isinstance(DynamicCache(config=config), DynamicCache)


def test_from_an_object_nothing_else_can_be_reached():
    here, there = ends()

    def helper():
        return 1

    number = here.pack(helper)["object"]
    for name in ("__globals__", "__class__", "_private", "__dict__"):
        with pytest.raises(AttributeError):
            here.use({"number": number, "get": name})
    with pytest.raises(KeyError):
        here.use({"number": number + 1, "call": [{"list": []}, {"dict": []}]})


KINDS = ["list", "tuple", "dict", "space", "tensor", "cache", "config", "named", "yours", "object"]
HOSTILE = st.recursive(
    SCALARS | st.sampled_from([[2**39, 0], [-1], "AAAA", "float32", "é", 2**200, [["a"]]]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.builds(
            lambda kind, value, more: {kind: value} | more,
            st.sampled_from(KINDS),
            inside,
            st.dictionaries(st.sampled_from(["shape", "bytes", "layers", "kind"]), inside),
        )
    ),  # fmt: skip
    max_leaves=12,
)


@given(HOSTILE)
def test_whatever_arrives_is_a_value_or_a_value_error(data):
    try:
        Wire(None).unpack(data)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        {"config": {"num_labels": 10**12}},
        {"named": "os.system"},
        {"yours": 1},
        {"tensor": "float32", "shape": [2**60], "bytes": ""},
        {"tensor": "float32", "shape": [2**39, 2**39, 0], "bytes": ""},
        {"tensor": "float32", "shape": [1], "bytes": "AAA"},
        {"tensor": "quint8", "shape": [1], "bytes": "AAAA"},
        {"tensor": "float32", "shape": [True], "bytes": "AAAAAA=="},
        {"cache": 1, "layers": [[None, None]] * (LAYERS + 1)},
        {"cache": math.inf, "layers": []},
        {"object": 1, "kind": "\0"},
        {"object": "x", "kind": "x"},
        {"space": [["", 1], [2, 2]]},
        {"dict": [[{"list": []}, 1]]},
        {},
        [],
    ],
)
def test_what_no_pack_makes_is_refused(data):
    with pytest.raises(ValueError):
        Wire(None).unpack(data)


def test_deep_data_is_refused():
    data = {"list": []}
    for _ in range(100_000):
        data = {"list": [data]}
    with pytest.raises(ValueError):
        Wire(None).unpack(data)


def test_there_is_no_third_truth_value():
    value = Wire(None).unpack({"tensor": "bool", "shape": [3], "bytes": "AAL/"})
    assert value.view(torch.uint8).tolist() == [0, 1, 1]
