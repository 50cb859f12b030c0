"""vmap: the results of a mapped function are those of the function for one example after the other, put together."""


import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from models import gpt2, llama3
from tests.samples import SAMPLES, Case
from tests.test_primitives import DIFFERENTIABLE, assert_exact, in_tuple, operands, recorded
from tests.tiers import at_most, thinned
from tinyarr import Tensor, dtypes, vmap
from tinyarr.backends.numpy.registry import KERNELS, kernel
from tinyarr.batching.rules import batching_rule
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ArgumentError, GradientError, OutOfBounds, ShapeError, TraceError
from tinyarr.ops import scalar
from tinyarr.ops.primitive import Primitive, apply
from tinyarr.testing import gradcheck, gradgradcheck

# What has no operand to map; whose result has a shape that follows from elements; which writes an optimizer's state.
UNMAPPED = "full arange eye linspace uniform normal bits integers nonzero".split()
NAMES = [name for name in SAMPLES if name not in UNMAPPED and not name.endswith("_update")]
WRITTEN = {"scatter": 0, "index_add": 0}  # by name the operand that the sample writes into: it must be mapped


def draw_examples(draw, name: str, case: Case, dtype, size: int) -> tuple[list[list[Tensor]], list[int | None]]:
    """Operands of each example, and for each operand the axis at which they are joined, None where all share one."""
    n = len(case.operands)
    mapped = draw(st.sets(st.integers(0, n - 1), min_size=1)) | ({WRITTEN[name]} if name in WRITTEN else set())
    first, *others = (operands(draw, case, dtype) for _ in range(size))
    examples = [first] + [[drawn[i] if i in mapped else first[i] for i in range(n)] for drawn in others]
    return examples, [draw(st.integers(0, x.ndim)) if i in mapped else None for i, x in enumerate(first)]


def joined(examples: list[list[Tensor]], axes: list[int | None]) -> list[Tensor]:
    return [
        examples[0][i] if axis is None else ta.stack([example[i] for example in examples], axis=axis)
        for i, axis in enumerate(axes)
    ]


@pytest.mark.property
@pytest.mark.parametrize("name", thinned(NAMES, 4))
def test_a_primitive_that_is_mapped_is_the_primitive_of_each_example(name):
    """For each choice of operands that are mapped, and of their axes; the others are the same for all examples.

    It has the same bits, or, where sums are made in another order, is as near to the exact result.
    """
    sample = SAMPLES[name]

    @at_most(12, first=2)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        examples, axes = draw_examples(data.draw, name, case, dtype, data.draw(st.integers(1, 3)))
        seed = data.draw(st.integers(0, 9))
        ta.manual_seed(seed)
        function = vmap(lambda *x: sample.function(*x, **case.params), axes, randomness="same")
        found = in_tuple(function(*joined(examples, axes)))
        for i, example in enumerate(examples):
            ta.manual_seed(seed)
            with recorded() as ran:
                alone = in_tuple(sample.function(*example, **case.params))
            mapped = tuple(x[i] for x in found)
            if any(x.numpy().tobytes() != y.numpy().tobytes() for x, y in zip(mapped, alone, strict=True)):
                calls = [call for call, _ in ran if call.primitive.name == name]
                assert_exact(name, case, dtype, calls, example, mapped)
            assert [(x.shape, x.dtype) for x in mapped] == [(x.shape, x.dtype) for x in alone]

    check()


@pytest.mark.property
@pytest.mark.parametrize("name", thinned([name for name in NAMES if name in DIFFERENTIABLE], 6))
def test_gradients_inside_and_outside_of_a_map_are_those_of_each_example(name):
    """From outside those of what all examples share add up."""
    sample = SAMPLES[name]

    @at_most(8, first=1)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        params = case.params | sample.smooth
        examples, axes = draw_examples(data.draw, name, case, dtypes.float64, 2)
        floats = [i for i, x in enumerate(examples[0]) if x.dtype.is_float]
        seed = data.draw(st.integers(0, 9))

        def function(*x):
            ta.manual_seed(seed)
            made = in_tuple(sample.function(*x, **params))
            return tuple(out for out in made if out.dtype.is_float)

        def pulled(function, gs, *given):
            def of_floats(*variables):
                filled = list(given)
                for i, x in zip(floats, variables):
                    filled[i] = x
                return function(*filled)

            return ta.vjp(of_floats, *(given[i] for i in floats))[1](*gs)

        shapes = [out.shape for out in function(*examples[0])]
        rng = np.random.default_rng(seed)
        gs = [Tensor(rng.normal(size=(2, *shape))) for shape in shapes]
        given = joined(examples, axes)
        single = [pulled(function, [g[k] for g in gs], *example) for k, example in enumerate(examples)]
        expected = [ta.stack(same) for same in zip(*single)]
        inside = vmap(lambda gs, *x: pulled(function, gs, *x), (0, *axes), randomness="same")(gs, *given)
        for found, one in zip(inside, expected):
            assert_close(found, one, 1e-9)
        outside = pulled(vmap(function, axes, randomness="same"), gs, *given)
        for i, found, one in zip(floats, outside, expected):
            assert_close(found if axes[i] is None else ta.moveaxis(found, axes[i], 0),
                         one.sum(axis=0) if axes[i] is None else one, 1e-9)  # fmt: skip

    check()


