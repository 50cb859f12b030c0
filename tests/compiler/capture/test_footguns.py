"""What goes wrong silently in compilers: here each works as in eager mode, or raises an error that says what to do."""

import contextvars
import functools
import json
import logging
import re
import sys
import threading
import warnings
from collections import Counter, deque

import numpy as np
import pytest

import tinyarr as ta
from tests.compiler import settings
from tests.compiler.devices import exact
from tinyarr import Tensor, nn
from tinyarr.compiler import Compiled
from tinyarr.errors import ArgumentError, OutOfBounds, ShapeError, TraceError

pytestmark = pytest.mark.usefixtures("device")


def values(x):
    return x.numpy().tolist()


def test_what_was_returned_is_not_overwritten_by_a_later_call():
    double = ta.compile(lambda x: x * 2)
    first = double(Tensor([1.0]))
    double(Tensor([5.0]))
    assert values(first) == [2]


def test_a_returned_argument_or_view_of_it_is_a_copy():
    x = Tensor([1.0, 2.0])
    same, part = ta.compile(lambda x: (x, x[1:]))(x)
    x.assign(0.0)
    assert values(same) == [1, 2] and values(part) == [2]


def test_results_share_no_memory_with_each_other_nor_with_state():
    state = Tensor([1.0, 2.0])

    @ta.compile
    def run(x):
        y = x * 2
        state.assign(y)
        return y, y, y[1:], ta.zeros(2), state

    for _ in range(2):
        results = run(Tensor([3.0, 4.0]))
        for i, t in enumerate(results):
            t.assign(float(i))
        assert [values(t)[0] for t in results] == [0, 1, 2, 3, 4] and values(state) == [6, 8]


def test_python_numbers_and_branches_are_those_of_each_call():
    @ta.compile
    def scaled(x, factor, *, negative=False):
        return -x * factor if negative else x * factor

    x = Tensor([2.0])
    for factor in (3, 3.0, 4, 0.0, -0.0, True):
        found = scaled(x, factor)
        assert values(found) == values(x * factor) and np.signbit(found.item()) == np.signbit((x * factor).item())
    assert values(scaled(x, 3, negative=True)) == [-6]


def test_a_value_in_closure_or_globals_that_changes_is_used():
    factor = 2

    @ta.compile
    def scaled(x):
        return x * factor * FACTOR["of all"]

    assert values(scaled(Tensor([1.0]))) == [20]
    factor = 3
    assert values(scaled(Tensor([1.0]))) == [30]
    FACTOR["of all"] = 1
    try:
        assert values(scaled(Tensor([1.0]))) == [3]
    finally:
        FACTOR["of all"] = 10


FACTOR = {"of all": 10}


SCALE = 2


class Scaled(nn.Module):
    shift = 1

    def forward(self, x):
        return x * SCALE * settings.factor + self.shift


def test_what_methods_and_modules_name_is_looked_at_too(monkeypatch):
    model = Scaled()
    run = ta.compile(lambda x: model(x))
    x = Tensor([1.0])
    assert values(run(x)) == [5]
    monkeypatch.setitem(globals(), "SCALE", 3)
    assert values(run(x)) == [7]
    monkeypatch.setattr(settings, "factor", 1)
    assert values(run(x)) == [4]
    monkeypatch.setattr(Scaled, "shift", 0)
    assert values(run(x)) == [3]


def test_sets_and_deques_change_as_in_eager_mode():
    names, last = {"a"}, deque(maxlen=2)

    @ta.compile
    def run(x):
        names.add("b")
        last.append(x * 2)
        return last[0] + len(names)

    for i in range(4):
        out = run(Tensor([float(i)]))
        assert names == {"a", "b"} and [values(t) for t in last] == [[2.0 * j] for j in range(max(i - 1, 0), i + 1)]
        assert values(out) == [2.0 * max(i - 1, 0) + 2]


def test_a_counter_that_the_function_reaches_or_changes_counts_as_in_eager_mode():
    reached, changed = Counter(a=3), Counter(a=1)

    def step(x):
        changed["a"] += 2
        return x * reached["a"]

    compiled = ta.compile(step)
    assert compiled(ta.ones(1)).item() == compiled(ta.ones(1)).item() == 3
    assert (reached, changed) == (Counter(a=3), Counter(a=5))


