"""Whoever uses a name or a keyword of PyTorch or NumPy is told what to write here."""

import builtins
import collections
import copy
import inspect
import json
import pickle
import re
import weakref

import numpy
import numpy as np
import pytest

import tinyarr as ta
from tinyarr import nn, optim
from tinyarr.errors import ArgumentError, DtypeError, GradientError, OutOfBounds, ShapeError
from tinyarr.other_names import AUTOGRAD, DATA, FUNCTIONS, GENERATOR, INIT, METHODS, MODULE, NN, OPTIM, OPTIMIZER, SAME

LAYER = nn.Linear(2, 3)
OWNERS = [  # who lacks the names, what an error calls it, where what it is told to use is found
    (FUNCTIONS, ta, "tinyarr", ()),
    (METHODS, ta.ones((2, 2)), "Tensor", ()),
    (GENERATOR, ta.Generator(), "Generator", ()),
    (NN, nn, "tinyarr.nn", (nn,)),
    (INIT, nn.init, "tinyarr.nn.init", ()),
    (DATA, ta.data, "tinyarr.data", ()),
    (MODULE, LAYER, "Linear", (nn,)),
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
        (lambda x: x.sum(dim=1, keepdim=True), "sum: .*'dim': use axis and keepdims$"),
        (lambda x: ta.normal(0.0, 1.0, size=(2,)), "normal: .*'size': use shape$"),
        (lambda x: ta.linspace(0, 1, steps=3), "linspace: .*: use num$"),
        (lambda x: ta.triu(x, diagonal=1), "triu: .*'diagonal': use k$"),
        (lambda x: ta.randint(9, (2,)), r"randint: .*: use randint\(low, high, shape, "),
        (lambda x: ta.mse_loss(x, x, "sum"), r"mse_loss: .*: use mse_loss\(x, target, \*, reduction='mean'\)"),
        (lambda x: x.to("cpu", non_blocking=True), r"to: .*'non_blocking': use to\(device\)"),
        (lambda x: x.nonzero(as_tuple=False), r"nonzero: .*'as_tuple': use stack\(nonzero\(x\), axis=1\)"),
        (lambda x: ta.softmax(x, dim=-1), "softmax: .*'dim': use axis$"),
        (lambda x: x.std(unbiased=True), "std: .*'unbiased': use correction"),
        (lambda x: ta.concat([x, x], 1), r"concat: too many positional .*: use concat\(tensors, /, \*, axis=0\)"),
        (lambda x: x.softmax(axes=0), r"softmax: .*'axes': use softmax\(x, /, axis=-1\)"),
        (lambda x: x.sum(axis=0, ddof=None, dim=0), "sum: .*'dim': use axis$"),
        (lambda x: x.size(), r"^size: .* elements, 4: use shape, or shape\[axis\]"),
        (lambda x: x.size(0), r"^size: .* elements, 4: use shape, or shape\[axis\]"),
        (lambda x: np.add(x, x, out=np.ones((2, 2))), r"^np\.add: a Tensor came: use tinyarr's functions"),
        (lambda x: np.add.reduce(x), r"^np\.add: a Tensor came: use tinyarr's functions"),
        (lambda x: np.exp(np.ones(2), x), r"^np\.exp: a Tensor came"),
        (lambda x: np.gcd(x, x), r"^np\.gcd: a Tensor came"),
        (lambda x: ta.compile(ta.relu, dynamic=True), r"^compile: .*'dynamic': use compile\(function\): new shapes"),
        (lambda x: ta.compile(ta.relu, fullgraph=True), r"^compile: .*'fullgraph': use compile\(function\), which"),
        (lambda x: ta.compile(ta.relu, mode="max"), r"^compile: .*'mode': use compile\(function\), whose"),
        (lambda x: ta.compile(3), "^compile: function is int: pass a function"),
        (lambda x: ta.load("path", map_location="cpu"), "^load: .*'map_location': use device$"),
        (lambda x: ta.data.DataLoader([x], pin_memory=True), "^DataLoader: .*'pin_memory': use device="),
        (lambda x: ta.data.DataLoader(), r"^DataLoader: missing .*'dataset': use DataLoader\(dataset, "),
        (lambda x: nn.Embedding(3, 2, padding_idx=0), r"^Embedding: .*'padding_idx': use masked_fill\("),
        (lambda x: nn.LayerNorm(3, elementwise_affine=False), "^LayerNorm: .*affine': use the function layer_norm"),
        (lambda x: nn.Conv2d(1, 1, 1, padding_mode="zeros"), r"^Conv2d: .*'padding_mode': use Conv2d\(in_channels, "),
        (lambda x: nn.LSTM(1, 1, proj_size=2), r"^LSTM: .*'proj_size': use LSTM\(input_size, "),
        (lambda x: nn.BatchNorm2d(), r"^BatchNorm2d: missing .*: use BatchNorm2d\(num_features, "),
        (lambda x: nn.Sequential(layers=[]), r"^Sequential: .*'layers': use Sequential\(\*layers\)"),
        (lambda x: nn.Softmax(dim=1), r"^Softmax: .*'dim': use Softmax\(axis=-1\)"),
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
        (LAYER.named_parameters(), r"^AdamW: a parameter is tuple: it must be a leaf .*, as in model\.parameters\(\)$"),
        ([{"weights": [LAYER.weight]}], r"a group has \['weights'\]: it is a dict of 'parameters' and some of"),
        ([{"parameters": [LAYER.weight], "lr": -0.1}], "lr is -0.1: it must be 0 or more"),
        ([ta.ones(2)], r"a parameter has shape \(2,\), .*: it must be a leaf tensor with requires_grad=True"),
    ],
)
def test_an_optimizer_of_what_are_no_parameters_says_what_to_pass(parameters, message):
    with pytest.raises((TypeError, ArgumentError), match=message):
        optim.AdamW(parameters)