RNG = np.random.default_rng(0)


def drawn(*shape: int) -> Tensor:
    return Tensor(RNG.normal(size=shape))


def assert_close(found: Tensor, expected, rtol: float = 1e-12) -> None:
    """Tensors of float64 that were computed in another order."""
    expected = expected.numpy() if isinstance(expected, Tensor) else np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=rtol)


def each(function, *args):
    """The function of each example, one after the other, put together."""
    return ta.stack([function(*example) for example in zip(*args)])


def compiled(function):
    """With the kernels of eager mode: no C compiler takes its time."""
    return Compiled(function, build=Interpreter)


W, V, X, Y = drawn(4, 6), drawn(6, 3), drawn(5, 4), Tensor([0, 2, 1, 1, 0])


def loss(w, v, x, y):
    return ta.cross_entropy(ta.layer_norm(ta.tanh(x @ w)) @ v, y)


def test_arguments_and_results_may_be_trees_with_axes_of_their_own():
    def function(first, second, *, scale):
        return {"sum": first["a"] + second[0], "more": (second[1] * scale, first["a"])}

    a, b, c = drawn(2, 5), drawn(5, 2), drawn(2)
    out_axes = {"sum": 1, "more": (None, 0)}
    found = vmap(function, in_axes=({"a": 1}, [0, None]), out_axes=out_axes)({"a": a}, [b, c], scale=2)
    assert_close(found["sum"], a + b.T)
    assert_close(found["more"][0], c * 2)
    assert_close(found["more"][1], a.T)
    assert vmap(lambda x: x[:2], -1, -1)(b).tolist() == b[:2].tolist()


def test_a_result_that_is_the_same_for_all_examples_is_repeated():
    assert vmap(lambda x: ta.ones(2))(X).tolist() == [[1, 1]] * 5


def test_maps_nest_and_the_inner_one_may_take_what_the_outer_one_maps():
    a, b = drawn(3, 2), drawn(4, 2)
    assert_close(vmap(lambda x: vmap(lambda y: (x * y).sum())(b))(a), a @ b.T)
    assert_close(vmap(vmap(lambda x, y: x - y, (0, None)), (None, 0))(a[:, 0], b[:, 0]), (a[:, :1] - b[:, 0]).T)


def test_there_may_be_no_example():
    assert vmap(lambda x: (x @ W).max(axis=0))(ta.zeros((0, 2, 4), dtype="float64")).shape == (0, 6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: gpt2.GPT2(gpt2.Config(vocab_size=128, block_size=16, n_layer=2, n_head=2, n_embd=32)),
    lambda: llama3.Llama3(llama3.Config(128, 16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48)),
])  # fmt: skip
def test_a_language_model_has_a_gradient_for_each_text(make):
    class Loss(ta.nn.Module):
        def __init__(self, model):
            self.model = model

        def forward(self, tokens):
            return self.model.loss(tokens[:-1].reshape(1, 16), tokens[1:].reshape(1, 16))

    ta.manual_seed(0)
    module, tokens = Loss(make()), ta.randint(0, 128, (3, 17))
    state = dict(module.named_parameters())
    gradient = ta.grad(lambda state, tokens: ta.functional_call(module, state, tokens))
    found = vmap(gradient, (None, 0))(state, tokens)
    texts = [gradient(state, text) for text in tokens]
    vmap(module)(tokens).sum().backward()
    for name, p in state.items():
        expected = np.stack([g[name].numpy() for g in texts])
        unit = 2.0**-23 * 256 * np.abs(expected).max()  # the longest sums are over 128 classes, or 16 tokens, and back
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=0, atol=unit)
        np.testing.assert_allclose(p.grad.numpy(), expected.sum(axis=0), rtol=0, atol=3 * unit)


