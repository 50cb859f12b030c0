import numpy as np
import pytest

import tinyarr
from tinyarr import Tensor, nn
from tinyarr.errors import ArgumentError, DtypeError, GradientError, ShapeError


class Block(nn.Module):
    def __init__(self, size):
        self.scale = nn.Parameter(tinyarr.ones((size,)))
        self.register_buffer("seen", tinyarr.zeros((), dtype=tinyarr.int64))


class Net(nn.Module):
    """Has a parameter in each kind of place in which one is found."""

    def __init__(self):
        self.first = Block(1)
        self.blocks = [Block(2), Block(3)]
        self.table = {"a": nn.Parameter(tinyarr.ones((4,))), "b": (Block(5),)}
        self.tied = self.first.scale
        self.parent = self
        self.size = 7

    def forward(self, x, *, plus=0):
        return x * self.first.scale + plus


NAMES = ["first.scale", "first.seen", "blocks.0.scale", "blocks.0.seen", "blocks.1.scale", "blocks.1.seen", "table.a",
         "table.b.0.scale", "table.b.0.seen"]  # fmt: skip


def filled(value):
    net = Net()
    with tinyarr.no_grad():
        for t in net.state_dict().values():
            t.assign(value)
    return net


def values(net):
    return {name: t.numpy().tolist() for name, t in net.state_dict().items()}


def test_a_name_is_the_path_of_attributes_in_order_of_assignment_and_what_is_shared_comes_once():
    net = Net()
    assert [name for name, _ in net.named_tensors()] == list(net.state_dict()) == NAMES
    assert [name for name, _ in net.named_modules()] == ["", "first", "blocks.0", "blocks.1", "table.b.0"]
    assert [name for name, _ in net.named_modules("net")][:2] == ["net", "net.first"]


def test_parameters_are_what_an_optimizer_updates_and_buffers_are_not():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [name for name in NAMES if not name.endswith("seen")]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
    assert next(net.parameters()) is net.first.scale


def test_a_parameter_shares_the_memory_of_its_tensor():
    x = tinyarr.zeros((3,))
    p = nn.Parameter(x)
    x.assign(2.0)
    assert p.tolist() == [2, 2, 2]
    assert p.is_leaf and p.requires_grad and not x.requires_grad
    assert not nn.Parameter(x, requires_grad=False).requires_grad
    with pytest.raises(GradientError, match="int64"):
        nn.Parameter(tinyarr.arange(3))


def test_calling_a_module_calls_forward():
    assert Net()(tinyarr.Tensor([2.0]), plus=1).tolist() == [3]
    with pytest.raises(ArgumentError, match=r"Block: has no forward\(\)"):
        Block(1)(tinyarr.ones((1,)))


def test_a_state_dict_shares_memory_and_has_no_history():
    net = Net()
    state = net.state_dict()
    assert not any(t.requires_grad or isinstance(t, nn.Parameter) for t in state.values())
    state["first.scale"].assign(5.0)
    assert net.first.scale.tolist() == [5]


def test_a_state_is_loaded_into_the_same_memory_cast_to_the_module_s_dtypes():
    net = filled(0)
    before = dict(net.named_tensors())
    net.load_state_dict({name: tinyarr.astype(t, tinyarr.float64) for name, t in filled(3).state_dict().items()})
    assert values(net) == values(filled(3))
    assert all(t is before[name] and t.dtype is before[name].dtype for name, t in net.named_tensors())
    assert net.first.scale.requires_grad


def test_names_that_do_not_fit_are_an_error_unless_not_strict():
    net, state = filled(0), filled(3).state_dict()
    del state["first.scale"]
    state["more"] = tinyarr.ones((1,))
    with pytest.raises(ArgumentError, match=r"missing \['first.scale'\], unexpected \['more'\]"):
        net.load_state_dict(state)
    assert values(net) == values(filled(0))
    net.load_state_dict(state, strict=False)
    assert values(net) == values(filled(3)) | {"first.scale": [0]}


@pytest.mark.parametrize("strict", [True, False])
def test_a_shape_that_does_not_fit_is_an_error_before_anything_is_written(strict):
    net, state = filled(0), filled(3).state_dict()
    state["table.b.0.scale"] = tinyarr.ones((4,))
    with pytest.raises(ShapeError, match=r"table.b.0.scale has shape \(4,\), .* \(5,\)"):
        net.load_state_dict(state, strict=strict)
    assert values(net) == values(filled(0))


def test_train_and_eval_reach_every_module():
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(module.training for _, module in net.named_modules())
    assert net.train() is net
    assert all(module.training for _, module in net.named_modules())


