"""Optimizers against their formulas in NumPy and, where torch is installed, against torch.optim, step for step."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

import tinyarr
from models.gpt2 import GPT2, Config
from tests.tiers import at_most
from tinyarr import bfloat16, eager, float16, float32, float64, nn, optim, saving
from tinyarr.errors import ArgumentError, DeviceError, DtypeError, ShapeError

RNG = np.random.default_rng(0)
SHAPES = [(4, 3), (5,), ()]
START = [RNG.normal(size=shape) for shape in SHAPES]
RATES = [0.1, 0.1, 0.02, 0.3, 0.0, 0.1]
GRADIENTS = [[RNG.normal(size=shape) for shape in SHAPES] for _ in RATES]  # by step, then by parameter
GAPS = [[None if (step, i) in [(0, 2), (2, 1), (3, 1)] else g for i, g in enumerate(gs)]
        for step, gs in enumerate(GRADIENTS)]  # fmt: skip
LARGEST = 4.0  # no parameter or update gets there
ADAMW = [{}, {"weight_decay": 0.0}, {"betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.3}, {"betas": (0.0, 0.0)}]
SGD = [{}, {"weight_decay": 0.3}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1, "nesterov": True}]
ADAM = [{}, {"betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.3}]
RMSPROP = [{}, {"momentum": 0.9, "weight_decay": 0.3, "eps": 0.01}, {"alpha": 0.5, "centered": True, "eps": 0.01},
           {"momentum": 0.5, "centered": True, "eps": 0.01}]  # fmt: skip
ADAGRAD = [{}, {"lr_decay": 0.3, "weight_decay": 0.3, "eps": 0.01}]
LION = [{}, {"betas": (0.5, 0.7), "weight_decay": 0.3}]


def leaves(dtype=float64):
    return [tinyarr.Tensor(x, dtype=dtype, requires_grad=True) for x in START]


def set_gradients(parameters, gradients):
    for p, g in zip(parameters, gradients):
        p.grad = None if g is None else tinyarr.Tensor(g, dtype=p.dtype)


def walk(optimizer, parameters, gradients=GRADIENTS):
    """Takes a step for each of RATES; yields the parameters after each."""
    for lr, gs in zip(RATES, gradients):
        optimizer.lr = lr
        set_gradients(parameters, gs)
        optimizer.step()
        yield [p.numpy() for p in parameters]


def last(steps):
    *_, result = steps
    return result


def adamw(p, gradients, rates=RATES, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    m = v = 0.0
    for t, (lr, g) in enumerate(zip(rates, gradients), 1):
        if g is not None:
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            p = p - lr * weight_decay * p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield p


def sgd(p, gradients, rates=RATES, *, momentum=0.0, nesterov=False, weight_decay=0.0):
    velocity = 0.0
    for lr, g in zip(rates, gradients):
        if g is not None:
            g = g + weight_decay * p
            velocity = momentum * velocity + g
            p = p - lr * (g + momentum * velocity if nesterov else velocity)
        yield p


def adam(p, gradients, rates=RATES, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    m = v = 0.0
    for t, (lr, g) in enumerate(zip(rates, gradients), 1):
        if g is not None:
            g = g + weight_decay * p
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
            p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield p


def rmsprop(p, gradients, rates=RATES, *, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    v = velocity = mean = 0.0
    for lr, g in zip(rates, gradients):
        if g is not None:
            g = g + weight_decay * p
            v, mean = alpha * v + (1 - alpha) * g**2, alpha * mean + (1 - alpha) * g
            velocity = momentum * velocity + g / (np.sqrt(v - mean**2 if centered else v) + eps)
            p = p - lr * velocity
        yield p


def adagrad(p, gradients, rates=RATES, *, lr_decay=0.0, weight_decay=0.0, eps=1e-10):
    total = 0.0
    for t, (lr, g) in enumerate(zip(rates, gradients)):
        if g is not None:
            g = g + weight_decay * p
            total = total + g**2
            p = p - lr / (1 + t * lr_decay) * g / (np.sqrt(total) + eps)
        yield p


def lion(p, gradients, rates=RATES, *, betas=(0.9, 0.99), weight_decay=0.0):
    m = 0.0
    for lr, g in zip(rates, gradients):
        if g is not None:
            p = p - lr * weight_decay * p - lr * np.sign(betas[0] * m + (1 - betas[0]) * g)
            m = betas[1] * m + (1 - betas[1]) * g
        yield p


def by_formula(formula, options, gradients=GRADIENTS):
    """What `walk` should yield."""
    return zip(*[formula(x, [gs[i] for gs in gradients], **options) for i, x in enumerate(START)])


def assert_steps_equal(steps, expected, rtol=1e-12):
    for arrays, others in zip(steps, expected, strict=True):
        for x, y in zip(arrays, others, strict=True):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def roundings(steps):
    """What float32 may lose: of the start and, in each step, of decay, an update of 8 operations, and difference."""
    return (1 + 10 * steps) * LARGEST * np.finfo(np.float32).eps


FORMULAS = [
    (optim.AdamW, adamw, ADAMW), (optim.SGD, sgd, SGD), (optim.Adam, adam, ADAM), (optim.RMSprop, rmsprop, RMSPROP),
    (optim.Adagrad, adagrad, ADAGRAD), (optim.Lion, lion, LION),
]  # fmt: skip


def each_formula(*without):
    """Each optimizer's class and formula, with each of its options."""
    return pytest.mark.parametrize(
        ("kind", "formula", "options"),
        [
            pytest.param(kind, formula, options, id=f"{kind.__name__} {options}")
            for kind, formula, several in FORMULAS
            if kind not in without
            for options in several
        ],
    )


each, in_torch = each_formula(), each_formula(optim.Lion)
each_kind = pytest.mark.parametrize("kind", [kind for kind, *_ in FORMULAS])
half_types = pytest.mark.parametrize("dtype", [bfloat16, float16])