def test_a_gradient_inside_is_of_each_example_and_one_outside_of_their_sum():
    grads = ta.grad(loss, (0, 1, 2))
    found = vmap(grads, (None, None, 0, 0))(W, V, X, Y)
    expected = [grads(W, V, x, y) for x, y in zip(X, Y)]
    for i in range(3):
        assert_close(found[i], ta.stack([g[i] for g in expected]), 1e-10)
    total = ta.grad(lambda *given: vmap(loss, (None, None, 0, 0))(*given, Y).sum(), (0, 1, 2))(W, V, X)
    for i, g in enumerate(total):
        assert_close(g, found[i].sum(axis=0) if i < 2 else found[i], 1e-10)


def test_gradients_through_a_map_and_theirs_agree_with_finite_differences():
    def function(w, v, x):
        return vmap(loss, (None, None, 0, 0))(w, v, x, Y)

    assert gradcheck(function, W, V, X)
    assert gradgradcheck(function, W, V, X)


def test_a_gradient_of_gradients_of_each_example():
    def penalty(each_gradient):
        return lambda w: sum((g**2).sum() for g in each_gradient(w))

    found = ta.grad(penalty(lambda w: vmap(ta.grad(loss), (None, None, 0, 0))(w, V, X, Y)))(W)
    expected = ta.grad(penalty(lambda w: [ta.grad(loss)(w, V, x, y) for x, y in zip(X, Y)]))(W)
    assert_close(found, expected, 1e-10)


def test_backward_reaches_leaves_that_the_function_closes_over():
    w = Tensor(W, requires_grad=True)
    vmap(lambda x, y: loss(w, V, x, y))(X, Y).sum().backward()
    assert_close(w.grad, ta.grad(lambda w: ta.cross_entropy(ta.layer_norm(ta.tanh(X @ w)) @ V, Y, reduction="sum"))(W))


def test_a_map_that_backward_has_freed_holds_no_memory_though_its_result_lives_on():
    seen = []

    def function(w, x):
        hidden = ta.tanh(x @ w)
        seen.append(weakref.ref(hidden.array.storage))
        return (hidden * hidden).sum()

    w = Tensor(W, requires_grad=True)
    total = vmap(function, (None, 0))(w, X).sum()
    assert seen[0]() is not None
    total.backward()
    assert seen[0]() is None
    with pytest.raises(GradientError, match="freed"):
        total.backward()


def test_the_gradient_of_a_shared_weight_is_one_product_and_none_for_each_example():
    def function(w, table, x, i):
        return ((x @ w + table[i]) @ w.T @ w * table[0]).sum()

    given = W, drawn(3, 6), X, Y
    with recorded() as ran:
        found = ta.grad(lambda *given: vmap(function, (None, None, 0, 0))(*given).sum(), (0, 1))(*given)
        ta.jvp(ta.grad(lambda w: vmap(lambda x: ta.tanh(x @ w).sum())(X).sum()), (W,), (W,))
    made = {shape for call, _ in ran if call.primitive.view is None for shape in call.out_shapes}
    assert (4, 6) in made and (5, 4, 6) not in made and (5, 6, 4) not in made
    for g, each in zip(found, vmap(ta.grad(function, (0, 1)), (None, None, 0, 0))(*given)):
        assert_close(g, each.sum(axis=0))


def test_what_changes_gradients_inside_does_so_for_each_example():
    @ta.custom_gradient
    def tenfold(x, w):
        return x * w, lambda g: (10 * g * w, (10 * g * x).sum())

    def function(x, w):
        y = ta.checkpoint(lambda x: ta.sin(x) * x, tenfold(x, w))
        if y.requires_grad:
            y.register_hook(lambda g: 2 * g)
        return y.sum()

    w = Tensor(2.0, dtype="float64")
    grads = ta.grad(function, (0, 1))
    x_grads, w_grads = vmap(grads, (0, None))(X, w)
    assert_close(x_grads, each(lambda x: grads(x, w)[0], X))
    assert_close(w_grads, each(lambda x: grads(x, w)[1], X))
    outside = ta.grad(lambda x, w: vmap(function, (0, None))(x, w).sum(), (0, 1))(X, w)
    assert_close(outside[0], x_grads)
    assert_close(outside[1], w_grads.sum())