def test_what_the_table_of_differences_says_of_clip_adam_groups_and_draws():
    x = ta.Tensor([-1.0, 0.0, 0.5], requires_grad=True)
    x.clip(0, 1).sum().backward()
    assert x.grad.tolist() == [0, 0.5, 1]

    a, b = (nn.Parameter(ta.zeros(1)) for _ in range(2))
    adam = optim.Adam([a, b], lr=1.0)
    for trained in ([a], [a, b]):
        for p in trained:
            p.grad = ta.ones(1)
        adam.step()
        adam.zero_grad()
    # b's averages hold one gradient, corrected by two steps: 0.1 / (1 - 0.9^2) over sqrt(0.001 / (1 - 0.999^2))
    assert b.item() == pytest.approx(-(0.1 / 0.19) / (0.001 / (1 - 0.999**2)) ** 0.5, rel=1e-5)

    groups = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0)
    optim.Scheduler(groups, lambda step: 0.1)
    assert [g["lr"].item() for g in groups.param_groups] == [0.1, 0.05]

    bad = ta.Tensor([-1.0, 2.0])
    with pytest.raises(ArgumentError):
        ta.multinomial(bad, 1)
    with pytest.raises(OutOfBounds):
        ta.compile(lambda weights: ta.multinomial(weights, 1))(bad)

    orders = []
    for seed in (1, 2):
        ta.manual_seed(seed)
        orders.append([x.item() for x in ta.data.DataLoader(range(20), shuffle=True)])
    assert orders[0] == orders[1] != list(range(20))


def test_an_average_of_what_are_no_parameters_says_what_to_pass():
    with pytest.raises(ArgumentError, match=r"Average: a parameter is tuple: .*, as in model\.parameters\(\)$"):
        optim.ExponentialMovingAverage(LAYER.named_parameters())


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
    with pytest.raises(ArgumentError, match=re.escape("one by one, as in Sequential(*layers)")):
        nn.Sequential([ta.relu])
    named = nn.Sequential(collections.OrderedDict(first=model[0], then=ta.relu))
    assert [name for name, _ in named.named_parameters()] == ["first.weight", "first.bias"]
    assert named.first is named[0] is model[0] and named(x).tolist() == model[:2](x).tolist()
    with pytest.raises(ArgumentError, match="layer train has the name of a method"):
        nn.Sequential({"train": ta.relu})


