"""Whoever uses a name or a keyword of PyTorch or NumPy is told what to write here."""

import builtins
import pickle
import re

import numpy
import pytest

import tinyarr as ta
from tinyarr import nn, optim
from tinyarr.errors import ArgumentError
from tinyarr.other_names import AUTOGRAD, FUNCTIONS, INIT, METHODS, MODULE, NN, OPTIM, OPTIMIZER

LAYER = nn.Linear(2, 3)
OWNERS = [  # who lacks the names, what an error calls it, where what it is told to use is found
    (FUNCTIONS, ta, "tinyarr", ()),
    (METHODS, ta.ones((2, 2)), "Tensor", ()),
    (NN, nn, "tinyarr.nn", (nn,)),
    (MODULE, LAYER, "Linear", (nn,)),
    (INIT, nn.init, "tinyarr.nn.init", (nn.init,)),
    (AUTOGRAD, ta.autograd, "tinyarr.autograd", ()),
    (OPTIM, optim, "tinyarr.optim", (optim,)),
    (OPTIMIZER, optim.SGD(LAYER.parameters()), "SGD", ()),
]
CASES = [(name, owner, called, names[name], places) for names, owner, called, places in OWNERS for name in names]


@pytest.mark.parametrize(("name", "owner", "called", "hint", "places"), CASES)
def test_a_name_of_another_library_is_answered_by_what_is_here(name, owner, called, hint, places):
    with pytest.raises(AttributeError, match=f"^{called} has no attribute '{name}': use {re.escape(hint)}$"):
        getattr(owner, name)
    assert not hasattr(owner, name) and name not in dir(owner)
    first = re.match(r"(?:tinyarr|numpy)?\.?(\w+)", hint)[1]
    assert first in ("lambda", "x") or any(hasattr(place, first) for place in (owner, ta, *places, builtins, numpy))


def test_any_other_name_is_plainly_missing():
    with pytest.raises(AttributeError, match=r"^tinyarr has no attribute 'frobnicate'$"):
        _ = ta.frobnicate
    with pytest.raises(AttributeError, match=r"^'Tensor' object has no attribute 'frobnicate'$"):
        _ = ta.ones(2).frobnicate


def test_what_a_star_import_brings_exists():
    assert all(hasattr(ta, name) for name in ta.__all__)
    assert {"Tensor", "matmul", "nn", "float32", "data"} <= set(ta.__all__)
    assert {"tensor", "array", "device"}.isdisjoint(ta.__all__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum(dim=0), "sum: .*'dim': use axis$"),
        (lambda x: x.mean(0, keepdim=True), "mean: .*'keepdim': use keepdims$"),
        (lambda x: ta.softmax(x, dim=-1), "softmax: .*'dim': use axis$"),
        (lambda x: x.std(unbiased=True), "std: .*'unbiased': use correction"),
        (lambda x: ta.concat([x, x], 1), r"concat: too many positional .*: use concat\(tensors, /, \*, axis=0\)"),
        (lambda x: x.softmax(axes=0), r"softmax: .*'axes': use softmax\(x, /, axis=-1\)"),
        (lambda x: ta.cross_entropy(x, x, weight=x), "cross_entropy: .*'weight': use reduction='none'"),
        (lambda x: ta.scaled_dot_product_attention(x, x, x, dropout_p=0.1), ".*'dropout_p': use softmax, dropout"),
        (lambda x: ta.value_and_grad(ta.sum, has_aux=True), "value_and_grad: .*'has_aux': use vjp"),
        (lambda x: optim.SGD(LAYER.parameters()).zero_grad(set_to_none=True), "zero_grad: .*: use zero_grad()"),
        (lambda x: LAYER.zero_grad(set_to_none=False), "zero_grad: .*: use zero_grad()"),
        (lambda x: ta.sum([1, 2]), "^sum: x is list: make it a tensor"),  # the function's own error, as it was
    ],
)
def test_a_call_that_does_not_fit_is_told_what_would(call, message):
    with pytest.raises(TypeError, match=message):
        call(ta.ones((2, 2)))


def test_a_function_is_pickled_by_its_public_name():
    assert pickle.loads(pickle.dumps(ta.softmax)) is ta.softmax


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (LAYER, r"^AdamW: parameters is Linear: pass model\.parameters\(\)"),
        (LAYER.parameters, r"^AdamW: parameters is method: pass model\.parameters\(\)"),
        (LAYER.weight, "^AdamW: parameters is Parameter: pass .* a list of tensors"),
        (LAYER.named_parameters(), r"(?s)^AdamW: a parameter is \('weight', .*\(tuple\): it must be a leaf tensor"),
        ([{"params": [LAYER.weight]}], r"a group has \['params'\]: call them 'parameters'"),
        ([{"parameters": [LAYER.weight], "lr": 0.1}], "a group has .*: give 'lr_scale', which"),
        ([ta.ones(2)], r"a parameter has shape \(2,\), .*: it must be a leaf tensor with requires_grad=True"),
    ],
)
def test_an_optimizer_of_what_are_no_parameters_says_what_to_pass(parameters, message):
    with pytest.raises((TypeError, ArgumentError), match=message):
        optim.AdamW(parameters)


def test_a_frozen_parameter_stands_still_under_an_optimizer_until_it_is_thawed():
    layer = nn.Linear(1, 1)
    layer.weight.requires_grad = False
    optimizer = optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    before = layer.weight.item(), layer.bias.item()
    for requires_grad in (False, True):
        layer.weight.requires_grad = requires_grad
        layer(ta.ones((1, 1))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert layer.bias.item() != before[1]
        assert (layer.weight.item() != before[0]) is requires_grad


def test_what_pytorch_lets_one_write_works_where_nothing_contradicts_it():
    x = ta.Tensor([[1.0, 3.0], [2.0, 0.0]])
    for make in (ta.zeros, ta.ones, ta.empty, ta.rand, ta.randn):
        assert make(2, 3).shape == make((2, 3)).shape == (2, 3)
        assert make(()).shape == ()
        with pytest.raises(TypeError, match=r"shape is .* give ints, or a tuple of them"):
            make(2.5)
    assert ta.zeros(shape=(2,)).shape == (2,)
    assert ta.topk(x, k=1)[0].tolist() == [[3], [2]]
    assert x[range(2), [0, 1]].tolist() == [1, 0]
    assert nn.Linear(2, 3, False).bias is None
    assert nn.LayerNorm(2, bias=False)(x).tolist() == ta.layer_norm(x).tolist()
    model = nn.Sequential(nn.Linear(2, 3), ta.relu, nn.Linear(3, 1))
    assert model[:2][0] is model[0] and len(model[1:]) == 2
    for layers, values in [([ta.relu], "layers"), ({"a": ta.relu}, "layers.values()")]:
        with pytest.raises(ArgumentError, match=re.escape(f"one by one, as in Sequential(*{values})")):
            nn.Sequential(layers)
    with pytest.raises(TypeError, match="load_state_dict: weight is ndarray: make it a tensor"):
        LAYER.load_state_dict({"weight": numpy.ones((3, 2)), "bias": numpy.ones(3)})