@pytest.mark.parametrize("gradients", [GRADIENTS, GAPS], ids=["all gradients", "missing gradients"])
@each
def test_steps_follow_the_formula(kind, formula, options, gradients):
    parameters = leaves()
    steps = walk(kind(parameters, **options), parameters, gradients)
    assert_steps_equal(steps, by_formula(formula, options, gradients))


@each
def test_float32_steps_differ_by_their_roundings(kind, formula, options):
    parameters = leaves(float32)
    steps = walk(kind(parameters, **options), parameters)
    for step, (got, expected) in enumerate(zip(steps, by_formula(formula, options)), 1):
        for x, y in zip(got, expected):
            assert x.dtype == np.float32 and np.abs(x - y).max() <= roundings(step)


@each
def test_groups_have_their_own_options_and_share_of_the_learning_rate(kind, formula, options):
    parameters = leaves()
    optimizer = kind(
        [{"parameters": parameters[1:], "lr_scale": 2.0, **options}, {"parameters": parameters[:1]}], weight_decay=0.2
    )
    for i, got in enumerate(last(walk(optimizer, parameters))):
        rates, theirs = ([2 * lr for lr in RATES], options) if i else (RATES, {})
        expected = last(formula(START[i], [gs[i] for gs in GRADIENTS], rates, **{"weight_decay": 0.2} | theirs))
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@half_types
@each
def test_a_half_type_follows_the_formula_in_its_float32_master(kind, formula, options, dtype):
    parameters = leaves(dtype)
    starts = [p.numpy().astype(np.float64) for p in parameters]
    optimizer = kind(parameters, **options)
    rounded = [[tinyarr.Tensor(g, dtype=dtype).numpy().astype(np.float64) for g in gs] for gs in GRADIENTS]
    expected = zip(*[formula(x, [gs[i] for gs in rounded], **options) for i, x in enumerate(starts)])
    for step, (got, exact) in enumerate(zip(walk(optimizer, parameters), expected), 1):
        state = optimizer.state_dict()
        for i, (x, y) in enumerate(zip(got, exact)):
            master = state[f"0.{len(SHAPES) - 1 - i}.master"]
            assert master.dtype is float32
            assert np.array_equal(x, master.numpy().astype(dtype.numpy))
            assert np.abs(master.numpy() - y).max() <= roundings(step)


@half_types
@each
def test_a_float32_gradient_of_a_half_type_is_used_as_it_is(kind, formula, options, dtype):
    parameters = leaves(dtype)
    starts = [p.numpy().astype(np.float64) for p in parameters]
    optimizer = kind(parameters, **options)
    single = [[g.astype(np.float32) for g in gs] for gs in GRADIENTS]
    expected = zip(*[formula(x, [gs[i] for gs in single], **options) for i, x in enumerate(starts)])
    for step, (lr, gs, exact) in enumerate(zip(RATES, single, expected), 1):
        optimizer.lr = lr
        for p, g in zip(parameters, gs):
            p.grad = tinyarr.Tensor(g)
        optimizer.step()
        for i, y in enumerate(exact):
            master = optimizer.state_dict()[f"0.{len(SHAPES) - 1 - i}.master"]
            assert np.abs(master.numpy() - y).max() <= roundings(step)


def test_stochastic_rounding_takes_a_float32_gradient_as_it_is():
    narrow, wide = (tinyarr.zeros((3,), dtype=bfloat16, requires_grad=True) for _ in range(2))
    optimizer = optim.AdamW([narrow, wide], betas=(0.5, 0.5), stochastic_rounding=True)
    narrow.grad, wide.grad = (tinyarr.full((3,), 1 + 2.0**-12, dtype=d) for d in (bfloat16, float32))
    optimizer.step()
    first = [optimizer.state_dict()[f"0.{i}.m"].tolist() for i in (1, 0)]
    assert first == [[0.5] * 3, [0.5 + 2.0**-13] * 3]


def test_stochastic_rounding_goes_to_a_neighbour_and_is_right_on_average():
    n, x = 20_000, 1 + 0.3 * 2.0**-7  # between 1 and the next bfloat16
    p = tinyarr.ones((n,), dtype=bfloat16, requires_grad=True)
    optimizer = optim.AdamW([p], lr=x - 1, weight_decay=0.0, eps=1e-30, stochastic_rounding=True)
    assert not any("master" in name for name in optimizer.state_dict())
    p.grad = -tinyarr.ones((n,), dtype=bfloat16)
    optimizer.step()
    found = p.numpy().astype(np.float64)
    assert set(found) == {1.0, 1 + 2.0**-7}
    share = (found > 1).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)


def test_stochastic_rounding_keeps_nan_and_infinity_and_refuses_other_half_types():
    p = tinyarr.ones((3,), dtype=bfloat16, requires_grad=True)
    optimizer = optim.AdamW([p], stochastic_rounding=True)
    p.grad = tinyarr.Tensor([np.nan, 1.0, 1.0], dtype=bfloat16)
    with tinyarr.no_grad():
        p.assign(tinyarr.Tensor([1.0, np.inf, -np.inf], dtype=bfloat16))
    optimizer.step()
    assert np.isnan(p.numpy().astype(np.float64)[0]) and p.tolist()[1:] == [np.inf, -np.inf]
    with pytest.raises(ArgumentError, match="stochastic_rounding is True, a parameter is float16: use bfloat16"):
        optim.AdamW([tinyarr.ones((3,), dtype=float16, requires_grad=True)], stochastic_rounding=True)