def test_a_tensor_is_moved_and_converted_as_a_module_is():
    x = ta.ones((2,), requires_grad=True)
    assert x.to("cpu") is x is x.to() is x.to(ta.float32) is x.to(x.device, ta.float32) is x.to(dtype=ta.float32)
    y = x.to(ta.float64)
    assert y.dtype is ta.float64 and y.requires_grad
    assert x.detach().to("meta", ta.int8).dtype is ta.int8
    with pytest.raises(GradientError, match="does not cross devices"):
        x.to("meta", ta.float64)


def test_names_that_mean_the_same_are_there_but_not_in_a_star_import():
    assert ta.tensor is ta.Tensor and ta.device is ta.Device
    assert (ta.long, ta.int, ta.float, ta.half) == (ta.int64, ta.int32, ta.float32, ta.float16)
    assert set(SAME).isdisjoint(ta.__all__)


def test_a_number_of_elements_is_an_int_for_all_that_takes_one():
    x = ta.ones((2, 3))
    assert (x / x.size).sum().item() == pytest.approx(1) and ta.zeros(x.size).shape == (6,)
    assert ((x * 2) ** x.size).tolist() == [[64.0] * 3] * 2
    assert f"{x.size}" == "6" and type(x.size + 1) is int and json.dumps(x.size) == "6"
    assert (x < x.size).all() and ta.full((), x.size, dtype=ta.int8).item() == 6
    n = x.size
    assert ta.compile(lambda x: x.sum() / x.size + x.sum() / n)(x).item() == 2


def test_one_element_is_rounded_as_a_number():
    assert round(ta.Tensor(2.345), 1) == 2.3 and type(round(ta.Tensor([2.5]))) is int


def test_numpys_functions_of_tensors_are_those_of_tinyarr():
    x = ta.Tensor([[1.0, 4.0], [0.25, 9.0]], requires_grad=True)
    np.mean(np.sqrt(x)).backward()
    assert x.grad.tolist() == (0.125 / x.detach().sqrt()).tolist()
    x = x.detach()
    pairs = [
        (np.arctan2(x, 2.0), ta.atan2(x, 2)), (np.sum(x, axis=0), x.sum(axis=0)), (np.max(x), x.max()),
        (np.float32(3) * x, 3 * x), (np.float64(3) - x, 3 - x), (np.power(x, 2), x**2), (np.rint(x), x.round()),
        (np.less(x, 2), x < 2), (np.abs(-x), x), (np.multiply(x, x), x * x),
        (np.prod(x, keepdims=True), x.prod(keepdims=True)),
    ]  # fmt: skip
    for found, expected in pairs:
        assert type(found) is ta.Tensor and found.tolist() == expected.tolist() and found.dtype is expected.dtype
    for mixed in (lambda: np.ones((2, 2)) * x, lambda: np.add(x, np.ones((2, 2)))):
        with pytest.raises(TypeError, match="ndarray: make it a tensor"):
            mixed()


def test_a_result_keeps_its_gradient_when_asked():
    x = ta.Tensor([1.0, 2.0], requires_grad=True)
    y = x * 3
    y.retain_grad()
    for n in (1, 2):
        (y * y).sum().backward(retain_graph=True)
        assert y.grad.tolist() == [6.0 * n, 12.0 * n]
    assert x.grad.tolist() == [36.0, 72.0]
    x.detach().retain_grad()
    reference = weakref.ref(y)
    del y
    assert reference() is None


