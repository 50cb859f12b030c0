"""Gradients through compiled functions: a compiled function is an operation like any other."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tests.compiler.devices import exact
from tests.test_random_programs import programs
from tinyarr import Tensor, nn
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import GradientError, TinyarrError, TraceError

pytestmark = pytest.mark.usefixtures("device")

# Where a leaf gets gradients from several nodes, or from inside and outside, they are added in another order: each
# addition rounds once more, and none of the values here is much larger than their sum.
REORDERED = {"rtol": 1e-12, "atol": 1e-12}


def bits_of_eager(function):
    return Compiled(function, build=exact())


def plain(function):
    return function


def numbers(*tensors):
    return [None if x is None else x.numpy().tolist() for x in tensors]


def parameter(*values, dtype=ta.float64):
    return Tensor(list(values), dtype=dtype, requires_grad=True)


def same_in_both(run):
    """What `run` returns, given what compiles and given what does not: the same."""
    eager, compiled = run(plain), run(bits_of_eager)
    assert compiled == eager
    return eager


def close_in_both(run):
    for eager, compiled in zip(run(plain), run(bits_of_eager), strict=True):
        np.testing.assert_allclose(compiled, eager, **REORDERED)


def gradients_of(function, inputs, used, twice):
    """Outputs and gradients of some of them, and the gradients of these, at leaves and at tensors with a history."""
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    outputs = function(*(x * 1 if i % 2 else x for i, x in enumerate(leaves)))
    roots = [y for y, is_used in zip(outputs, used) if is_used and y.requires_grad]
    found = ta.gradients(roots, leaves, [ta.full_like(y, 0.5) for y in roots], create_graph=twice)
    once = [*outputs, *found]
    again = [(g * g).sum() for g in found if g is not None and g.requires_grad] if twice else []
    return once, ta.gradients(again, leaves)


@pytest.mark.parametrize("examples", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_gradients_of_random_programs_are_those_of_eager_mode(examples):
    @settings(max_examples=examples, phases=[Phase.generate])
    @given(programs(), st.lists(st.booleans(), min_size=12, max_size=12), st.booleans())
    def check(program, used, twice):
        check_gradients(program.function(), program.inputs, used, twice)

    check()


def check_gradients(function, inputs, used, twice):
    """Compiled against eager: the same bits, but where several nodes stand for the call and add up anew."""
    once, again = gradients_of(function, inputs, used, twice)
    compiled = Compiled(function, build=Interpreter)
    for _ in range(2):
        try:
            found_once, found_again = gradients_of(compiled, inputs, used, twice)
        except TinyarrError as error:
            assume("comes from outside" not in str(error))  # indices that are NumPy arrays
            raise
        histories = [p.history for p in compiled._programs if p.history is not None]
        is_one = all(len(history.parts) == 1 and not history.passed for history in histories)
        for found, right in zip(found_once, once, strict=True):
            agree(found, right, None if is_one else REORDERED)
        for found, right in zip(found_again, again, strict=True):
            agree(found, right, {"rtol": 1e-9, "atol": 1e-9})  # of up to a hundred roundings, some of which cancel


def agree(found, right, tolerance):
    if found is None or right is None:
        assert found is right
    elif tolerance is None:
        assert found.numpy().tobytes() == right.numpy().tobytes()
    else:
        np.testing.assert_allclose(found.numpy(), right.numpy(), **tolerance)


def test_every_transformation_takes_a_compiled_function_as_the_function_itself():
    def f(x):
        return (ta.tanh(x) * x**3).sum()

    x, v = Tensor([0.3, -1.2], dtype=ta.float64), Tensor([1.0, 0.5], dtype=ta.float64)

    def run(wrap):
        g = wrap(f)
        value, gradient = ta.value_and_grad(g)(x)
        _, pull = ta.vjp(g, x)
        once = numbers(value, gradient, ta.grad(g)(x), *pull(Tensor(2.0, dtype=ta.float64)))
        second = ta.grad(lambda x: (ta.grad(g)(x) ** 2).sum())
        third = ta.grad(lambda x: (second(x) ** 2).sum())
        products = ta.jvp(g, (x,), (v,))[1], ta.jvp(ta.grad(g), (x,), (v,))[1], ta.jvp(wrap(ta.grad(f)), (x,), (v,))[1]
        return once, numbers(second(x), third(x), *products)

    (once, more), (right, more_right) = run(bits_of_eager), run(plain)
    assert once == right
    for a, b in zip(more, more_right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("compiled", ["model", "loss"])
def test_a_model_compiled_and_trained_outside_is_trained_as_in_eager_mode(compiled):
    tokens = Tensor(np.random.default_rng(0).integers(0, 65, (2, 17)))

    def run(wrap):
        ta.manual_seed(0)
        config = Config(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
        model = GPT2(config, device=ta.default_device())
        optimizer = ta.optim.AdamW(model.parameters(), lr=1e-2)
        forward, losses = wrap(model if compiled == "model" else model.loss), []
        for _ in range(3):
            if compiled == "model":
                logits = forward(tokens[:, :-1])
                loss = ta.cross_entropy(logits.reshape((-1, 65)), tokens[:, 1:].reshape((-1,)))
            else:
                loss = forward(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            ta.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, [p.numpy().tobytes() for p in model.parameters()]

    same_in_both(run)


def test_gradients_go_on_into_what_an_argument_was_made_of_and_add_up_over_calls():
    x = parameter(0.5, -1.5, 2.0)

    def run(wrap):
        x.grad = None
        f = wrap(lambda y: ta.tanh(y * y * 2))
        (f(x * 3) * f(ta.exp(x))).sum().backward()
        return numbers(x.grad)

    same_in_both(run)


def test_hooks_outside_and_inside_are_called():
    def run(wrap):
        w, seen = parameter(1.0, 2.0), []

        def f(x):
            h = x * w
            h.register_hook(lambda g: ta.clip(g, -1.0, 30.0))
            return h * h

        w.register_hook(lambda g: seen.append(numbers(g)) or g * 10)
        y = wrap(f)(Tensor([3.0, 4.0], dtype=ta.float64))
        y.register_hook(lambda g: seen.append(numbers(g)) or g * 2)
        (y * y).sum().backward()
        return seen, numbers(w.grad)

    same_in_both(run)


def test_a_hook_inside_that_changes_what_the_function_reaches_is_refused_on_the_way_back():
    w, seen = parameter(1.0), []

    def f(x):
        h = x * w
        h.register_hook(seen.append)
        return h * 2

    y = bits_of_eager(f)(Tensor([3.0], dtype=ta.float64))
    with pytest.raises(TraceError, match=r"seen is changed by a hook .*set the hook on what the function returns"):
        y.sum().backward()
    assert seen == []


def test_results_that_are_made_of_each_other_have_gradients_and_hooks_of_their_own():
    x = parameter(0.5, -1.5, 2.0)

    def run(wrap):
        x.grad, seen = None, []
        h, y, z = wrap(lambda x: ((h := x * 2), h * h, h + x))(x)
        found = ta.gradients([y, z], [h], [ta.ones_like(y), ta.ones_like(z)], retain_graph=True)
        h.register_hook(lambda g: seen.append(g.numpy()) or g * 3)
        (h + y * z).sum().backward()
        return [*(g.numpy() for g in found), *seen, x.grad.numpy()]

    close_in_both(run)


def test_second_derivatives_go_through_results_that_are_made_of_each_other():
    x = parameter(0.5, -1.5, 2.0)

    def run(wrap):
        f = wrap(lambda x: ((h := ta.tanh(x) * x), h * h * x))

        def penalty(x):
            h, y = f(x)
            return sum((g * g).sum() for g in ta.gradients([(y * h).sum()], [x, h], create_graph=True))

        return [ta.grad(penalty)(x).numpy()]

    close_in_both(run)


def test_of_several_results_those_without_a_gradient_take_no_part():
    x = parameter(0.0, 4.0)
    square, root, count, large = bits_of_eager(lambda x: (x * x, ta.sqrt(x), ta.sum(x > 1), x > 1))(x)
    assert square.requires_grad and root.requires_grad
    assert not count.requires_grad and not large.requires_grad
    square.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [0, 8]  # the root's would be 0 times infinity
    (square + root)[1].backward()
    assert x.grad[1].item() == 16.25


def test_a_result_that_is_an_argument_passes_its_gradient_on():
    x = parameter(0.5, -1.5)
    for argument in (lambda: x, lambda: x * 1):

        def run(wrap, argument=argument):
            x.grad = None
            a, b = wrap(lambda x: (x, x * 2))(argument())
            (a * b).sum().backward()
            return numbers(x.grad)

        same_in_both(run)


def test_a_leaf_made_inside_is_a_leaf_outside():
    x = parameter(0.5, -1.5)

    def f(x):
        p = (x * 2).detach()
        p.requires_grad = True
        return p, p * x

    def run(wrap):
        x.grad = None
        p, y = wrap(f)(x)
        y.sum().backward()
        return numbers(p.grad, x.grad), p.is_leaf

    same_in_both(run)


def test_what_is_kept_in_state_keeps_its_history():
    w = parameter(0.5, -1.5)

    class Cell:
        h = None

        def step(self, x):
            self.h = ta.tanh(x * w if self.h is None else self.h * w + x)
            return self.h

    def run(wrap):
        w.grad, cell = None, Cell()
        step = wrap(cell.step)
        for i in range(4):
            y = step(Tensor([1.0, float(i)], dtype=ta.float64))
        y.sum().backward()
        return numbers(w.grad, cell.h, y), cell.h.requires_grad

    same_in_both(run)


def test_masks_are_those_of_the_forward_pass_and_draws_go_on_as_in_eager_mode():
    w = Tensor(np.ones(64), requires_grad=True)

    def run(wrap):
        ta.manual_seed(3)
        w.grad = None
        f = wrap(lambda x: (x * w).dropout(0.5) * w)
        a, b = f(ta.ones(64)), f(ta.ones(64))  # both before either's backward
        (a * b + a).sum().backward()
        return numbers(w.grad, a, b), ta.random.default_generator().counter

    same_in_both(run)


@pytest.mark.parametrize("inside", [True, False])
def test_checkpoint_inside_and_outside_computes_the_same_again(inside):
    w = Tensor(np.full(64, 0.5), requires_grad=True)

    def block(x):
        return (x * w).dropout(0.5) * w

    def run(wrap):
        ta.manual_seed(3)
        w.grad, found = None, []
        compiled = wrap(lambda x: ta.checkpoint(block, x) * w) if inside else wrap(block)
        for _ in range(2):
            y = compiled(ta.ones(64)) if inside else ta.checkpoint(compiled, ta.checkpoint(compiled, ta.ones(64)))
            y.sum().backward()
            found.append(numbers(y, w.grad))
        return found, ta.random.default_generator().counter

    same_in_both(run)


def test_gradients_of_ones_own_are_used_and_differentiated():
    w = parameter(0.5, -1.5)

    @ta.custom_gradient
    def scaled(x, y):
        c = ta.exp(x)
        return c * y, lambda g: (g * c * y, g * c * 3)

    def run(wrap):
        f = wrap(lambda x: ta.checkpoint(lambda t: scaled(ta.tanh(t), w) * t, x) + scaled(x, x * w))
        gradient = ta.grad(lambda x: f(x).sum())
        return [gradient(w).numpy(), ta.grad(lambda x: (gradient(x) ** 2).sum())(w).numpy()]

    close_in_both(run)


def test_gradients_taken_inside_have_a_history_where_they_have_one_in_eager_mode():
    w, x = parameter(0.5, -1.5), parameter(2.0, 1.0)

    def f(x):
        return ta.grad(lambda t: (t * w * ta.exp(t)).sum())(x) * w

    def penalty(w):
        (g,) = ta.gradients([(w * w * w).sum()], [w], create_graph=True)
        return (g * g).sum()

    def run(wrap):
        g, p = wrap(f), wrap(penalty)
        gradient = ta.grad(lambda x: g(x).sum())
        again = ta.grad(lambda x: (gradient(x) ** 2).sum())(x)
        outside = ta.gradients([g(x).sum()], [w])
        return [y.numpy() for y in (gradient(x), again, *outside, ta.grad(p)(x), *ta.gradients([p(w)], [w]))]

    close_in_both(run)


def test_a_gradient_made_inside_with_a_history_keeps_it():
    w = parameter(0.5, -1.5)

    def f():
        (w * w * w).sum().backward(create_graph=True)

    def run(wrap):
        w.grad = None
        wrap(f)()
        first = w.grad
        return numbers(first, *ta.gradients([(first * first).sum()], [w]))

    same_in_both(run)
    w.grad = None


def test_floats_are_inputs_of_the_way_back_too():
    x = parameter(0.0, 4.0)
    f = bits_of_eager(lambda x, k: x * x * k)
    for k in (2.0, 3.0):
        f(x, k).sum().backward()
        assert x.grad.tolist() == [0, 8 * k]
        x.grad = None
    (g,) = ta.gradients([f(x, 5.0).sum()], [x], create_graph=True)
    assert ta.gradients([g.sum()], [x])[0].tolist() == [10, 10]
    assert len(f.graphs) == 1 and len(f.backward_programs) == 3


def test_a_gradient_of_ones_own_may_need_the_value_of_a_float():
    @ta.custom_gradient
    def scaled(x, k):
        return x * k, lambda g: g * "ab".count("a" * int(k))  # what only Python's own numbers can do

    x = parameter(2.0)
    f = bits_of_eager(lambda x, k: scaled(x, k))
    for k, slope in ((1.0, 1), (2.0, 0)):
        (found,) = ta.gradients([f(x, k).sum()], [x])
        assert found.item() == slope
    assert "its value was needed" in f.explain()


def test_a_graph_is_freed_and_retained_as_in_eager_mode():
    w = parameter(1.0, 2.0)
    y = bits_of_eager(lambda: (w * w * w).sum())()
    y.backward(retain_graph=True)
    y.backward()
    assert w.grad.tolist() == [6, 24]
    with pytest.raises(GradientError, match=r"through compiled .*> was freed by an earlier backward.*retain_graph"):
        y.backward()


def test_results_that_share_nothing_are_freed_apart():
    v, w = parameter(1.0, 2.0), parameter(3.0, 4.0)
    a, b = bits_of_eager(lambda: (v * v, w * w))()
    a.sum().backward()
    with ta.no_grad():
        v.assign(0.0)
    b.sum().backward()
    assert v.grad.tolist() == [2, 4] and w.grad.tolist() == [6, 8]


def test_what_backward_reads_must_not_be_overwritten():
    w, state = parameter(1.0, 2.0), ta.ones(2, dtype=ta.float64)
    y = bits_of_eager(lambda: (w * w).sum())()
    with ta.no_grad():
        w.assign(0.0)
    with pytest.raises(GradientError, match=r"saved w \(2,\), which was overwritten since \(version 0, now 1\)"):
        y.backward()
    y = bits_of_eager(lambda: ta.exp(w))()
    with ta.no_grad():
        y.assign(0.0)
    with pytest.raises(GradientError, match=r"saved a value \(2,\), which was overwritten"):
        y.sum().backward()
    y, z = bits_of_eager(lambda: ((v := w * 2) * v, ta.sum(v)))()
    with ta.no_grad():
        y.assign(0.0)
    (y.sum() + z).backward()  # neither reads y
    y, z = bits_of_eager(lambda: ((v := ta.exp(w)) * state, ta.sum(v)))()
    state.assign(0.0)
    z.backward()  # which does not read the state
    with pytest.raises(GradientError, match="freed by an earlier"):
        y.sum().backward()


def test_writes_inside_are_noticed_where_backward_reads_what_was_there_before():
    w, state, x = parameter(1.0, 2.0), ta.zeros(2, dtype=ta.float64), Tensor([3.0, 4.0], dtype=ta.float64)

    def f(x):
        y = x * w
        state.assign(state + y.detach())
        return y * state

    def run(wrap):
        state.assign(0.0)
        w.grad, g = None, wrap(f)
        for _ in range(2):
            g(x).sum().backward()
        return numbers(w.grad, state)

    same_in_both(run)

    @bits_of_eager
    def decayed(x):
        y = x * w * w
        with ta.no_grad():
            w.assign(w * 0.5)
        return y

    y = decayed(x)  # as long as nobody goes back
    assert y.tolist() == [3, 16] and w.tolist() == [0.5, 1]
    with pytest.raises(GradientError, match=r"multiply saved y .*was overwritten since"):
        y.sum().backward()


def test_nothing_is_kept_for_backward_where_nothing_is_recorded():
    w = parameter(1.0, 2.0)
    f = bits_of_eager(lambda x: ta.tanh(ta.exp(x * w)))
    with ta.no_grad():
        y = f(w.detach())
    assert not y.requires_grad and len(f.graphs[0].results) == 1
    recorded = bits_of_eager(ta.enable_grad()(lambda x: x * w))
    with ta.no_grad():
        assert recorded(w.detach()).requires_grad


def test_a_step_that_goes_backward_itself_has_no_history():
    w = parameter(1.0, 2.0)

    @bits_of_eager
    def step(x):
        loss = (x * w).sum()
        loss.backward()
        return loss, w.grad, loss * 2

    loss, gradient, double = step(w.detach())
    assert loss.is_leaf and not loss.requires_grad and not gradient.requires_grad
    assert step._programs and len(step.graphs[0].results) == 4  # w.grad is kept too, and nothing for backward
    with pytest.raises(GradientError, match="through sum was freed by an earlier backward"):
        double.backward()


def test_backward_inside_into_what_was_made_outside_is_refused():
    x = parameter(1.0, 2.0)
    y = x * 2
    with pytest.raises(TraceError, match=r"backward\(\) in .* arrives at arguments\[0\], the result of recorded"):
        bits_of_eager(lambda y: (y * y).sum().backward())(y)
    assert y.grad is None and not y.is_leaf
    assert bits_of_eager(lambda y: ta.grad(lambda z: (z * z).sum())(y))(y).tolist() == [4, 8]


def test_neither_tensors_of_the_call_that_was_traced_nor_residuals_stay_alive():
    w = Tensor(np.ones(100), requires_grad=True)
    f = bits_of_eager(lambda x: ta.exp(x * w).sum())
    for made in (lambda: ta.ones(100, dtype=ta.float64), lambda: w * 2):
        x = made()
        watched = [weakref.ref(x), weakref.ref(x.array.storage)]
        y = f(x)
        watched += [weakref.ref(t.array.storage) for t in y.node.saved[:-1] if t.array.storage is not w.array.storage]
        y.backward()
        del x
        gc.collect()
        assert len(watched) > 2 and all(reference() is None for reference in watched)


def test_a_gradient_kept_wide_is_added_up_wide():
    rng = np.random.default_rng(0)
    elements, x = rng.standard_normal((4, 4)), Tensor(rng.standard_normal((4, 4)), dtype=ta.bfloat16)

    def run(wrap):
        w = Tensor(elements, dtype=ta.bfloat16, requires_grad=True)
        w.grad_dtype = ta.float32
        f = wrap(lambda x: ta.tanh(x * w) * w * w)  # no products, whose sums a GPU's library may keep wide
        f(x).sum().backward()
        return numbers(w.grad), w.grad.dtype, ta.gradients([f(x).sum()], [w])[0].dtype

    assert same_in_both(run)[1:] == (ta.float32, ta.bfloat16)


def test_anomaly_mode_names_the_line_in_a_compiled_function():
    x = parameter(0.0)
    with ta.detect_anomaly():
        y = bits_of_eager(lambda x: (1 / x) * 0)(x)
    with pytest.raises(GradientError, match=r"became NaN; it was computed at .*test_gradients.py"):
        y.sum().backward()


def test_an_error_of_a_gradient_comes_when_it_is_asked_for():
    @ta.custom_gradient
    def bad(x):
        return x * 1, lambda g: 1 / 0

    good, y = bits_of_eager(lambda x: (x * 2, bad(x)))(x := parameter(1.0))
    good.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [2]
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()


def test_a_compiled_layer_under_an_eager_head_trains():
    body, head, x = nn.Linear(3, 3), nn.Linear(3, 1), ta.ones((2, 3))
    run = ta.compile(body)
    for _ in range(2):
        head(run(x)).sum().backward()
    assert body.bias.grad.tolist() == pytest.approx((4 * head.weight[0]).tolist(), rel=1e-6)  # two rounded sums
    assert len(run.graphs) == len(run.backward_programs) == 1  # the second call finds gradients, and asks for none


def test_a_compiled_model_stands_in_for_the_model():
    model = ta.compile(nn.Linear(3, 2))
    optimizer = ta.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = (model(ta.ones((2, 3))) ** 2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert model.eval() is model.function and not model.training and list(model.state_dict()) == ["weight", "bias"]
    with pytest.raises(AttributeError, match="nothing"):
        model.nothing  # noqa: B018


def test_the_way_back_of_a_program_runs_for_one_example_after_the_other():
    x, f = Tensor([1.0, 2.0]), ta.compile(lambda x: x.sin() * x.sum())
    expected = ta.jacobian(f.function)(x).numpy()
    assert ta.jacobian(f)(x).tolist() == pytest.approx(expected, rel=1e-6)
    assert ta.compile(ta.jacobian(f))(x).tolist() == pytest.approx(expected, rel=1e-6)
    assert ta.jacobian(ta.compile(lambda x: x.sin()[:0]))(x).shape == (0, 2)
    loss, whole = ta.compile(lambda x: f.function(x).sum()), ta.compile(ta.hessian(lambda x: f.function(x).sum()))
    assert ta.hessian(loss)(x).tolist() == pytest.approx(whole(x).numpy(), rel=1e-6)
    with pytest.raises(TraceError, match=r"^vmap: the way back of compiled .*: take the function that is not compiled"):
        ta.grad(lambda x: ta.jacobian(loss)(x).sum())(x)