def test_anomalies_are_found_at_the_call_of_the_map():
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    with ta.detect_anomaly():
        y = vmap(lambda x: (1 / x * 0).sum())(x)  # here
        with pytest.raises(GradientError, match=r"of vmap became NaN.*# here"):
            y.sum().backward()
        with pytest.raises(TraceError, match="differentiate the map"):
            vmap(ta.grad(lambda x: ta.log(x).sum()))(x)


def test_detached_values_have_no_gradient():
    found = ta.grad(lambda x: vmap(lambda x: (x * x.detach()).sum())(x).sum())(X)
    assert_close(found, X)


def test_compiled_programs_map_and_what_is_mapped_may_be_compiled():
    per_example = vmap(ta.grad(loss), (None, None, 0, 0))
    expected = per_example(W, V, X, Y)
    assert compiled(per_example)(W, V, X, Y).tolist() == expected.tolist()  # the plan never changes a number
    assert_close(vmap(ta.grad(compiled(loss)), (None, None, 0, 0))(W, V, X, Y), expected, 1e-10)
    w = Tensor(W, requires_grad=True)
    compiled(lambda w: vmap(loss, (None, None, 0, 0))(w, V, X, Y).sum())(w).backward()
    assert_close(w.grad, expected.sum(axis=0), 1e-10)


def test_a_user_s_primitive_runs_by_its_composite_or_for_one_example_after_the_other(request):
    def infer(shapes, dtypes):
        return [(shapes[0], dtypes[0])]

    alone = Primitive("doubled_by_kernel", infer, derived=True).no_gradient()
    kernel(alone)(lambda x, out: np.multiply(x, 2, out=out))
    request.addfinalizer(lambda: KERNELS.pop(alone))
    composed = Primitive("doubled_by_composite", infer, composite=lambda x: x + x, derived=True).no_gradient()
    for primitive in alone, composed:
        assert_close(vmap(lambda x, primitive=primitive: apply(primitive, x))(X), X * 2)
        assert vmap(lambda x, primitive=primitive: apply(primitive, x))(X[:0]).shape == (0, 4)


def test_elements_that_depend_on_where_they_are_do_so_within_their_example():
    @ta.elementwise
    def numbered(x):
        return x + scalar.index(0)

    assert_close(vmap(numbered)(X), each(numbered, X))


def test_a_batching_rule_can_be_given():
    ran = []
    primitive = Primitive("tripled", lambda shapes, dtypes: [(shapes[0], dtypes[0])], derived=True).no_gradient()

    @batching_rule(primitive)
    def rule(call, size, operands, batched):
        ran.append((call.in_shapes, size, operands[0].shape, list(batched)))
        return operands[0] * 3

    assert_close(vmap(lambda x: apply(primitive, x))(X), X * 3)
    assert ran == [(((4,),), 5, (5, 4), [True])]


def test_draws_are_refused_unless_said_how_they_are():
    with pytest.raises(ArgumentError, match="randomness='different'"):
        vmap(ta.dropout)(X)
    with pytest.raises(ArgumentError, match="'sometimes'"):
        vmap(ta.dropout, randomness="sometimes")


@pytest.mark.parametrize("wrap", [lambda f: f, compiled, lambda f: lambda x: ta.checkpoint(f, x)])
@pytest.mark.parametrize("draw", [ta.dropout, lambda x: x * 0 + ta.rand(64, dtype="float64")])
def test_examples_draw_their_own_numbers_or_the_same(wrap, draw):
    x = ta.ones((3, 64), dtype="float64")
    same = wrap(vmap(draw, randomness="same"))(x).numpy()
    assert (same == same[0]).all()
    different = wrap(vmap(draw, randomness="different"))(x).numpy()
    assert len({row.tobytes() for row in different}) == 3


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_the_gradient_of_dropout_draws_the_mask_of_its_example_again(randomness):
    x = ta.ones((3, 16), dtype="float64")
    function = vmap(ta.dropout, randomness=randomness)
    for f in function, lambda x: ta.checkpoint(function, x):
        out, pull = ta.vjp(f, x)
        assert_close(pull(x)[0], out)
    out, grads = vmap(lambda x: (lambda out, pull: (out, pull(x)[0]))(*ta.vjp(ta.dropout, x)), randomness=randomness)(x)
    assert_close(grads, out)


def test_memory_made_inside_may_be_written_and_that_of_others_not():
    def function(x):
        out = ta.empty(4, dtype="float64")
        out[1:] = x[:3]
        out[0] = 7.0
        return out

    assert_close(vmap(function)(X), each(function, X))
    shared = ta.zeros(4, dtype="float64")
    with pytest.raises(ArgumentError, match="one tensor for all examples"):
        vmap(shared.assign)(X)
    assert shared.tolist() == [0] * 4