def test_masters_start_from_weights_that_were_never_rounded():
    wide = [tinyarr.randn(4, 3), tinyarr.randn(3)]
    parameters = [tinyarr.Tensor(w.astype(bfloat16), requires_grad=True) for w in wide]
    optimizer = optim.AdamW(parameters, lr=2.0**-20, weight_decay=0.0)
    optimizer.load_masters(parameters, wide)
    for p, w in zip(parameters, wide):
        assert (p.numpy() == w.astype(bfloat16).numpy()).all()
        p.grad = tinyarr.ones(p.shape, dtype=bfloat16)
    optimizer.step()
    masters = [optimizer.state_dict()[f"0.{i}.master"] for i in (1, 0)]
    for master, w in zip(masters, wide):
        assert np.abs(master.numpy() - w.numpy()).max() < 2.0**-19
    with pytest.raises(ShapeError, match=r"load_masters: parameters and weights differ: \(4, 3\) and \(3,\)"):
        optimizer.load_masters(parameters, wide[::-1])


@half_types
def test_updates_too_small_for_a_half_type_add_up(dtype):
    (p,) = parameters = [tinyarr.ones((3,), dtype=dtype, requires_grad=True)]
    optimizer = optim.SGD(parameters, lr=2.0**-13)
    for _ in range(2**10):
        set_gradients(parameters, [np.ones(3)])
        optimizer.step()
    assert p.tolist() == [1 - 2**-3] * 3


@half_types
@each_kind
def test_an_update_starts_from_weights_written_since_and_from_the_master_of_the_others(kind, dtype):
    parameters, others = leaves(dtype), leaves(dtype)
    optimizer, other = kind(parameters), kind(others)
    set_gradients(parameters, GRADIENTS[0])
    set_gradients(others, GRADIENTS[0])
    optimizer.step()
    other.step()
    with tinyarr.no_grad():
        parameters[0][1:] = 100.0
    optimizer.step()
    other.step()
    changed, unchanged = parameters[0].numpy().astype(np.float32), others[0].numpy().astype(np.float32)
    assert np.array_equal(changed[0], unchanged[0])
    assert np.abs(changed[1:] - 100).max() < 1
    written, kept = (o.state_dict()["0.2.master"].numpy() for o in (optimizer, other))
    assert np.array_equal(written[0], kept[0]) and np.abs(written[1:] - 100).max() < 1


@pytest.mark.parametrize("dtype", [float32, bfloat16])
@pytest.mark.parametrize("model_first", [True, False])
@each_kind
def test_a_saved_state_goes_on_with_the_same_bits(kind, model_first, dtype, tmp_path):
    def make():
        model = nn.Module()
        model.weights = [nn.Parameter(p) for p in leaves(dtype)]
        return model, kind([{"parameters": model.weights[:2]}, {"parameters": model.weights[2:]}])

    def go_on(model, optimizer):
        return last(walk(optimizer, model.weights, GAPS))

    model, optimizer = make()
    go_on(model, optimizer)
    saving.save(tmp_path / "model", model.state_dict())
    saving.save(tmp_path / "optimizer", optimizer.state_dict())
    resumed, its_optimizer = make()
    pairs = [(resumed, "model"), (its_optimizer, "optimizer")]
    for owner, name in pairs if model_first else reversed(pairs):
        owner.load_state_dict(saving.load(tmp_path / name)[0])
    for x, y in zip(go_on(model, optimizer), go_on(resumed, its_optimizer)):
        assert np.array_equal(x, y)


@each_kind
def test_a_step_without_gradients_changes_nothing_but_the_step(kind):
    parameters = leaves()
    optimizer = kind(parameters)
    before = {name: t.numpy() for name, t in optimizer.state_dict().items()}
    optimizer.step()
    after = {name: t.numpy() for name, t in optimizer.state_dict().items()}
    assert after.pop("step") == before.pop("step") + 1 == 1
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(np.array_equal(p.numpy(), x) for p, x in zip(parameters, START))


class SignMomentum(optim.Optimizer):
    """An optimizer of a user's own, by operations on tensors."""

    state_names = ("m",)

    def __init__(self, parameters, lr=1e-2):
        super().__init__(parameters, lr, {})

    def update(self, parameter, gradient, state, options):
        m = state["m"]
        current = state.get("master", parameter)
        current.assign(current - self.lr * tinyarr.sign(0.9 * m + 0.1 * gradient))
        parameter.assign(current)
        m.assign(0.99 * m + 0.01 * gradient)


class Smoothed(optim.Optimizer):
    """An optimizer of a user's own, by a formula, with an option that is a pair and one that is a bool."""

    state_names = ("m",)

    def __init__(self, parameters, lr=1e-2, *, shares=(0.9, 0.1), negated=False):
        super().__init__(parameters, lr, {"shares": shares, "negated": negated})

    @staticmethod
    def formula(p, g, m, lr, step, old, new, *, negated):
        m = old * m + new * g
        return p + lr * m / step if negated else p - lr * m / step, m


UPDATES = {
    "AdamW": (optim.AdamW, float32),
    "AdamW with masters": (optim.AdamW, bfloat16),
    "AdamW with masters of float16": (optim.AdamW, float16),
    "AdamW with stochastic rounding": (lambda ps: optim.AdamW(ps, stochastic_rounding=True), bfloat16),
    "SGD": (lambda ps: optim.SGD(ps, momentum=0.9, weight_decay=0.1), float32),
    "SGD with masters": (lambda ps: optim.SGD(ps, momentum=0.9, nesterov=True), bfloat16),
    "Adam": (optim.Adam, float32),
    "RMSprop with masters": (lambda ps: optim.RMSprop(ps, centered=True), bfloat16),
    "Adagrad": (optim.Adagrad, float32),
    "Lion with masters": (optim.Lion, bfloat16),
    "a user's formula": (Smoothed, float32),
    "a user's formula with masters": (lambda ps: Smoothed(ps, negated=True), float16),
    "a user's own": (SignMomentum, float32),
    "a user's own with masters": (SignMomentum, bfloat16),
}
updates = pytest.mark.parametrize("name", UPDATES)
compiled_or_not = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