def test_zero_grad_forgets_gradients():
    net = Net()
    net(tinyarr.ones((1,))).sum().backward()
    assert net.first.scale.grad is not None
    net.zero_grad()
    assert net.first.scale.grad is None


def test_to_dtype_converts_floating_tensors_and_keeps_their_identity():
    net = filled(3)
    before = dict(net.named_tensors())
    assert net.to_dtype(tinyarr.bfloat16) is net
    assert values(net) == values(filled(3))
    for name, t in net.named_tensors():
        assert t is before[name]
        assert t.dtype is (tinyarr.int64 if name.endswith("seen") else tinyarr.bfloat16)


def test_to_dtype_with_gradients_is_an_error():
    net = Net()
    net(tinyarr.ones((1,))).sum().backward()
    with pytest.raises(DtypeError, match=r"first\.scale holds a gradient"):
        net.to_dtype(tinyarr.bfloat16)
    net.zero_grad()
    net.to_dtype(tinyarr.bfloat16)


def test_a_module_prints_as_a_tree():
    layer = nn.Linear(2, 3, dtype=tinyarr.float64)
    layer.inner = nn.LayerNorm(2)
    assert repr(layer) == (
        "Linear(\n  weight: float64[3, 2]\n  bias: float64[3]\n"
        "  inner: LayerNorm(\n    weight: float32[2]\n    bias: float32[2]\n  )\n)"
    )
    assert repr(nn.Dropout()) == "Dropout()"


def test_replacing_an_attribute_replaces_the_parameter():
    net = Net()
    net.first.scale = nn.Parameter(tinyarr.zeros((6,)))
    assert net.state_dict()["first.scale"].shape == (6,)
    assert isinstance(net.tied, Tensor) and np.array_equal(net.state_dict()["tied"], [1])


def test_a_parameter_is_made_of_a_tensor():
    with pytest.raises(TypeError, match="Parameter: data is list: make it a tensor"):
        nn.Parameter([1.0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", tinyarr.ones(1), r"Block.scale: is a Parameter, .* assign\(\) under no_grad\(\), or .*nn.Parameter"),
        ("fresh", Tensor([1.0], requires_grad=True), "Block.fresh: .* make it an nn.Parameter, or detach"),
    ],
)
def test_a_tensor_that_would_be_a_buffer_in_silence_is_refused(name, value, message):
    block = Block(1)
    before = dict(vars(block))
    with pytest.raises(ArgumentError, match=message):
        setattr(block, name, value)
    assert vars(block) == before


def test_a_buffer_or_a_missing_bias_can_be_replaced():
    block = Block(1)
    block.seen = tinyarr.ones(3)
    block.scale = None
    block.scale = tinyarr.ones(4)
    assert [t.shape for _, t in block.named_tensors()] == [(4,), (3,)]


def test_a_tensor_that_is_no_buffer_is_moved_and_converted_but_not_saved():
    block = Block(2)
    block.mask, block.looked_at = tinyarr.ones(2), [tinyarr.zeros(1)]
    assert list(block.state_dict()) == ["scale", "seen"]
    assert [name for name, _ in block.named_buffers()] == ["seen"] and list(block.buffers()) == [block.seen]
    assert [name for name, _ in block.named_tensors()] == ["scale", "seen", "mask", "looked_at.0"]
    block.load_state_dict(Block(2).state_dict())
    assert block.to_dtype(tinyarr.bfloat16).mask.dtype is tinyarr.bfloat16


def test_a_buffer_is_saved_when_it_is_shared_and_when_it_has_a_history():
    net = nn.Module()
    net.register_buffer("made", tinyarr.ones(2), persistent=False)
    net.register_buffer("none", None)
    net.inner = nn.Module()
    assert list(net.state_dict()) == [] and [name for name, _ in net.named_buffers()] == ["made"]
    net.inner.register_buffer("kept", net.made)
    assert list(net.state_dict()) == ["made"]
    net.inner.kept = tinyarr.ones(2, requires_grad=True) * 3
    state = net.state_dict()
    assert list(state) == ["inner.kept"] and not state["inner.kept"].requires_grad
    assert [name for name, _ in net.named_buffers()] == ["made", "inner.kept"]


def test_children_are_the_modules_that_a_module_holds_itself():
    net = Net()
    net.again = net.table["b"][0]
    assert [name for name, _ in net.named_children()] == ["first", "blocks.0", "blocks.1", "table.b.0"]
    assert list(net.children()) == [net.first, *net.blocks, net.again]
    outer = nn.Sequential(net, net.first)
    assert list(outer.children()) == [net, net.first] and list(nn.Linear(1, 1).children()) == []