def test_a_write_into_an_example_is_seen_outside_and_by_backward():
    x = Tensor(X)

    def write(x):
        x[0] = 9.0
        return x

    vmap(write)(x)
    assert x[:, 0].tolist() == [9] * 5

    def overwritten(w, x):
        y = w * x
        x[0] = 1.0
        return y.sum()

    with pytest.raises(GradientError, match="overwritten"):
        ta.grad(lambda w: vmap(overwritten, (None, 0))(w, x).sum())(W[:, 0])


def test_what_needs_the_elements_of_one_example_is_refused():
    for function in ta.Tensor.item, bool, lambda x: x.numpy(), lambda x: ta.nonzero(x.reshape(1)):
        with pytest.raises(TraceError, match="vmap: the elements"):
            vmap(function)(X[:, 0])
    assert vmap(lambda x: x * W[0, 0].item())(X).shape == X.shape  # what is the same for all can be read


def test_a_tensor_of_one_example_is_no_use_outside():
    kept = []
    vmap(lambda x: kept.append(x) or x)(X)
    for use in (lambda x: x + 1, lambda x: x[0].item(), lambda x: x.numpy(), repr):
        with pytest.raises(TraceError, match="return it"):
            use(kept[0])


def test_an_index_outside_its_example_is_refused():
    with pytest.raises(OutOfBounds):
        vmap(ta.take)(X, Tensor([[0], [1], [4], [0], [0]]))
    with pytest.raises(OutOfBounds):
        vmap(ta.embedding)(drawn(2, 3, 2), Tensor([[1], [-1]]))
    with pytest.raises(OutOfBounds, match="target"):
        vmap(ta.cross_entropy)(X, Tensor([0, 1, 2, 3, 4]))


def test_a_tensor_may_be_an_index_that_is_another_for_each_example():
    def function(x, i):
        y = ta.copy(x)
        y[i] = 0.0
        return x[i] + x[1], y

    for mapped in vmap(function), compiled(vmap(function)):
        picked, written = mapped(X, Y)
        assert_close(picked, ta.stack([x[int(i)] + x[1] for x, i in zip(X, Y)]))
        assert_close(written, X * (ta.arange(4) != Y.reshape(5, 1)))


def test_wrong_axes_are_refused():
    for kind, match, call in (
        (ShapeError, r"\[4, 5\] examples", lambda: vmap(ta.add, (0, 1))(X, X)),
        (ShapeError, "no argument", lambda: vmap(ta.add, None)(X, X)),
        (ShapeError, "0-d", lambda: vmap(ta.sin)(Tensor(1.0))),
        (OutOfBounds, "vmap: axis is 2", lambda: vmap(ta.sin, 2)(X)),
        (ArgumentError, "holds float", lambda: vmap(ta.add)(X, 1.0)),
        (ArgumentError, "in_axes is", lambda: vmap(ta.add, (0, 0, 0))(X, X)),
        (ArgumentError, "out_axes is None", lambda: vmap(ta.sin, out_axes=None)(X)),
        (ArgumentError, "returned float", lambda: vmap(lambda x: 1.0)(X)),
    ):
        with pytest.raises(kind, match=match):
            call()


@pytest.mark.parity
def test_results_are_those_of_torch():
    import torch
    from torch.func import grad, jacrev
    from torch.func import hessian as their_hessian
    from torch.func import vmap as their_vmap

    def theirs(w, v, x, y):
        normal = torch.nn.functional.layer_norm(torch.tanh(x @ w), (6,))
        return torch.nn.functional.cross_entropy((normal @ v)[None], y[None])

    w, v, x, y = (torch.tensor(t.numpy()) for t in (W, V, X, Y))
    axes = None, None, 0, 0
    for ours, other in (
        (vmap(loss, axes), their_vmap(theirs, axes)),
        (vmap(ta.grad(loss), axes), their_vmap(grad(theirs), axes)),
        (vmap(ta.hessian(loss, 1), axes), their_vmap(their_hessian(theirs, 1), axes)),
        (ta.jacobian(vmap(loss, axes)), jacrev(their_vmap(theirs, axes))),
        (vmap(lambda w, v, *_: ta.outer(w, v), (1, 0, None, None), 1),
         their_vmap(lambda w, v, *_: torch.outer(w, v), (1, 0, None, None), 1)),
    ):
        assert_close(ours(W, V, X, Y), other(w, v, x, y).numpy(), 1e-9)