def smoothed(p, gradients, rates=RATES, *, shares=(0.9, 0.1), negated=False):
    m = 0.0
    for t, (lr, g) in enumerate(zip(rates, gradients), 1):
        m = shares[0] * m + shares[1] * g
        p = p + lr * m / t if negated else p - lr * m / t
        yield p


@compiled_or_not
@pytest.mark.parametrize("options", [{}, {"shares": [0.5, 0.2], "negated": True}], ids=str)
def test_a_users_own_formula_is_followed(compiled, options):
    parameters = leaves()
    optimizer = Smoothed(parameters, **options)
    if compiled:
        optimizer.step = tinyarr.compile(optimizer.step)
    assert_steps_equal(walk(optimizer, parameters), by_formula(smoothed, options))


def test_a_users_own_formula_that_does_not_fit_its_state_or_options_is_an_error():
    with pytest.raises(ArgumentError, match=r"Taken: its formula has operands \['p', 'g', 'g', .*a name of its own"):

        class Taken(optim.Optimizer):
            state_names = ("g",)

            @staticmethod
            def formula(p, g, other, lr, step):
                return p, other

    parameters = leaves()
    optimizer = Smoothed(parameters, shares=(0.5, 0.2, 0.3))
    set_gradients(parameters, GRADIENTS[0])
    with pytest.raises((TypeError, ArgumentError), match="smoothed_update"):
        optimizer.step()


def bits(parameters, optimizer):
    return [x.numpy().tobytes() for x in (*parameters, *optimizer.state_dict().values())]


def under_conditions(name, conditions, *, masked, compiled):
    """The bits after each step, if the conditions are given to it as tensors (masked), or decide if one is taken."""
    make, dtype = UPDATES[name]
    parameters, found = leaves(dtype), []
    with tinyarr.random.use_generator(tinyarr.Generator(0)) as generator:
        optimizer = make(parameters)
        step = (lambda where: optimizer.step(where=where)) if masked else optimizer.step
        step = tinyarr.compile(step) if compiled else step
        for number, (condition, gradients) in enumerate(zip(conditions, GRADIENTS)):
            generator.counter = 10 * number
            bad = [np.full(np.shape(g), x) for g, x in zip(gradients, (np.nan, np.inf, -np.inf))]
            set_gradients(parameters, gradients if condition else bad)
            if masked:
                step(tinyarr.Tensor(condition))
            elif condition:
                step()
            found.append(bits(parameters, optimizer))
    return found


@updates
@compiled_or_not
@at_most(5)
@drawn(st.lists(st.booleans(), min_size=1, max_size=len(RATES)))
def test_steps_where_a_condition_holds_are_those_steps_alone(name, compiled, conditions):
    found, expected = (under_conditions(name, conditions, masked=m, compiled=compiled) for m in (True, False))
    assert found == expected


@updates
@compiled_or_not
def test_a_condition_computed_of_the_gradients_leaves_bad_ones_out(name, compiled):
    make, dtype = UPDATES[name]
    parameters = leaves(dtype)
    optimizer = make(parameters)

    def step():
        norm = optim.clip_grad_norm(parameters, 1.0)
        optimizer.step(where=tinyarr.isfinite(norm))
        optimizer.zero_grad()

    run = tinyarr.compile(step) if compiled else step
    for i, bad in enumerate((None, np.nan, np.inf, None)):
        before = bits(parameters, optimizer)
        set_gradients(parameters, GRADIENTS[i])
        if bad is not None:
            with tinyarr.no_grad():
                parameters[0].grad[1, 2] = bad
        run()
        assert (bits(parameters, optimizer) == before) is (bad is not None)
    assert not compiled or len(run.graphs) == 1
    assert optimizer.state_dict()["step"].item() == 2


@half_types
@each_kind
def test_weights_written_by_hand_stay_where_the_condition_does_not_hold(kind, dtype):
    parameters = leaves(dtype)
    optimizer = kind(parameters)
    with tinyarr.no_grad():
        parameters[0].assign(7.0)
    before = bits(parameters, optimizer)
    set_gradients(parameters, GRADIENTS[0])
    optimizer.step(where=tinyarr.Tensor(False))
    assert bits(parameters, optimizer) == before


def test_an_update_of_a_users_own_may_take_the_condition_itself():
    seen = []

    class Own(SignMomentum):
        def update(self, parameter, gradient, state, options, *, where=None):
            seen.append(where)
            parameter.assign(parameter + 1)

    (p,) = parameters = [tinyarr.ones((3,), requires_grad=True)]
    p.grad, where = tinyarr.ones((3,)), tinyarr.Tensor(False)
    optimizer = Own(parameters)
    optimizer.step(where=where)
    optimizer.step()
    assert seen[0] is where and seen[1] is None and p.tolist() == [3.0] * 3


MANY = [(4, 3), (5,), (), (33,), (0, 2), (64,), (2, 1, 5), (7, 7)]  # some fill their place in a segment, most don't
kinds_of_update = st.sampled_from(["AdamW", "AdamW with masters", "SGD", "SGD with masters"])


def random_gradients(rng, parameters):
    return [None if rng.random() < 0.3 else tinyarr.Tensor(rng.normal(size=p.shape), dtype=p.dtype) for p in parameters]


def optimized(name, parameters, *, apart):
    """The optimizers of some parameters: each has its own, or one has all."""
    make, dtype = UPDATES[name]
    made = [tinyarr.Tensor(p, dtype=dtype, requires_grad=True) for p in parameters]
    return made, [make([p]) for p in made] if apart else [make(made)]