def test_parameters_are_frozen_and_thawed_at_once():
    net = Net()
    assert net.requires_grad_(False) is net
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("keys", [("a.b", "a"), (1, "1")], ids=repr)
def test_two_tensors_of_one_name_are_an_error(keys):
    net = nn.Module()
    first, second = keys
    net.table = {first: tinyarr.ones(1), second: {"b": tinyarr.ones(2)} if second == "a" else tinyarr.ones(2)}
    for use in (net.state_dict, lambda: net.load_state_dict({}), lambda: list(net.parameters())):
        with pytest.raises(ArgumentError, match=f"two tensors have the name table.{first}: rename"):
            use()


def test_hooks_see_and_change_what_goes_into_a_module_and_comes_out():
    layer, seen = nn.Linear(2, 2), []
    x = tinyarr.ones((1, 2))
    plain = layer(x).numpy()
    before = layer.register_forward_pre_hook(lambda module, args: seen.append((module, args)))
    doubled = layer.register_forward_hook(lambda module, args, result: 2 * result)
    np.testing.assert_array_equal(layer(x).numpy(), 2 * plain)
    assert seen == [(layer, (x,))]
    before.remove()
    doubled.remove()
    np.testing.assert_array_equal(layer(x).numpy(), plain)
    assert len(seen) == 1
    assert nn.Linear(2, 2).state_dict().keys() == layer.state_dict().keys()


def test_a_hook_goes_alone_and_is_no_part_of_the_module():
    layer, x = nn.Linear(2, 2), tinyarr.ones((1, 2))
    plain, names, text = layer(x).numpy(), list(layer.state_dict()), repr(layer)
    compiled = tinyarr.compile(layer)
    compiled(x)
    doubled = layer.register_forward_hook(lambda module, args, result: 2 * result)

    class Hook(nn.Linear):
        def forward(self, module, args):
            return args[0] + 1

    layer.register_forward_pre_hook(Hook(1, 1)).remove()
    shifted = layer.register_forward_pre_hook(Hook(1, 1))
    layer.register_forward_hook(lambda module, args, result: result + 1)
    assert list(layer.state_dict()) == names and list(layer.children()) == [] and repr(layer) == text
    doubled.remove()
    for call in (layer, compiled):
        np.testing.assert_array_equal(call(x - 1).numpy(), plain + 1)
    shifted.remove()
    for call in (layer, compiled):
        np.testing.assert_array_equal(call(x).numpy(), plain + 1)


def test_a_pre_hook_may_replace_the_arguments():
    layer = nn.Linear(2, 2, bias=False)
    layer.register_forward_pre_hook(lambda module, args: args[0] * 3)
    expected = 3 * layer.weight.numpy().sum(axis=1)
    np.testing.assert_allclose(layer(tinyarr.ones((1, 2))).numpy()[0], expected, rtol=1e-6)
    with pytest.raises(TypeError, match="Linear: hook is int"):
        layer.register_forward_hook(3)


def test_sequential_calls_one_after_the_other_and_names_by_position():
    model = nn.Sequential(nn.Linear(2, 3), tinyarr.relu, nn.Linear(3, 1))
    x = tinyarr.ones((4, 2))
    np.testing.assert_array_equal(model(x).numpy(), model[2](tinyarr.relu(model[0](x))).numpy())
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(model) == 3 and model[-1] is model[2]
    with pytest.raises(ArgumentError, match="layer 1 is 3"):
        nn.Sequential(nn.Linear(2, 3), 3)


def test_a_compiled_submodule_takes_part_in_all_that_its_parent_does():
    inner = tinyarr.nn.Sequential(tinyarr.nn.Linear(4, 3), tinyarr.nn.Dropout(0.5))
    net = tinyarr.nn.Sequential(tinyarr.compile(inner), tinyarr.nn.Linear(3, 2))
    assert list(net.state_dict()) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]
    net.eval()
    assert not inner.training and not net[0].training
    x = tinyarr.ones((2, 4))
    assert net(x).tolist() == net(x).tolist()
    net.train()
    assert inner.training and net[0].training
    net.to(tinyarr.float64)
    assert net.eval()(tinyarr.ones((2, 4), dtype=tinyarr.float64)).dtype is inner[0].weight.dtype is tinyarr.float64


def test_attributes_of_a_compiled_module_are_the_module_s():
    module = tinyarr.nn.Linear(2, 2)
    compiled = tinyarr.compile(module)
    module.weight = tinyarr.nn.Parameter(tinyarr.ones((2, 2)))
    assert compiled.weight is module.weight