def test_a_module_is_moved_converted_and_walked_over():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    visited = []
    assert model.apply(visited.append) is model and visited[-1] is model and set(visited) == set(model.modules())
    assert model.to("cpu") is model.to(ta.Device("cpu")) is model
    assert model.to(ta.bfloat16)[0].weight.dtype is ta.bfloat16
    assert model.to("cpu", ta.float32)[1].bias.dtype is ta.float32
    assert model.to("meta")[0].weight.device.kind == "meta"
    model = nn.Linear(1, 1)
    model(ta.ones((1, 1))).sum().backward()
    assert model.to("cpu") is model
    with pytest.raises(DtypeError, match=r"^to: weight holds a gradient"):
        model.to("meta")
    model.zero_grad(set_to_none=False)
    assert model.weight.grad.tolist() == [[0]]
    model.zero_grad(set_to_none=True)
    assert model.weight.grad is None


def test_a_buffer_can_be_left_out_of_what_is_saved():
    class Inner(nn.Module):
        def __init__(self):
            self.register_buffer("kept", ta.ones(1))
            self.register_buffer("made", ta.ones(1), persistent=False)

    model = nn.Sequential(Inner(), Inner())
    assert set(model.state_dict()) == {"0.kept", "1.kept"} and "1.made" in dict(model.named_tensors())
    model.load_state_dict({"0.kept": np.full(1, 3.0), "1.kept": ta.zeros(1)})
    assert model[0].kept.tolist() == [3] and model[0].kept.dtype is ta.float32


def test_containers_of_modules_are_a_list_and_a_dict_whose_values_are_attributes():
    class Model(nn.Module):
        def __init__(self):
            blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
            self.parts = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(2, 1)})

        def forward(self, x):
            for block in self.parts.blocks:
                x = block(x)
            return self.parts.head(x)

    model, x = Model(), ta.ones((1, 2))
    assert list(model.state_dict())[-1] == "parts.head.bias" and "parts.blocks.1.weight" in model.state_dict()
    compiled = ta.compile(model)
    assert compiled(x).item() == pytest.approx(model(x).item(), rel=1e-5)
    model.parts.head = nn.Linear(2, 1)
    assert model.parts["head"] is model.parts.head
    assert compiled(x).item() == pytest.approx(model(x).item(), rel=1e-5)
    again = copy.deepcopy(model)
    assert again(x).item() == model(x).item() and again.parts.head is not model.parts.head
    with pytest.raises(AttributeError, match="ModuleDict has no key 'tail'"):
        _ = model.parts.tail


def test_containers_of_modules_have_parameters_and_leave_names_as_those_of_a_list():
    blocks = nn.ModuleList([nn.Linear(2, 2)])
    blocks.append(blocks[0])
    blocks.append(nn.ModuleDict({"head": nn.Linear(2, 1)}))
    assert [p.shape for p in blocks.parameters()] == [(2, 2), (2,), (1, 2), (1,)]
    assert len(list(blocks[2].parameters())) == 2
    model = nn.Module()
    model.blocks = blocks
    assert list(model.state_dict()) == [f"blocks.{n}" for n in ("0.weight", "0.bias", "2.head.weight", "2.head.bias")]
    again = pickle.loads(pickle.dumps(copy.deepcopy(blocks)))
    assert type(again) is nn.ModuleList and type(again[2]) is nn.ModuleDict and again[0] is again[1]