@compiled_or_not
@at_most(10)
@drawn(kinds_of_update, st.lists(st.sampled_from(MANY), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_a_segment_is_updated_to_the_bits_of_its_parameters_alone(compiled, name, shapes, seed):
    rng = np.random.default_rng(seed)
    start = [rng.normal(size=shape) for shape in shapes]
    found = []
    gradients = [random_gradients(rng, optimized(name, start, apart=True)[0]) for _ in range(3)]
    for apart in (True, False):
        parameters, optimizers = optimized(name, start, apart=apart)

        def step(parameters=parameters, optimizers=optimizers):
            for optimizer in optimizers:
                optimizer.step()

        run = tinyarr.compile(step) if compiled else step
        for gs in gradients:
            for p, g in zip(parameters, gs, strict=True):
                p.grad = None if g is None else tinyarr.copy(g)
            run()
        owners = optimizers if apart else optimizers * len(parameters)
        state = [x.numpy().tobytes() for p, o in zip(parameters, owners) for x in o.state_of(p).values()]
        found.append([p.numpy().tobytes() for p in parameters] + state)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["AdamW", "AdamW with masters", "AdamW with stochastic rounding", "SGD with masters"])
def test_what_lies_between_parameters_stays_zero(name):
    make, dtype = UPDATES[name]
    parameters = [tinyarr.Tensor(RNG.normal(size=shape), dtype=dtype, requires_grad=True) for shape in MANY]
    optimizer = make(parameters)
    for bad in (1.0, np.nan):  # which is left out
        for p in parameters:
            p.grad = tinyarr.full(p.shape, bad, dtype=dtype)
        norm = optim.clip_grad_norm(parameters, 1.0)
        optimizer.step(where=tinyarr.isfinite(norm))
    sizes = sum(p.size for p in parameters)
    for segment in (x for packed in optimizer._packed for x in (packed.segment, *packed.state.values())):
        flat = segment.flat.numpy().astype(np.float64)
        assert np.count_nonzero(flat) <= sizes < flat.size
        for i, p in enumerate(reversed(parameters)):
            flat[segment.offsets[i] :][: p.size] = 0
        assert not flat.any()


def operations(function):
    """How many operations a call applies, views left out."""
    count, run = 0, eager.run

    def counted(call, operands, outs):
        nonlocal count
        count += call.primitive.view is None
        return run(call, operands, outs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "run", counted)
        function()
    return count


@pytest.mark.parametrize("make", [optim.AdamW, lambda ps: optim.SGD(ps, momentum=0.9)])
def test_the_operations_of_a_step_do_not_grow_with_the_number_of_parameters(make):
    counts = []
    for number in (2, 50):
        parameters = [tinyarr.ones((4, 8), requires_grad=True) for _ in range(number)]
        optimizer = make(parameters)
        for p in parameters:
            p.grad = tinyarr.ones((4, 8))

        def step(parameters=parameters, optimizer=optimizer):
            optim.clip_grad_norm(parameters, 1.0)
            optimizer.step()

        counts.append(operations(step))
    assert counts[0] == counts[1]


def test_large_groups_are_cut_into_segments_whose_parameters_keep_their_names(monkeypatch):
    monkeypatch.setattr(optim.Optimizer, "segment_bytes", 40)
    parameters = leaves(float32)  # of 48, 20 and 4 bytes
    optimizer = optim.AdamW([{"parameters": parameters[:2]}, {"parameters": parameters[2:]}])
    assert [[p.shape for p in packed.parameters] for packed in optimizer._packed] == [[(5,), (4, 3)], [()]]
    monkeypatch.setattr(optim.Optimizer, "segment_bytes", 20)
    cut = optim.AdamW([{"parameters": parameters[:2]}, {"parameters": parameters[2:]}])
    assert len(cut._packed) == 3
    shapes, others = ({name: t.shape for name, t in o.state_dict().items()} for o in (cut, optimizer))
    assert shapes == others


def test_clipping_keeps_each_gradient_the_tensor_that_it_was():
    parameters = leaves(float32)
    optim.SGD(parameters)
    set_gradients(parameters, GRADIENTS[0])
    before = [p.grad for p in parameters]
    arrays = [g.numpy().copy() for g in before]
    norm = optim.clip_grad_norm(parameters, 0.5).item()
    assert norm > 0.5
    for p, g, array in zip(parameters, before, arrays):
        assert p.grad is g
        np.testing.assert_array_equal(g.numpy(), array * np.float32(0.5 / (np.float32(norm) + np.float32(1e-6))))
    assert len({g.array.storage for g in before}) == 1
    parameters[0].grad = tinyarr.ones((4, 3))  # and each may be replaced, dropped, or written
    parameters[1].grad = None
    parameters[2].grad.assign(2.0)
    assert optim.grad_norm(parameters).item() == 4


def test_a_gradient_zeroed_by_hand_forgets_that_it_was_nan():
    parameters = [tinyarr.ones((5,), requires_grad=True) for _ in range(3)]
    optim.SGD(parameters)
    for value in (float("nan"), 1.0):
        for p in parameters:
            if p.grad is None:
                p.grad = tinyarr.zeros((5,))
            with tinyarr.no_grad():
                p.grad.assign(value)
        norm = optim.clip_grad_norm(parameters, 100.0)
    assert norm.item() == np.sqrt(np.float32(15))


def test_gradients_of_one_memory_are_joined_only_if_there_are_zeros_between_them():
    parameters = [tinyarr.ones((5,), requires_grad=True) for _ in range(2)]
    optimizer = optim.SGD(parameters, lr=1.0)
    memory = tinyarr.full((64,), 7.0)
    for p, start in zip(reversed(parameters), (0, 32)):  # as the parameters lie
        p.grad = memory[start : start + 5]
    assert optim.grad_norm(parameters).item() == np.sqrt(np.float32(490))
    optimizer.step()
    assert [p.tolist() for p in parameters] == [[-6.0] * 5] * 2
    assert not optimizer._packed[0].segment.flat.numpy()[5:32].any()


def test_a_parameter_that_another_optimizer_has_moved_is_still_updated():
    parameters = leaves(float32)
    first = optim.SGD(parameters, lr=1.0)
    optim.AdamW(parameters[:2])
    for p in parameters:
        p.grad = tinyarr.ones(p.shape)
    before = [p.numpy().copy() for p in parameters]
    first.step()
    assert all(np.array_equal(p.numpy(), x - 1) for p, x in zip(parameters, before))


def test_an_optimizer_of_a_users_own_gets_one_parameter_after_the_other_unless_it_is_elementwise():
    shapes = []

    class Own(optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, 1.0, {})

        def update(self, parameter, gradient, state, options):
            shapes.append(parameter.shape)
            parameter.assign(parameter - gradient)

    class Flat(Own):
        elementwise = True

        def update(self, parameter, gradient, state, options):
            super().update(parameter, gradient, state, options)

    class Apart(Flat):
        def update(self, parameter, gradient, state, options):
            super().update(parameter, gradient, state, options)

    for kind, expected in ((Own, [(), (5,), (4, 3)]), (Flat, [(96,)]), (Apart, [(), (5,), (4, 3)])):
        parameters = leaves(float32)
        optimizer = kind(parameters)
        set_gradients(parameters, GRADIENTS[0])
        shapes.clear()
        optimizer.step()
        assert shapes == expected
        for p, x, g in zip(parameters, START, GRADIENTS[0]):
            assert np.array_equal(p.numpy(), np.float32(x) - np.float32(g))


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_compiled_step_updates_and_clips_by_segments_also_after_other_batches(accumulate):
    """And what the last batch adds is made in the memory of what the others have added up."""
    sizes = []
    for layers in (1, 3):
        model = GPT2(Config(vocab_size=40, block_size=8, n_layer=layers, n_head=2, n_embd=32))
        optimizer = optim.AdamW(model.parameter_groups(0.1))

        def add_gradient(x, model=model):
            loss = model.loss(x[:, :-1], x[:, 1:])
            loss.backward()
            return loss.detach()

        def step(x, add_gradient=add_gradient, model=model, optimizer=optimizer):
            loss = add_gradient(x)
            norm = optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss, norm

        first, last = (tinyarr.compiler.Compiled(f, build=tinyarr.compiler.Interpreter) for f in (add_gradient, step))
        x = tinyarr.zeros((2, 9), dtype=tinyarr.int64)
        for _ in range(2 if accumulate else 0):
            first(x)
            assert len(first.graphs[0].results) == 3  # the loss, and the gradients of two segments
        last(x)
        (graph,) = last.graphs
        names = [getattr(node, "call", None) and node.call.primitive.name for node in graph.nodes]
        assert None not in names  # no write: all of the gradients' memory is made anew
        sizes.append(sum("adamw" in name or name == "scaled" for name in names))
        flat = [s.before.shape[0] for s in graph.states if s.before.dtype is float32 and len(s.before.shape) == 1]
        parts = [packed.segment.flat.size for packed in optimizer._packed]
        assert [flat.count(n) for n in parts] == [4 if accumulate else 3] * 2  # parameters, two moments, gradients
    assert max(sizes) <= 4  # a scaling and an update for each of two segments


def test_the_learning_rate_is_a_tensor_that_is_written_into():
    optimizer = optim.AdamW(leaves(), lr=0.1)
    lr = optimizer.lr
    assert (lr.shape, lr.dtype, lr.item()) == ((), float64, 0.1)
    optimizer.lr = 0.2
    assert optimizer.lr is lr and lr.item() == 0.2
    optimizer.lr = tinyarr.Tensor(0.5)
    assert optimizer.lr is lr and lr.item() == 0.5


def test_parameters_of_different_dtypes_share_a_group():
    parameters = [*leaves(float64), *leaves(bfloat16)]
    optimizer = optim.SGD(parameters, momentum=0.9)
    got = last(walk(optimizer, parameters, [gs * 2 for gs in GRADIENTS]))
    for x, y in zip(got, last(by_formula(sgd, {"momentum": 0.9}))):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    assert set(optimizer.parameters) == set(parameters)


def test_zero_grad_forgets_the_gradients_of_all_groups():
    parameters = leaves()
    optimizer = optim.SGD([{"parameters": parameters[:1]}, {"parameters": parameters[1:]}])
    set_gradients(parameters, GRADIENTS[0])
    optimizer.zero_grad()
    assert [p.grad for p in parameters] == [None] * 3


def wrong_gradient():
    (p,) = parameters = [tinyarr.ones((3,), requires_grad=True)]
    p.grad = tinyarr.ones((4,))
    optim.SGD(parameters).step()


def step_where(where):
    optim.SGD(leaves()).step(where=where)


def load_into(parameters, change):
    optimizer = optim.AdamW(parameters)
    optimizer.load_state_dict(optimizer.state_dict() | change)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.AdamW([]), ArgumentError, "AdamW: got no parameters"),
        (lambda: optim.SGD([{"parameters": []}]), ArgumentError, "SGD: got no parameters"),
        (lambda: optim.SGD([tinyarr.ones(3)]), ArgumentError, r"a parameter has shape \(3,\).* requires_grad=True"),
        (lambda: optim.SGD([leaves()[0] * 2]), ArgumentError, r"a parameter has shape \(4, 3\).* must be a leaf"),
        (lambda: optim.SGD([1.0]), ArgumentError, "a parameter is float: it must be a leaf"),
        (lambda: optim.SGD(leaves()[:1] * 2), ArgumentError, r"a parameter of shape \(4, 3\) came twice"),
        (lambda: optim.SGD([{"weights": leaves()}]), ArgumentError, r"a group has \['weights'\].*'parameters'"),
        (lambda: optim.SGD([{"parameters": leaves(), "lr": 1}], lr=0), ArgumentError, "a group's lr, 1, is kept as a"),
        (lambda: optim.SGD([{"parameters": leaves()}, leaves()]), ArgumentError, "a group is a list: it is a dict"),
        (lambda: optim.AdamW(leaves(), betas=(0.9, 1.0)), ArgumentError, r"betas is \(0.9, 1.0\)"),
        (lambda: optim.SGD(leaves(), nesterov=True), ArgumentError, "nesterov=True with momentum 0"),
        (lambda: optim.Optimizer(leaves(), 0.1, {}).update(*[None] * 4), ArgumentError, r"no update\(\)"),
        (wrong_gradient, ShapeError, r"gradient has shape \(4,\), its parameter \(3,\)"),
        (lambda: step_where(True), TypeError, "step: where is bool: make it a tensor"),
        (lambda: step_where(tinyarr.Tensor([True])), ShapeError, r"step: where has shape \(1,\): it must be 0-d"),
        (lambda: step_where(tinyarr.Tensor(1)), DtypeError, "step: where has dtype int64: it must be bool"),
        (lambda: step_where(tinyarr.Tensor(True).to("meta")), DeviceError, "where is on meta, the parameters on cpu"),
        (lambda: load_into(leaves(), {"0.3.m": tinyarr.ones(1)}), ArgumentError, r"differ in \['0.3.m'\]"),
        (lambda: load_into(leaves(), {"0.1.m": tinyarr.ones(1)}), ShapeError, r"0.1.m has shape \(1,\), .* \(5,\)"),
        (lambda: optim.clip_grad_norm(leaves(), 1.0), ArgumentError, "no parameter has a gradient"),
        (lambda: optim.grad_norm(leaves()), ArgumentError, "grad_norm: no parameter has a gradient"),
        (lambda: optim.clip_grad_norm(leaves(), 0.0), ArgumentError, "max_norm is 0.0"),
        (lambda: optim.clip_grad_norm(leaves(), float("nan")), ArgumentError, "max_norm is nan"),
    ],
)
def test_what_can_t_be_optimized_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
@pytest.mark.parametrize("lr", [-1e-3, float("nan")])
def test_a_learning_rate_below_zero_is_an_error(kind, lr):
    with pytest.raises(ArgumentError, match=f"{kind.__name__}: lr is {lr}: it must be 0 or more"):
        kind(leaves(), lr)