def test_a_captured_tensor_that_is_replaced_or_written_is_used_as_it_is():
    weights = {"w": Tensor([1.0, 2.0])}
    scaled = ta.compile(lambda x: x * weights["w"])
    x = Tensor([1.0, 1.0])
    assert values(scaled(x)) == [1, 2]
    weights["w"] = Tensor([3.0, 4.0])
    assert values(scaled(x)) == [3, 4]
    weights["w"][0] = 7
    assert values(scaled(x)) == [7, 4] and len(scaled.graphs) == 1
    weights["w"] = Tensor([[5.0], [6.0]])
    assert values(scaled(x)) == [[5, 5], [6, 6]]


def test_a_write_into_an_argument_or_a_part_of_it_is_seen_after_each_call():
    @ta.compile
    def shift(x, row):
        x[1] = x[0] + 1
        x[0].assign(row)
        return x.sum()

    compiled, eager = Tensor(np.arange(6.0).reshape(3, 2)), Tensor(np.arange(6.0).reshape(3, 2))
    view = compiled[1]
    for i in range(3):
        row = Tensor([i, 2.0 * i], dtype=ta.float64)
        assert values(shift(compiled, row)) == values(shift.function(eager, row))
        assert values(compiled) == values(eager) and values(view) == values(eager[1])


def test_two_tensors_that_swap_their_elements_do():
    a, b = Tensor([1.0]), Tensor([2.0])

    @ta.compile
    def swap():
        old = ta.copy(a)
        a.assign(b)
        b.assign(old)

    for expected in (([2], [1]), ([1], [2])):
        swap()
        assert (values(a), values(b)) == expected


def test_arguments_that_share_memory_follow_each_others_writes():
    @ta.compile
    def add(x, y):
        x.assign(x + 1)
        return y * 1

    x = Tensor([1.0, 2.0])
    assert values(add(x, x)) == [2, 3]
    assert values(add(x, x[:1])) == [3] and values(add(x, Tensor([9.0]))) == [9]
    z = Tensor([1.0, 2.0, 3.0])
    with pytest.raises(TraceError, match=r"arguments\[0\] and arguments\[1\] share memory that is written"):
        add(z[:2], z[1:])


def test_other_shapes_and_dtypes_are_traced_anew():
    double = ta.compile(lambda x: x + x)
    for x in (Tensor([1.0]), Tensor([[1.0, 2.0]]), Tensor([3]), Tensor(np.ones((2, 3))).mT):
        assert values(double(x)) == values(x + x)
    assert len(double.graphs) == 4


def test_a_function_whose_signature_always_changes_runs_as_it_is_and_says_so_once():
    scaled = ta.compile(lambda x, i: x * len(range(i)), max_programs=4)
    match = r"(?s)traced for 4 signatures.*tensor.*max_programs\n1: the first call.*now: arguments\[1\]: .*then 4"
    with pytest.warns(UserWarning, match=match) as caught:
        assert [scaled(Tensor([1.0]), i).item() for i in range(12)] == list(range(12))
    assert len(caught) == 1 and caught[0].filename == __file__ and len(scaled.graphs) == 4
    assert scaled(Tensor([1.0]), 2).item() == 2  # one of those that are known
    with pytest.raises(ArgumentError, match="compile: max_programs is 0: give a positive number"):
        ta.compile(lambda x: x, max_programs=0)


def test_why_a_call_was_traced_can_be_asked():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    run = ta.compile(lambda x: model(x))
    run(ta.ones((1, 2)))
    run(ta.ones((3, 2)))
    model[1].eval()
    run(ta.ones((3, 2)))
    first, second, third = run.explain().split("\n")
    assert first.startswith("1: the first call (") and "2: arguments[0]: shape (1, 2), " in second
    assert "then shape (3, 2)" in second and "training" in third


def test_a_hook_that_is_added_is_called():
    w = Tensor([1.0], requires_grad=True)
    step = ta.compile(lambda: (w * 2).sum().backward())
    step()
    w.grad = None
    w.register_hook(lambda g: g * 10)
    step()
    assert values(w.grad) == [20]


def test_a_gradient_that_is_to_be_kept_in_another_dtype_is():
    w = Tensor([1.0], dtype=ta.bfloat16, requires_grad=True)
    step = ta.compile(lambda: (w * 2).sum().backward())
    step()
    w.grad, w.grad_dtype = None, ta.float32
    step()
    assert w.grad.dtype is ta.float32 and values(w.grad) == [2]
    assert "w: grad_dtype tinyarr.bfloat16, then grad_dtype tinyarr.float32" in step.explain()