def test_what_hints_say_to_write_does_what_pytorch_does():
    x = ta.Tensor([-1000.0, -1.0, 0.0, 1000.0], requires_grad=True)
    ta.where(x >= 0, x, ta.expm1(ta.minimum(x, 0))).sum().backward()  # nn.ELU
    assert x.grad.tolist() == pytest.approx([0, np.exp(-1), 1, 1])
    tokens, embedding = ta.Tensor([0, 2]), nn.Embedding(3, 2)
    rows = ta.masked_fill(embedding(tokens), (tokens == 0).expand_dims(-1), 0.0)  # padding_idx=0
    rows.sum().backward()
    assert rows[0].tolist() == [0, 0] and embedding.weight.grad.tolist() == [[0, 0], [0, 0], [1, 1]]
    x = ta.Tensor([[[1.0, 4.0, 3.0, 2.0]]])
    assert nn.MaxPool2d((1, 2))(x.expand_dims(2)).squeeze(2).tolist() == [[[4, 3]]]  # nn.MaxPool1d
    unit = x / ta.vector_norm(x, axis=-1, keepdims=True)  # functional.normalize
    assert unit.tolist()[0][0] == pytest.approx(np.array([1, 4, 3, 2]) / 30**0.5)
    p = nn.Parameter(ta.ones(2, 3))
    p.data.copy_(ta.eye(*p.shape))  # nn.init.eye_
    assert p.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_class_of_one_s_own_is_made_as_it_was_and_shows_its_signature():
    class Own(nn.Conv2d):
        def __init__(self, width):
            super().__init__(width, width, 1, bias=False)

    assert Own(2).weight.shape == (2, 2, 1, 1)
    assert list(inspect.signature(nn.Conv2d).parameters)[:3] == ["in_channels", "out_channels", "kernel_size"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'bias'"):
        Own(2, bias=True)


def test_a_module_keeps_a_result_to_be_looked_at():
    class Kept(nn.Linear):
        def forward(self, x):
            self.out = super().forward(x).tanh()
            return self.out

    layer = Kept(3, 3)
    layer(ta.ones((1, 3))).sum().backward()
    assert layer.out.requires_grad and set(layer.state_dict()) == {"weight", "bias"}
    assert len(list(layer.parameters())) == 2
    compiled = ta.compile(lambda x: layer(x).sum())
    assert compiled(ta.ones((1, 3))).item() == pytest.approx(layer(ta.ones((1, 3))).sum().item(), rel=1e-5)
    with pytest.raises(ArgumentError, match="out: a plain Tensor that requires a gradient came"):
        layer.out = ta.ones(2, requires_grad=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_in_place_operators_train_a_parameter_under_no_grad(compiled):
    layer = nn.Linear(1, 1)
    layer.load_state_dict({"weight": np.full((1, 1), 2.0), "bias": np.zeros(1)})

    def step(x):
        layer.zero_grad()
        layer(x).sum().backward()
        with ta.no_grad():
            for p in layer.parameters():
                p -= 0.5 * p.grad

    step = ta.compile(step) if compiled else step
    for n in (1, 2):
        step(ta.ones((1, 1)))
        assert layer.weight.item() == 2 - 0.5 * n and layer.bias.item() == -0.5 * n


def test_a_group_has_its_own_learning_rate_which_param_groups_show_and_change():
    a, b = (nn.Parameter(ta.ones(1)) for _ in range(2))
    optimizer = optim.SGD([{"params": [a]}, {"parameters": [b], "lr": 0.5}], lr=0.1)

    def moved():
        a.grad, b.grad = ta.ones(1), ta.ones(1)
        before = a.item(), b.item()
        optimizer.step()
        return [pytest.approx(x - y.item(), abs=1e-6) for x, y in zip(before, (a, b))]

    assert moved() == [0.1, 0.5]
    assert [g["lr"].item() for g in optimizer.param_groups] == [0.1, 0.5]
    assert optimizer.param_groups[0]["params"][0] is a and optimizer.param_groups[1]["params"][0] is b
    optimizer.param_groups[0]["lr"] = 0.2
    assert moved() == [0.2, 0.5]
    optimizer.lr = 0.01
    assert moved() == [0.02, 0.05]
    for group in optimizer.param_groups:
        group["lr"] *= 10
    assert moved() == [0.2, 0.5]
    group = optimizer.param_groups[0]
    assert set(group) == {"params", "lr", "momentum", "nesterov", "weight_decay", "lr_scale"} and len(group) == 6
    group["weight_decay"] = 0.9
    assert optimizer.param_groups[1]["weight_decay"] == 0
    with pytest.raises(ArgumentError, match=r"SGD: momentum is 0\.9, and the optimizer was made without it"):
        group["momentum"] = 0.9
    group["weight_decay"] = 0.0
    with_momentum = optim.SGD([{"params": [a]}, {"params": [b], "momentum": 0.5}])
    with_momentum.param_groups[0]["momentum"] = 0.9
    assert [g["momentum"] for g in with_momentum.param_groups] == [0.9, 0.5]
    for change in ({"lr": -1}, {"momentum": 2}, {"betas": 1}, {"params": []}):
        with pytest.raises(ArgumentError, match=r"it must|can't be written"):
            group.update(change)
    with pytest.raises(ArgumentError, match="can't be taken away"):
        del group["lr"]
    with pytest.raises(ArgumentError, match="lr is 0, and a group's lr"):
        optim.SGD([{"params": [a], "lr": 0.1}], lr=0)
    group["lr"] = 0.2
    optimizer.lr = 0
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
        with pytest.raises(ArgumentError, match=r"lr is 0, and 0\.1 for a group"):
            group["lr"] = 0.1
    optimizer.lr = 0.01
    assert [g["lr"].item() for g in optimizer.param_groups] == pytest.approx([0.2, 0.5])
    assert repr(group).startswith("{'params': [")
    single = optim.AdamW([{"params": [a, b], "lr": 0.1}])
    single.param_groups[0]["lr"] = 0.25
    assert single.lr.item() == 0.25 == single.param_groups[0]["lr"].item()
    assert [p is q for p, q in zip(single.param_groups[0]["params"], [a, b])] == [True, True]


def test_gradients_of_lists_and_dicts_have_their_form_and_aux_is_handed_on():
    x, y = ta.Tensor([1.0, 2.0]), ta.Tensor([3.0, 4.0])

    def loss(parameters, scale):
        total = (parameters["x"] ** 2 * parameters["more"][0]).sum() * scale
        return total, {"total": total, "name": "loss"}

    found, aux = ta.grad(loss, has_aux=True)({"x": x, "more": [y]}, ta.Tensor(2.0))
    assert found["x"].tolist() == [12.0, 32.0] and found["more"][0].tolist() == [2.0, 8.0]
    assert aux["name"] == "loss" and not aux["total"].requires_grad
    (value, aux), found = ta.value_and_grad(loss, argnums=(0, 1), has_aux=True)({"x": x, "more": [y]}, ta.Tensor(2.0))
    assert value.item() == aux["total"].item() == 38.0 and found[1].item() == 19.0
    second = ta.grad(lambda p: ta.grad(lambda q: (q[0] ** 3).sum())(p)[0].sum())([x])
    assert second[0].tolist() == [6.0, 12.0]
    with pytest.raises(GradientError, match="must return a tuple of two where has_aux is True"):
        ta.grad(lambda x: x.sum(), has_aux=True)(x)
    for wrong in ([], {}, [x, 3], 1.0):
        with pytest.raises(ArgumentError, match="it must be a tensor, or a list, tuple or dict of tensors"):
            ta.grad(lambda p: x.sum())(wrong)


def test_a_masked_write_of_one_value_and_a_numpy_constant_are_compiled():
    constant = np.arange(3.0)

    def f(x):
        x = x * ta.Tensor(constant)
        x[x < 0] = -1.0
        x[ta.Tensor([True, False])] = ta.Tensor([7.0, 8.0, 9.0])
        x[[0, 1], [0, 1]] = 5
        return x

    x = ta.Tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    compiled = ta.compile(f)
    assert compiled(x).tolist() == f(x).tolist() == [[5, 8, 9], [0, 5, -1]]
    constant[1] = 2  # its elements belong to the signature
    assert compiled(x).tolist() == f(x).tolist() == [[5, 8, 9], [0, 5, -1]]


def test_a_value_may_have_more_axes_in_front_of_size_1():
    y = ta.zeros((2, 3))
    y[0] = ta.ones((1, 3))
    y[[1]] = ta.full((1, 1, 3), 2.0)
    assert y.tolist() == [[1] * 3, [2] * 3]
    with pytest.raises(ShapeError):
        y[0] = ta.ones((2, 3))


def test_all_of_dropout_is_zeros_without_a_gradient():
    x = ta.Tensor([1.0, -2.0], requires_grad=True)
    ta.dropout(x, 1.0).sum().backward()
    assert not ta.dropout(x, 1.0).any() and x.grad.tolist() == [0, 0]
