"""The tape: what backward computes, what it frees, what it refuses, and what hangs on it."""

import gc
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import slow
from tinyarr.errors import ArgumentError, GradientError
from tinyarr.testing import gradcheck, gradgradcheck


def leaf(data, dtype=ta.float64):
    return ta.Tensor(data, dtype=dtype, requires_grad=True)


def random(*shape, seed=0, requires_grad=False):
    return ta.randn(*shape, generator=ta.Generator(seed), dtype=ta.float64, requires_grad=requires_grad)


def storage(t):
    return t.array.storage


@contextmanager
def no_collector():
    """Whatever dies inside dies because its last reference went."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# What backward computes


def test_gradients_add_up_over_backward_passes():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0]


def test_a_diamond_and_a_leaf_used_in_many_places_get_every_part():
    x = leaf(3.0)
    y = x * x
    (y * 2 + y * x + x).backward()
    assert x.grad.item() == 2 * 6 + 3 * 9 + 1


def test_a_node_waits_for_all_of_its_users_however_they_are_ordered():
    x = leaf(2.0)
    early = x * 1
    late = early
    for _ in range(20):
        late = late * 1
    (early * late).backward()
    assert x.grad.item() == 4.0


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=15))
def test_random_graphs_have_the_gradients_of_forward_mode(program):
    start = (0.5, -1.5, 2.0)
    leaves = [leaf(v) for v in start]
    values = list(leaves)
    duals = [(v, np.eye(3)[i]) for i, v in enumerate(start)]
    for symbol, i, j in program:
        x, y = values[i % len(values)], values[j % len(values)]
        (a, da), (b, db) = duals[i % len(duals)], duals[j % len(duals)]
        values.append({"+": x + y, "-": x - y, "*": x * y}[symbol])
        duals.append({"+": (a + b, da + db), "-": (a - b, da - db), "*": (a * b, da * b + a * db)}[symbol])
    values[-1].backward()
    found = [0.0 if x.grad is None else x.grad.item() for x in leaves]
    np.testing.assert_allclose(found, duals[-1][1], rtol=1e-12, atol=1e-12 * np.abs(duals[-1][1]).max())


def test_broadcast_operands_get_gradients_of_their_own_shape_and_dtype():
    x, y = leaf(np.ones((3, 1)), ta.float32), leaf(np.ones((2, 1, 4)), ta.bfloat16)
    (x * y).sum().backward()
    assert (x.grad.shape, x.grad.dtype, x.grad.tolist()) == ((3, 1), ta.float32, [[8.0]] * 3)
    assert (y.grad.shape, y.grad.dtype, y.grad.tolist()) == ((2, 1, 4), ta.bfloat16, [[[3.0] * 4]] * 2)


def test_a_split_into_one_part_has_a_gradient():
    x = leaf([1.0, 2.0])
    (part,) = x.split([2])
    (part * part).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_an_unused_part_of_a_split_gets_zeros():
    x = leaf([1.0, 2.0, 3.0])
    x.split([1, 2])[1].sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0]


def test_backward_starts_from_the_given_gradient_and_from_a_leaf_itself():
    x = leaf([1.0, 2.0])
    (x * 2).backward(ta.Tensor([1.0, -1.0], dtype=ta.float64))
    assert x.grad.tolist() == [2.0, -2.0]
    y = leaf(5.0)
    y.backward()
    assert y.grad.item() == 1.0


def test_the_same_program_gives_the_same_bits():
    def run():
        x, w = random(64, 32, seed=1, requires_grad=True), random(32, 32, seed=2, requires_grad=True)
        h = x
        for _ in range(3):
            h = ta.layer_norm((h @ w).gelu() + h, w[0], w[1])
        ta.cross_entropy(h, ta.arange(64) % 32).backward()
        return x.grad.numpy().tobytes() + w.grad.numpy().tobytes()

    assert run() == run()


# The graph's life


def test_a_second_backward_needs_retain_graph():
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8.0
    with pytest.raises(GradientError, match=r"multiply was freed by an earlier backward.*retain_graph=True"):
        y.backward()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda: ta.Tensor([1.0]).backward(), "does not depend on any tensor with requires_grad=True"),
        (lambda: leaf([1.0, 2.0]).backward(), r"shape \(2,\): only a single element.*mean, sum"),
        (lambda: leaf([1.0]).backward(ta.ones((2,))), r"shape \(1,\).*float64.*shape \(2,\).*float32"),
        (lambda: ta.gradients([leaf(1.0)], [], [None, None]), "1 outputs, 2 gradients"),
        (lambda: ta.Tensor([1], requires_grad=True), "int64.*only floating"),
        (lambda: setattr(leaf(1.0) * 2, "requires_grad", False), "use detach"),
        (lambda: ta.Tensor(1.0).register_hook(print), "set requires_grad=True first"),
    ],
)
def test_a_gradient_that_makes_no_sense_is_refused(start, message):
    with pytest.raises((GradientError, ValueError), match=message):
        start()


def test_results_of_recorded_operations_have_history_and_others_have_none():
    x = leaf([1.0])
    assert not (x * 2).is_leaf and (x * 2).requires_grad
    assert not (x > 0).requires_grad and not x.astype(ta.int64).requires_grad
    assert not (x * 2).detach().requires_grad and (x * 2).detach().is_leaf
    assert x.requires_grad and x.is_leaf and x.grad is None


def test_detach_shares_memory_and_stops_the_gradient():
    x = leaf([3.0])
    d = x.detach()
    assert storage(d) is storage(x)
    (x * d).sum().backward()
    assert x.grad.tolist() == [3.0]


def test_no_grad_and_enable_grad_nest_and_are_restored_by_exceptions():
    x = leaf(1.0)
    with ta.no_grad():
        assert not (x * 2).requires_grad
        with ta.enable_grad():
            assert (x * 2).requires_grad
        with pytest.raises(KeyError), ta.enable_grad():
            raise KeyError
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_and_enable_grad_decorate_functions():
    x = leaf(1.0)
    double = ta.no_grad()(lambda: x * 2)
    again = ta.no_grad()(ta.enable_grad()(lambda: x * 2))
    assert [double().requires_grad, again().requires_grad, double().requires_grad] == [False, True, False]


def test_a_thread_is_not_affected_by_no_grad_in_another():
    x = leaf(1.0)
    recorded = []
    with ta.no_grad():
        thread = threading.Thread(target=lambda: recorded.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert recorded == [True]


def test_threads_may_each_run_forward_and_backward():
    def work(result):
        for _ in range(30):
            x = random(40, 600, seed=3, requires_grad=True)
            (x.gelu() * 2).sum().backward()
            result.append(x.grad.numpy().tobytes())

    results = [[] for _ in range(4)]
    threads = [threading.Thread(target=work, args=(r,)) for r in results]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [len(r) for r in results] == [30] * 4 and len(set().union(*results)) == 1


@pytest.mark.parametrize("operations", [20_000, slow(200_000)])
def test_a_long_graph_is_walked_and_freed(operations):
    x = leaf(1.0)
    y = x
    for _ in range(operations):
        y = y * 1.0
    y.backward(retain_graph=True)
    assert x.grad.item() == 1.0
    with no_collector():
        del y


def test_tensors_and_graphs_die_with_their_last_reference():
    def step(x, w):
        h = ta.layer_norm((x @ w).exp(), w[0], w[1])
        h = ta.checkpoint(lambda h: h.tanh().max(axis=0), h)
        return squares(ta.concat([h, h]).reshape((2, -1))).sum()

    @ta.custom_gradient
    def squares(x):
        return x * x, lambda g: 2 * g * x

    with no_collector():
        x, w = random(3, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
        for backward in (False, True):
            loss = step(x, w)
            if backward:
                loss.backward(create_graph=True)
            watched = [weakref.ref(loss), weakref.ref(storage(loss))]
            if backward:
                watched += [weakref.ref(x.grad), weakref.ref(storage(w.grad))]
                x.grad = w.grad = None
            del loss
            assert [r() for r in watched] == [None] * len(watched)


def test_backward_frees_what_was_saved_although_the_result_lives():
    x = leaf([1.0, 2.0])
    y = x * 1
    watched = weakref.ref(y)
    z = ta.checkpoint(lambda y: y * y, (y * y).exp()).sum()
    del y
    assert watched() is not None
    z.backward()
    assert watched() is None and z.item() > 0


# Gradients in their own memory


def overlapping(tensors):
    return [(i, j) for i, a in enumerate(tensors) for j, b in enumerate(tensors) if i < j and storage(a) is storage(b)]


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_leaves_share_memory_with_nothing(create_graph):
    x, y, z, v, w = (leaf(np.ones((2, 3))) for _ in range(5))
    start, kept = ta.ones((2, 3), dtype=ta.float64), []
    w.register_hook(lambda g: start)
    v.register_hook(kept.append)
    parts = ta.concat([z.T, v.T], axis=1)
    out = x + y + parts[:, :2].T + parts[:, 2:].T + w.reshape((6,)).reshape((2, 3))
    out.backward(start, create_graph=create_graph)
    assert overlapping([t.grad for t in (x, y, z, v, w)] + [start, kept[0], x, y, z, v, w]) == []
    assert all(t.grad.tolist() == [[1.0] * 3] * 2 for t in (x, y, z, v, w))


def test_a_gradient_does_not_share_memory_with_what_a_custom_gradient_returned():
    @ta.custom_gradient
    def dot(x, y):
        return (x * y).sum(), lambda g: (y, x)

    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    dot(x, y).backward()
    assert overlapping([x, y, x.grad, y.grad]) == [] and x.grad.tolist() == [3.0, 4.0]


# Writes


SAVING = [
    ("multiply", lambda x, y: x * y, "y"),
    ("exp", lambda x, y: x.exp(), "result"),
    ("matmul", lambda x, y: x @ y, "y"),
    ("max", lambda x, y: x.max(axis=0), "x"),
    ("layer_norm", lambda x, y: ta.layer_norm(x, y[0], y[1]), "y"),
    ("checkpoint", lambda x, y: ta.checkpoint(lambda x: x * y, x), "x"),
    ("checkpoint", lambda x, y: ta.checkpoint(lambda x: x * y, x), "y"),
]


@pytest.mark.parametrize(("name", "operation", "written"), SAVING)
def test_a_write_into_what_an_operation_saved_is_caught_and_names_it(name, operation, written):
    x, y = random(3, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
    x, y = x * 1, y * 1
    result = operation(x, y)
    with ta.no_grad():
        {"x": x, "y": y, "result": result}[written][0, 0] = 7.0
    with pytest.raises(GradientError, match=rf"{name} saved .* \(3,.*\), which was overwritten.*version 0, now 1"):
        result.sum().backward()


def test_a_write_into_what_backward_closes_over_is_caught():
    y = ta.Tensor([2.0])

    @ta.custom_gradient
    def scaled(x):
        return x * y, lambda g: g * y

    result = scaled(leaf([1.0], ta.float32))
    y[0] = 3.0
    with pytest.raises(GradientError, match="scaled saved a tensor"):
        result.sum().backward()


def test_a_write_through_a_view_or_an_alias_is_caught():
    x, y = leaf([1.0, 2.0]), ta.Tensor([3.0, 4.0], dtype=ta.float64)
    result = x * y[::-1]
    y.detach()[:1] = 0.0
    with pytest.raises(GradientError, match="multiply saved y"):
        result.sum().backward()


def test_a_write_into_what_nothing_saved_changes_no_gradient():
    x, y = leaf([1.0, 2.0]), ta.Tensor([3.0, 4.0], dtype=ta.float64)
    total = x + y
    scaled = y * x.detach() + x * 2.0
    y[0] = 100.0
    with ta.no_grad():
        total[0] = 5.0
    (total * 2 + scaled).sum().backward()
    assert x.grad.tolist() == [4.0, 4.0]


def test_a_write_that_takes_part_in_a_gradient_is_refused_and_names_the_way_out():
    x, plain = leaf([1.0, 2.0]), ta.zeros(2, dtype=ta.float64)
    writes = [
        lambda: x.assign(0.0),
        lambda: x[0:1].assign(0.0),
        lambda: plain.assign(x),
        lambda: (x * 2).assign(plain),
        lambda: ta.add(x, 1.0, out=plain),
        lambda: ta.add(plain, 1.0, out=x),
    ]
    for write in writes:
        with pytest.raises(GradientError, match="where or concat"):
            write()
    assert x.tolist() == [1.0, 2.0] and plain.tolist() == [0.0, 0.0]
    with ta.no_grad():
        for write in writes:
            write()


# Hooks


def test_a_hook_sees_the_whole_gradient_once_and_may_replace_it():
    x = leaf([1.0, 2.0])
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    (y * 3 + y).sum().backward()
    assert seen == [[4.0, 4.0]]
    assert x.grad.tolist() == [81.0, 81.0]


def test_a_hook_on_a_leaf_inside_a_checkpoint_runs_once_on_the_sum():
    x = leaf([1.0])
    seen = []
    x.register_hook(lambda g: seen.append(g.item()))
    (ta.checkpoint(lambda: x * 2) + x).sum().backward()
    assert seen == [3.0] and x.grad.item() == 3.0


def test_a_hook_can_be_removed_also_by_itself():
    x = leaf([1.0])
    calls = []
    first = x.register_hook(lambda g: (calls.append("first"), first.remove())[-1])
    second = x.register_hook(lambda g: calls.append("second"))
    x.sum().backward()
    x.sum().backward()
    second.remove()
    second.remove()
    x.sum().backward()
    assert calls == ["first", "second", "second"]


@pytest.mark.parametrize("bad", [1.0, ta.ones((3,), dtype=ta.float64), ta.ones((1,))])
def test_a_hook_that_returns_anything_but_such_a_gradient_is_refused(bad):
    x = leaf([1.0])
    x.register_hook(lambda g: bad)
    with pytest.raises(GradientError, match=r"returned .*must be None or a tensor of shape \(1,\), dtype float64"):
        x.sum().backward()


# gradients, grad, value_and_grad, vjp


def test_gradients_gives_those_of_any_tensors_and_touches_no_grad():
    x = leaf([1.0, 2.0])
    y = x * x
    z = (y * x).sum()
    gx, gy, gz, none = ta.gradients(z, [x, y, z, leaf(1.0)])
    assert (gx.tolist(), gy.tolist(), gz.item(), none) == ([3.0, 12.0], [1.0, 2.0], 1.0, None)
    assert x.grad is None


def test_gradients_of_outputs_that_are_inputs_too_are_whole():
    x = leaf(3.0)
    y = x * x
    assert [g.item() for g in ta.gradients([x, y, y * 2, x], [x, y])] == [1 + 6 + 12 + 1, 3]


def test_gradients_runs_only_the_nodes_that_lead_to_the_inputs():
    x, y = leaf(2.0), leaf(3.0)
    other = y * y
    ta.gradients(x * x + other, [x])
    other.backward()
    assert y.grad.item() == 6.0


def test_grad_and_value_and_grad_differentiate_chosen_arguments():
    def f(x, y, power=2):
        return (x * y**power).sum()

    x, y = ta.Tensor([1.0, 2.0]), ta.Tensor([3.0, 4.0])
    assert ta.grad(f)(x, y).tolist() == [9.0, 16.0]
    assert ta.grad(f, 1)(x, y, power=3).tolist() == [27.0, 96.0]
    value, (gy, gx) = ta.value_and_grad(f, (-1, 0))(x, y)
    assert (value.item(), gx.tolist(), gy.tolist()) == (41.0, [9.0, 16.0], [6.0, 16.0])
    assert not value.requires_grad and not gx.requires_grad and x.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ta.grad(lambda x: x * 2)(ta.ones((2,))), r"<lambda> returned .*shape \(2,\).*one element"),
        (lambda: ta.grad(lambda x: 3.0)(ta.ones(())), "returned float: return a tensor"),
        (lambda: ta.grad(lambda x: x, 1)(ta.ones(())), "argument 1 of <lambda> is missing: it must be a tensor"),
        (lambda: ta.grad(lambda x: x)(2.0), "argument 0"),
        (lambda: ta.grad(lambda x: x)(ta.Tensor(2)), "int64.*only floating"),
        (lambda: ta.checkpoint(lambda x: [x, 1], ta.ones(())), "checkpoint: the function returned int"),
    ],
)
def test_what_can_not_be_differentiated_is_refused(call, message):
    with pytest.raises((GradientError, ValueError), match=message):
        call()


def test_vjp_pulls_several_gradients_back_and_again():
    x, y = ta.Tensor([1.0, 2.0]), ta.Tensor([3.0, 4.0])
    (product, _), pull = ta.vjp(lambda x, y: (x * y, x + 1), x, y)
    one, zero = ta.ones((2,)), ta.zeros((2,))
    assert product.tolist() == [3.0, 8.0]
    assert [g.tolist() for g in pull(one, zero)] == [[3.0, 4.0], [1.0, 2.0]]
    assert [g.tolist() for g in pull(zero, one)] == [[1.0, 1.0], [0.0, 0.0]]


def test_vjp_of_a_constant_is_zero():
    _, pull = ta.vjp(lambda x: ta.ones(()), ta.Tensor([1.0]))
    assert pull(ta.ones(()))[0].tolist() == [0.0]


def test_grad_works_under_no_grad_and_of_tensors_that_require_one():
    x = leaf([1.0, 2.0])
    with ta.no_grad():
        g = ta.grad(lambda x: (x * x).sum())(x)
    assert g.tolist() == [2.0, 4.0] and not g.requires_grad


def test_grad_nests():
    def f(x):
        return x * x * x

    x = ta.Tensor(2.0)
    assert ta.grad(ta.grad(f))(x).item() == 12.0
    assert ta.grad(ta.grad(ta.grad(f)))(x).item() == 6.0
    # The inner gradient is one with respect to its own variable, not to the outer of the same value.
    assert ta.grad(lambda x: x * ta.grad(lambda y: x * y)(ta.Tensor(1.0)))(x).item() == 4.0
    assert ta.grad(lambda x: x * ta.grad(lambda y: x + y)(x))(x).item() == 1.0


def test_a_hessian_and_its_products_are_those_of_the_formula():
    a = random(3, 3, seed=1)

    def f(x):
        return (x @ a @ x) * x.sum()

    x, v = random(3, seed=2), random(3, seed=3)
    hessian = np.stack([ta.grad(lambda x, i=i: ta.grad(f)(x)[i])(x).numpy() for i in range(3)])
    A, X, V = a.numpy(), x.numpy(), v.numpy()
    S, ones = A + A.T, np.ones(3)
    np.testing.assert_allclose(hessian, S * X.sum() + np.outer(S @ X, ones) + np.outer(ones, S @ X), rtol=1e-12)
    product = ta.grad(lambda x: (ta.grad(f)(x) * v).sum())(x)
    np.testing.assert_allclose(product.numpy(), hessian @ V, rtol=1e-12)


def test_create_graph_makes_a_grad_that_can_be_differentiated():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    first = x.grad
    x.grad = None
    first.backward()
    assert (first.item(), x.grad.item()) == (12.0, 12.0)


# Primitives with kernels of their own, differentiated twice


def norm(x):
    return ta.layer_norm(x, x[0], x[1] * x[0])


def attention(x):
    q, k, v = (x.reshape((1, 2, 3, 4)), (x * 2).reshape((1, 2, 3, 4)), x.sin().reshape((1, 2, 3, 4)))
    return ta.scaled_dot_product_attention(q, k, v, is_causal=True)


def self_attention(x):
    x = x.reshape((2, 1, 3, 4))
    return ta.scaled_dot_product_attention(x, x, x)


def loss(x):
    return ta.cross_entropy(x, ta.Tensor([3, -100, 0, 1, 1, 2]), reduction="none")


@pytest.mark.parametrize("f", [norm, attention, self_attention, loss])
def test_gradients_of_fused_primitives_can_be_differentiated(f):
    x = random(6, 4)
    assert gradcheck(f, x) and gradgradcheck(f, x)


@pytest.mark.parametrize("f", [norm, attention, self_attention, loss])
def test_create_graph_does_not_change_the_gradients_of_fused_primitives(f):
    def run(create_graph):
        x = random(6, 4, requires_grad=True)
        f(x * 1).sin().sum().backward(create_graph=create_graph)
        return x.grad.numpy()

    np.testing.assert_allclose(run(True), run(False), rtol=1e-10, atol=1e-12)


# custom_gradient


@ta.custom_gradient
def clipped_square(x, *, limit):
    def backward(g):
        return ta.clip(2 * g * x, -limit, limit)

    return x * x, backward


def test_a_custom_gradient_is_used():
    x = leaf([1.0, 5.0])
    y = clipped_square(x, limit=3.0)
    y.sum().backward()
    assert (y.tolist(), x.grad.tolist()) == ([1.0, 25.0], [2.0, 3.0])
    assert clipped_square.__name__ == "clipped_square" and not clipped_square(x.detach(), limit=3.0).requires_grad


def test_a_custom_gradient_can_be_differentiated_again():
    @ta.custom_gradient
    def sine_and_square(x, y):
        return (x.sin() * y, y * y), lambda g, h: (g * x.cos() * y, g * x.sin() + 2 * h * y)

    x, y = random(3, seed=1), random(3, seed=2)
    assert gradcheck(sine_and_square, x, y) and gradgradcheck(sine_and_square, x, y)


def test_a_custom_gradient_takes_zeros_for_unused_results_and_none_for_no_gradient():
    @ta.custom_gradient
    def two(x, y):
        return (x * 2, y * 2), lambda g, h: (g + h, None)

    x, y = leaf([1.0]), leaf([1.0])
    (two(x, y)[1] * 3 + y).sum().backward()
    assert x.grad.tolist() == [3.0] and y.grad.tolist() == [1.0]


def test_a_custom_gradient_of_the_wrong_number_or_shape_is_refused():
    x = leaf([1.0, 2.0])
    with pytest.raises(GradientError, match="twice: backward returned 2 gradients for 1 tensor"):
        twice(x, lambda g: (g, g)).sum().backward()
    with pytest.raises(ValueError, match=r"twice.gradient: the gradient has shape \(3,\), its operand \(2,\)"):
        twice(x, lambda g: ta.ones((3,))).sum().backward()


@ta.custom_gradient
def twice(x, backward):
    return x * 2, backward


# checkpoint


def block(x, w, p):
    return ((x @ w).gelu(approximate="tanh")).dropout(p) + x


def run_blocks(wrap, p, create_graph=False):
    ta.manual_seed(5)
    x, w = random(4, 8, seed=1, requires_grad=True), random(8, 8, seed=2, requires_grad=True)
    h = x
    for _ in range(3):
        h = wrap(block, h, w, p)
    total = (h * h).sum()
    total.backward(create_graph=create_graph)
    return total, x.grad, w.grad


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_checkpoint_changes_neither_values_nor_gradients_nor_later_draws(p):
    plain = run_blocks(lambda f, *args: f(*args), p), ta.rand(3)
    checked = run_blocks(ta.checkpoint, p), ta.rand(3)
    nested = run_blocks(lambda f, *args: ta.checkpoint(lambda *a: ta.checkpoint(f, *a) * 1, *args), p), ta.rand(3)
    for other in (checked, nested):
        for a, b in zip((*plain[0], plain[1]), (*other[0], other[1]), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)


def test_a_checkpoint_finds_captured_parameters_and_tensors_computed_before():
    x, w = leaf([2.0]), leaf([3.0])
    before = w * 2
    y = ta.checkpoint(lambda x: x * w * before, x)
    (y + before).sum().backward()
    assert (x.grad.item(), w.grad.item()) == (18.0, 2 * 2 * 2 * 3.0 + 2)


def test_a_checkpoint_may_return_its_inputs_outer_tensors_and_constants():
    x = leaf([1.0])
    outer, constant = x * 5, ta.ones((1,), dtype=ta.float64)
    results = ta.checkpoint(lambda x: (x, outer, constant, ta.Tensor([1]), x * 2), x)
    assert [r.requires_grad for r in results] == [True, True, False, False, True]
    (results[0] + results[1] + results[4] * results[2]).sum().backward()
    assert x.grad.item() == 8.0


def test_a_checkpoint_can_be_differentiated_twice():
    w = random(3, 3, seed=4)
    assert gradgradcheck(lambda x: ta.checkpoint(lambda x: (x @ w).tanh(), x), random(2, 3))


def test_create_graph_through_checkpoints_gives_the_same_gradients():
    for a, b in zip(run_blocks(ta.checkpoint, 0.5), run_blocks(ta.checkpoint, 0.5, create_graph=True), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)


def test_a_checkpoint_keeps_none_of_its_intermediate_values():
    def deep(x):
        for _ in range(10):
            x = (x * x).sin()
        return x

    def kept(wrap):
        x = random(100, 1000, requires_grad=True)
        before = ta.memory_stats().in_use
        y = wrap(deep, x)
        return (ta.memory_stats().in_use - before) / y.nbytes

    assert kept(ta.checkpoint) < 1.5
    assert kept(lambda f, x: f(x)) > 10


def test_a_checkpoint_under_no_grad_is_a_plain_call():
    with ta.no_grad():
        assert not ta.checkpoint(lambda x: x * 2, leaf(1.0)).requires_grad


def test_a_custom_gradient_that_reads_its_result_and_what_led_to_it_can_be_differentiated_again():
    @ta.custom_gradient
    def exp_of_square(x):
        inner = x * x
        y = ta.exp(inner)
        return y, lambda g: g * y * 2 * x + 0 * inner

    x = ta.Tensor([0.3, -0.7], dtype=ta.float64)
    gradcheck(exp_of_square, x)
    gradgradcheck(exp_of_square, x)


def test_a_custom_gradient_without_its_second_function_is_refused():
    with pytest.raises(GradientError, match="must return \\(result, backward\\)"):
        ta.custom_gradient(lambda x: x * 2)(ta.Tensor([1.0], requires_grad=True))


def test_what_is_no_tensor_is_named():
    y = (ta.Tensor([1.0], requires_grad=True) * 2).sum()
    with pytest.raises(TypeError, match="backward: gradient 0 is float"):
        y.backward(1.0)
    with pytest.raises(TypeError, match="gradients: input 0 is int"):
        ta.gradients(y, [3])
    with pytest.raises(TypeError, match="hook is int"):
        y.register_hook(3)
    with pytest.raises(ArgumentError, match="no primals came"):
        ta.vjp(lambda: y)


def test_a_checkpoint_refuses_to_run_again_as_something_else():
    class Noisy(ta.nn.Module):
        def __init__(self):
            self.scale = ta.ones(3)
            self.dropout = ta.nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(x * self.scale).sin()

    def output(module):
        x = ta.ones(3, requires_grad=True)
        return ta.checkpoint(module, x).sum()

    module = Noisy()
    y = output(module)
    module.eval()
    with pytest.raises(GradientError, match="did other operations"):
        y.backward()
    module = Noisy()
    y = output(module)
    module.scale.assign(2.0)
    with pytest.raises(GradientError, match="overwritten before backward"):
        y.backward()
    output(Noisy()).backward()


def test_value_and_grad_of_a_parameter_gives_plain_tensors_and_keeps_no_graph():
    w = ta.Tensor([1.0, 2.0], requires_grad=True)
    value, gradient = ta.value_and_grad(lambda w: (w * w).sum())(w)
    assert not value.requires_grad and not gradient.requires_grad and gradient.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gradient_has_a_history_where_an_argument_has_one_or_the_function_encloses_what_needs_a_gradient(compiled):
    w, x = ta.Tensor([2.0], requires_grad=True), ta.Tensor([3.0])

    def of(make):  # d/dw of d/dx of w x^2, or of (w x)^2, is 2 x, or 4 w x
        w.grad = None
        loss = make().sum()
        loss.backward()
        return loss, w.grad

    def enclosed():
        return ta.grad(lambda x: (w * x * x).sum())(x)

    def enclosed_with_history():
        y = w * w
        return ta.grad(lambda x: (y * x * x).sum())(x)

    def given_with_history():
        value, gradient = ta.value_and_grad(lambda y: (y * y).sum())(w * x)
        return value * 0 + gradient

    for make, right in ((enclosed, 6.0), (enclosed_with_history, 24.0), (given_with_history, 6.0)):
        run = ta.compile(lambda make=make: of(make)) if compiled else lambda make=make: of(make)
        assert run()[1].tolist() == [right]
    with ta.no_grad():
        assert not enclosed().requires_grad
    assert not ta.grad(lambda x: (w.detach() * x * x).sum())(x).requires_grad


def test_a_graph_that_is_freed_holds_no_memory_though_its_result_lives_on():
    x = ta.Tensor([1.0, 2.0], requires_grad=True)
    middle = x * 3
    saved = weakref.ref(middle.array.storage)
    loss = (middle * middle).sum()
    del middle
    assert saved() is not None
    loss.backward()
    assert saved() is None and loss.item() == 45.0


def test_a_leaf_has_its_gradient_though_another_of_its_uses_gets_none():
    @ta.custom_gradient
    def first(x, y):
        return x + y, lambda g: (g, None)

    w, seen = ta.Tensor([1.0, 2.0], requires_grad=True), []
    w.register_hook(lambda g: seen.append(g.tolist()))
    first(w, w * 2).sum().backward()
    (found,) = ta.gradients([first(w, w * 2).sum()], [w])
    assert w.grad.tolist() == found.tolist() == [1, 1] and seen == [[1, 1], [1, 1]]