def test_the_dtype_of_a_gradient_can_t_be_set_in_a_trace():
    w = Tensor([1.0], dtype=ta.bfloat16, requires_grad=True)

    @ta.compile
    def step():
        w.grad_dtype = ta.float32
        (w * 2).sum().backward()

    with pytest.raises(TraceError, match="w was moved, or its requires_grad or grad_dtype set: do that outside"):
        step()
    assert w.grad_dtype is ta.bfloat16 and w.grad is None


def test_an_exception_in_a_trace_puts_everything_back():
    model, seen = nn.Linear(2, 2), []

    @ta.compile
    def step(x, fail):
        model(x).sum().backward()
        with ta.no_grad():
            model.weight.assign(0.0)
        seen.append(1)
        if fail:
            raise KeyError("no luck")

    before, version = values(model.weight), model.weight.array.storage.version
    with pytest.raises(KeyError, match="no luck"):
        step(ta.ones((1, 2)), True)
    assert values(model.weight) == before and model.weight.grad is None and seen == []
    assert model.weight.array.storage.version == version
    assert values(ta.ones(2) + 1) == [2, 2]  # eager mode is back
    step(ta.ones((1, 2)), False)
    assert values(model.weight) == [[0, 0], [0, 0]] and values(model.weight.grad) == [[1, 1], [1, 1]] and seen == [1]


@pytest.mark.parametrize("read", [Tensor.item, float, bool, Tensor.numpy, Tensor.tolist, lambda x: x.to("meta")])
def test_asking_for_elements_in_a_trace_raises_and_says_what_to_do(read):
    captured = Tensor(1.0)
    for function in (lambda x: read(x * 2), lambda x: read(captured) + x):
        with pytest.raises(TraceError, match="asked for its elements in a function that is being compiled"):
            ta.compile(function)(Tensor(1.0))


def test_what_asks_for_elements_in_a_trace_is_named_with_its_line():
    counts = Tensor([1, 2])
    asks = {
        "repeat": lambda x: ta.repeat(x, counts),
        "one_hot": lambda x: ta.one_hot(counts),
        "nonzero": lambda x: ta.nonzero(x),
        "item": lambda x: x.sum().item(),
    }
    for name, function in asks.items():
        place = f"test_footguns.py:{function.__code__.co_firstlineno}"
        with pytest.raises(TraceError, match=rf"^{name} \(.*{re.escape(place)}\): a tensor of shape"):
            ta.compile(function)(ta.ones(2))