@pytest.mark.parametrize(
    ("kind", "option", "value", "needs"),
    [
        (optim.AdamW, "weight_decay", -0.1, "0 or more"),
        (optim.AdamW, "eps", 0.0, "positive"),
        (optim.AdamW, "eps", float("nan"), "positive"),
        (optim.AdamW, "betas", (-0.1, 0.9), r"in \[0, 1\)"),
        (optim.AdamW, "betas", (0.9,), r"in \[0, 1\)"),
        (optim.SGD, "momentum", 1.0, r"in \[0, 1\)"),
        (optim.SGD, "momentum", -0.1, r"in \[0, 1\)"),
        (optim.SGD, "weight_decay", -0.1, "0 or more"),
        (optim.SGD, "lr_scale", -1.0, "0 or more"),
    ],
)
def test_an_option_out_of_its_range_is_an_error_for_all_parameters_and_in_a_group(kind, option, value, needs):
    message = f"{kind.__name__}: {option} is .*: .*{needs}"
    with pytest.raises(ArgumentError, match=message):
        kind([{"parameters": leaves(), option: value}])
    if option != "lr_scale":
        with pytest.raises(ArgumentError, match=message):
            kind(leaves(), **{option: value})


def test_clipping_scales_the_joint_norm_down_to_the_largest_allowed():
    parameters = leaves()
    set_gradients(parameters, GAPS[0])
    expected = np.sqrt(sum((g**2).sum() for g in GAPS[0] if g is not None))
    norm = optim.clip_grad_norm(parameters, 0.5)
    assert norm.item() == pytest.approx(expected, rel=1e-14) and norm.dtype is float64
    for p, g in zip(parameters, GAPS[0]):
        assert (p.grad is None) if g is None else np.allclose(p.grad, g * 0.5 / (expected + 1e-6), rtol=1e-12)
    assert optim.clip_grad_norm(parameters, 0.5).item() <= 0.5


def test_clipping_leaves_float32_gradients_of_a_half_type_float32():
    p = tinyarr.ones((3,), dtype=bfloat16, requires_grad=True)
    p.grad_dtype = float32
    (p * tinyarr.Tensor([1.0, 2.0, 2.0], dtype=bfloat16)).sum().backward()
    norm = optim.clip_grad_norm([p], 1.0)
    assert (norm.dtype, norm.item(), p.grad.dtype) == (float32, 3.0, float32)
    scale = np.float32(1 / (3 + 1e-6))
    np.testing.assert_allclose(p.grad.numpy(), scale * np.float32([1, 2, 2]), rtol=2 * np.finfo(np.float32).eps)


def test_clipping_by_a_norm_that_is_known_is_the_same():
    found = []
    for known in (False, True):
        parameters = leaves()
        set_gradients(parameters, GAPS[0])
        norm = optim.grad_norm(parameters)
        assert optim.clip_grad_norm(parameters, 0.5, norm=norm if known else None).item() == norm.item()
        found.append([p.grad if p.grad is None else p.grad.tolist() for p in parameters])
    assert found[0] == found[1]


@pytest.mark.parametrize("max_norm", [1e6, float("inf")])
def test_a_norm_within_the_limit_changes_no_bit(max_norm):
    parameters = leaves(float32)
    set_gradients(parameters, GRADIENTS[0])
    before = [p.grad.numpy() for p in parameters]
    assert optim.clip_grad_norm(iter(parameters), max_norm).dtype is float32
    assert all(np.array_equal(p.grad.numpy(), g) for p, g in zip(parameters, before))