def test_a_compiled_one_hot_has_its_classes_given_and_refuses_others():
    run = ta.compile(lambda x: ta.one_hot(x, 3))
    assert run(Tensor([2, 0])).tolist() == ta.one_hot(Tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    for outside in 3, -1:
        with pytest.raises(OutOfBounds, match=rf"1.* is {outside}.* \(.*test_footguns.py"):
            run(Tensor([2, outside])).tolist()  # on a GPU it is told of here


class Held:
    pass


def test_results_are_in_the_order_in_which_attributes_were_set():
    names = [f"{'xyz'[i % 3]}{i}" for i in range(12)]  # hashes of which the order is another one in each process

    def function(x):
        for i, name in enumerate(names):
            setattr(held, name, x * (i + 2))

    held = Held()
    run = ta.compile(function)
    run(ta.ones(3))
    made = [read.value.number for read in run.graphs[0].results]
    assert made == sorted(made) and len(made) == len(names)
    assert list(vars(held)) == names


def test_what_is_printed_logged_and_warned_of_comes_at_each_call_with_its_values(capsys, caplog, recwarn):
    logger = logging.getLogger("test")

    def run(x, rate):
        print("twice", x * 2, rate, sep="; ")
        logger.warning("of %s elements", x.size)
        warnings.warn("careful", RuntimeWarning, stacklevel=1)
        return x

    found = []
    for f in (run, ta.compile(run)):
        for value in (1.0, 3.0):
            f(ta.full((2,), value), value)
        found.append((capsys.readouterr().out, caplog.messages.copy(), [(str(w.message), w.lineno) for w in recwarn]))
        caplog.clear()
        recwarn.clear()
        globals().pop("__warningregistry__", None)
    assert found[0] == found[1] and "6." in found[0][0] and len(found[0][1]) == 2


def test_printing_the_text_of_a_traced_tensor_shows_its_shape(device, capsys):
    ta.compile(lambda x: print(f"{x * 2}"))(ta.ones((2, 3)))
    on_gpu = f", device='{ta.default_device()}'" if device == "cuda" else ""
    assert capsys.readouterr().out == f"Tensor(shape=(2, 3){on_gpu})\n"


def hide(x):
    """Puts x where no walk from a user's function comes to: among the names of one of Python's modules."""
    json.hidden = x


@pytest.fixture
def hidden():
    yield json
    vars(json).pop("hidden", None)


def test_a_tensor_that_nothing_leads_to_is_refused(hidden):
    hide(Tensor([1.0]))
    with pytest.raises(TraceError, match=r"test_footguns.py:\d+: a tensor of shape \(1,\).*pass it as an argument"):
        ta.compile(lambda x: x + json.hidden)(Tensor([1.0]))


def test_numbers_made_tensors_in_a_trace_are_constants():
    f = ta.compile(lambda x: x + Tensor([1.0, 2.0]) + ta.zeros(2) + Tensor(np.arange(2, dtype=np.float32)))
    assert values(f(ta.ones(2))) == values(f(ta.ones(2))) == [2, 4]


def test_random_numbers_are_fresh_at_each_call_and_those_of_eager_mode():
    def draws(x):
        return ta.dropout(x, 0.5), ta.randn(3), ta.rand(2)

    compiled, x = ta.compile(draws), ta.ones(32)
    ta.manual_seed(3)
    eager = [draws(x) for _ in range(3)]
    ta.manual_seed(3)
    found = [compiled(x) for _ in range(3)]
    for e, f in zip(eager, found):
        assert [values(t) for t in e] == [values(t) for t in f]
    assert values(found[0][1]) != values(found[1][1]) and len(compiled.graphs) == 1


def test_a_generator_of_ones_own_goes_on(hidden):
    generator = ta.Generator(5)
    compiled = ta.compile(lambda: ta.rand(2, generator=generator))
    found = [values(compiled()) for _ in range(2)]
    again = ta.Generator(5)
    assert found == [values(ta.rand(2, generator=again)) for _ in range(2)] and generator.counter == again.counter
    hide(generator)
    with pytest.raises(TraceError, match=r"Generator\(key=5.*pass it as an argument"):
        ta.compile(lambda: ta.rand(2, generator=json.hidden))()


def test_a_generator_made_in_the_function_is_the_same_at_each_call():
    compiled = ta.compile(lambda: (ta.rand(2, generator=(g := ta.Generator(7))), ta.rand(2, generator=g)))
    assert [values(t) for t in compiled()] == [values(t) for t in compiled()]
    with pytest.raises(TraceError, match=r"manual_seed: .*seed outside"):
        ta.compile(lambda: ta.manual_seed(3))()


def training(compiled):
    ta.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = ta.optim.AdamW(model.parameters(), lr=0.1)

    def step(x):
        loss = (model(x).dropout(0.5 if model.training else 0.0) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, optimizer, Compiled(step, build=exact()) if compiled else step


def test_learning_rate_and_mode_may_change_between_calls_and_weights_be_loaded():
    found = []
    for compiled in (True, False):
        model, optimizer, step = training(compiled)
        x = Tensor(np.random.default_rng(0).standard_normal((4, 3)), dtype=ta.float32)
        losses = [step(x).item() for _ in range(3)]
        optimizer.lr = 0.01
        losses += [step(x).item() for _ in range(2)]
        model.eval()
        losses += [step(x).item() for _ in range(2)]
        model.load_state_dict({name: ta.ones_like(t) for name, t in model.state_dict().items()})
        losses.append(step(x).item())
        model.weight = nn.Parameter(ta.zeros((2, 3)))  # no longer the optimizer's
        losses += [step(x).item() for _ in range(2)]
        found.append((losses, values(model.weight), values(model.bias), optimizer.state_dict()["step"].item()))
    assert found[0] == found[1]


def test_gradients_that_are_kept_add_up_in_a_program_of_their_own():
    found = []
    for compiled in (True, False):
        w = Tensor([1.0, 2.0], requires_grad=True)

        def step(x, w=w):
            (w * x).sum().backward()

        run = ta.compile(step) if compiled else step
        seen = []
        for i in range(4):
            run(Tensor([1.0, i]))
            seen.append(values(w.grad))
            if i == 2:
                w.grad = None
        found.append(seen)
        if compiled:
            assert len(run.graphs) == 2
    assert found[0] == found[1]


def test_a_kept_gradient_is_not_overwritten_by_the_next_call():
    w = Tensor([1.0], requires_grad=True)
    step = ta.compile(lambda x: (w * x).sum().backward())
    step(Tensor([2.0]))
    kept, w.grad = w.grad, None
    step(Tensor([5.0]))
    assert values(kept) == [2] and values(w.grad) == [5]


def test_two_programs_share_no_memory():
    f, g = ta.compile(lambda x: x + 1), ta.compile(lambda x: x * 3)
    a, b = f(Tensor([1.0])), g(Tensor([1.0]))
    assert (values(a), values(b), values(f(b))) == ([2], [3], [4])


def test_a_compiled_function_inside_another_is_part_of_it():
    inner = ta.compile(lambda x: x * 2)
    outer = ta.compile(lambda x: inner(x) + 1)
    assert values(outer(Tensor([3.0]))) == [7] and len(outer.graphs) == 1 and inner.graphs == []


def test_modules_methods_and_partials_can_be_compiled():
    model, x = nn.Linear(3, 2), ta.ones((1, 3))
    expected = values(model(x))
    for f in (model, model.forward, functools.partial(lambda m, x, *, scale: m(x) * scale, model, scale=1)):
        run = ta.compile(f)
        assert values(run(x)) == values(run(x)) == expected and len(run.graphs) == 1
    with pytest.raises(TypeError, match="compile: function is int: pass a function"):
        ta.compile(3)


def test_threads_may_call_one_function():
    f, found = ta.compile(lambda x: (x * 2).sum()), {}

    def work(i):
        found[i] = [f(ta.full((i,), 1.0)).item() for _ in range(5)]

    # Each in a copy of this context, whose default device is the test's.
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, i)) for i in range(1, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {i: [2.0 * i] * 5 for i in range(1, 6)}


def test_what_the_function_counts_and_collects_is_counted_and_collected():
    class Model(nn.Module):
        def __init__(self):
            self.last, self.calls = ta.zeros(1), 0

        @ta.compile
        def forward(self, x):
            self.last = self.last + x
            self.calls += 1
            return self.last * 2

    model = Model()
    assert [values(model(Tensor([1.0]))) for _ in range(3)] == [[2], [4], [6]]
    assert model.calls == 3 and values(model.last) == [3]


def test_a_cache_that_grows_is_traced_for_each_length():
    cache = []

    @ta.compile
    def attend(x):
        cache.append(x * 2)
        return ta.concat(cache)

    for i in range(3):
        assert values(attend(Tensor([float(i)]))) == [2.0 * j for j in range(i + 1)]
    assert len(cache) == 3 and values(cache[0]) == [0]


def test_errors_are_those_of_eager_mode():
    f = ta.compile(lambda x, y: x @ y)
    with pytest.raises(ShapeError, match="matmul"):
        f(ta.ones((2, 3)), ta.ones((2, 3)))
    g = ta.compile(lambda x, i: ta.take(x, i, axis=0))
    for _ in range(2):
        with pytest.raises(OutOfBounds, match="9"):  # on a GPU where its elements are asked for
            values(g(ta.ones(3), Tensor([9])))
    assert values(g(ta.ones(3), Tensor([1]))) == [1]


def test_checkpoint_draws_the_same_numbers_again():
    def loss(x):
        return ta.checkpoint(lambda t: t.dropout(0.5) * 3, x).sum()

    for _ in range(2):
        out, gradient = ta.compile(ta.value_and_grad(loss))(ta.ones(64))
        assert out.item() == gradient.sum().item() > 0


def test_what_main_names_is_found_whatever_tool_runs_it(monkeypatch):
    """`python -m pytest` and notebooks have a __main__ whose file lies among the installed packages."""
    names = {"ta": ta, "weight": ta.ones((2,)), "__name__": "__main__"}
    exec("def run(x):\n    return x * weight", names)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/x/site-packages/tool/__main__.py", raising=False)
    run = ta.compile(names["run"])
    assert run(ta.ones((2,))).tolist() == [1, 1]
    names["weight"] = Tensor([2.0, 3.0])
    assert run(ta.ones((2,))).tolist() == [2, 3]