@half_types
def test_clipping_a_half_type_rounds_each_gradient_once(dtype):
    p = tinyarr.zeros((300, 300), dtype=dtype, requires_grad=True)
    p.grad = tinyarr.normal((300, 300), dtype=dtype, generator=tinyarr.Generator(0))
    g = p.grad.numpy()
    norm = optim.clip_grad_norm([p], 200.0)
    assert norm.dtype is float32 and norm.item() == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-6)
    scale = np.float32(200) / (norm.numpy() + np.float32(1e-6))
    assert np.array_equal(p.grad.numpy(), (g.astype(np.float32) * scale).astype(dtype.numpy))


def torch_walk(kind, groups, gradients):
    """As walk, with torch's optimizer; groups as its own, with NumPy arrays for "params" and "lr_scale"."""
    import torch

    groups = [{**group, "params": [torch.tensor(x, requires_grad=True) for x in group["params"]]} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    optimizer = getattr(torch.optim, kind)([{k: v for k, v in group.items() if k != "lr_scale"} for group in groups])
    for lr, gs in zip(RATES, gradients):
        for group, given in zip(optimizer.param_groups, groups):
            group["lr"] = lr * given.get("lr_scale", 1.0)
        for p, g in zip(parameters, gs):
            p.grad = None if g is None else torch.tensor(g, dtype=p.dtype)
        optimizer.step()
        yield [p.detach().numpy().copy() for p in parameters]


@pytest.mark.parity
@in_torch
def test_every_step_is_torch_s(kind, formula, options):
    parameters = leaves()
    steps = walk(kind(parameters, **options), parameters)
    assert_steps_equal(steps, torch_walk(kind.__name__, [{"params": START, **options}], GRADIENTS))


@pytest.mark.parity
@in_torch
def test_every_step_of_two_groups_is_torch_s(kind, formula, options):
    parameters = leaves()
    groups = [{"parameters": parameters[:1], "weight_decay": 0.2}, {"parameters": parameters[1:], "lr_scale": 0.5}]
    theirs = [
        {"params": START[:1], **options, "weight_decay": 0.2},
        {"params": START[1:], **options, "lr_scale": 0.5},
    ]
    steps = walk(kind(groups, **options), parameters)
    assert_steps_equal(steps, torch_walk(kind.__name__, theirs, GRADIENTS))


@pytest.mark.parity
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_skips_missing_gradients_as_torch_does(options):
    parameters = leaves()
    steps = walk(optim.SGD(parameters, **options), parameters, GAPS)
    assert_steps_equal(steps, torch_walk("SGD", [{"params": START, **options}], GAPS))


@pytest.mark.parity
def test_adamw_leaves_a_parameter_without_gradients_alone_as_torch_does():
    parameters, gradients = leaves(), [[None, *gs[1:]] for gs in GRADIENTS]
    steps = walk(optim.AdamW(parameters), parameters, gradients)
    assert_steps_equal(steps, torch_walk("AdamW", [{"params": START}], gradients))


@pytest.mark.parity
@half_types
@in_torch
def test_a_half_type_with_its_master_is_torch_s_float32_rounded(kind, formula, options, dtype):
    """torch's parameters are float32 from the same start and with the same gradients: only their roundings differ."""
    parameters = leaves(dtype)
    starts = [p.numpy().astype(np.float32) for p in parameters]
    rounded = [[tinyarr.Tensor(g, dtype=dtype).numpy().astype(np.float32) for g in gs] for gs in GRADIENTS]
    optimizer = kind(parameters, **options)
    masters = [optimizer.state_dict()[f"0.{i}.master"] for i in (2, 1, 0)]
    steps = ([master.numpy() for master in masters] for _ in walk(optimizer, parameters))
    theirs = torch_walk(kind.__name__, [{"params": starts, **options}], rounded)
    assert_steps_equal(steps, theirs, rtol=2 * roundings(len(RATES)))


@pytest.mark.parity
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clipping_is_torch_s(max_norm):
    import torch

    parameters, theirs = leaves(), [torch.tensor(x, requires_grad=True) for x in START]
    set_gradients(parameters, GAPS[0])
    for p, g in zip(theirs, GAPS[0]):
        p.grad = None if g is None else torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert optim.clip_grad_norm(parameters, max_norm).item() == pytest.approx(norm.item(), rel=1e-14)
    for p, q in zip(parameters, theirs):
        if q.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-14)


def test_a_learning_rate_below_0_is_refused_also_later():
    optimizer = optim.SGD([tinyarr.Tensor([1.0], requires_grad=True)], lr=0.1)
    with pytest.raises(ArgumentError, match="SGD: lr is -1"):
        optimizer.lr = -1
    assert optimizer.lr.item() == 0.1


@pytest.mark.parametrize(
    ("kind", "option", "value", "name"),
    [(optim.RMSprop, "momentum", 0.9, "velocity"), (optim.RMSprop, "centered", True, "mean"),
     (optim.SGD, "momentum", 0.9, "velocity")],
)  # fmt: skip
def test_state_is_kept_only_if_a_group_asks_for_it_and_none_can_later(kind, option, value, name):
    a, b = (tinyarr.ones(3, requires_grad=True) for _ in range(2))
    plain, full = kind([a]), kind([{"params": [a]}, {"params": [b], option: value}])
    assert not any(key.endswith(name) for key in plain.state_dict())
    assert any(key.endswith(name) for key in full.state_dict())
    with pytest.raises(ArgumentError, match=f"{option} is {value}, and the optimizer was made without it and keeps no"):
        plain.param_groups[0][option] = value
    plain.param_groups[0][option] = 0.0
    full.param_groups[0][option] = value
