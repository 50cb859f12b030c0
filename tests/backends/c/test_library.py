"""Programs as C libraries: within a derived bound of the NumPy interpreter, for every operation and for training."""

import ctypes
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.memory.plan_checker import follow
from tests.compiler.test_compile import REFUSED, again, gpt2, llama3, outcome
from tests.samples import SAMPLES
from tests.test_primitives import in_tuple, operands
from tests.test_random_programs import programs
from tests.tiers import at_most, slow
from tinyarr import Tensor, cache
from tinyarr.backends.c import collective, compiler
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.uses import made_by
from tinyarr.distributed import all_gather, all_reduce
from tinyarr.errors import OutOfBounds, TinyarrError


def values(function, *args):
    """The results as float64 where they are floats, or the error's type."""
    ta.manual_seed(0)
    try:
        results = [ta.copy(x) for x in in_tuple(function(*args)) if isinstance(x, Tensor)]
    except TinyarrError as error:
        return type(error)
    return [(x.astype(ta.float64) if x.dtype.is_float else x).numpy() for x in results]


def close(found, naive, reference, epsilon, scale):
    """At most twice the naive error, or a few roundings of the largest number that takes part."""
    if found.dtype.kind != "f":
        return np.array_equal(found, naive)
    if np.array_equal(found, naive, equal_nan=True):
        return True
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(naive) & np.isfinite(reference)
        special = ~np.isfinite(naive)
        if not np.array_equal(found[special], naive[special], equal_nan=True):
            return False
        size = max(np.abs(reference[finite]).max(initial=0), scale, 1)
        allowed = 2 * np.abs(naive - reference)[finite].max(initial=0) + 4 * epsilon * size
        return bool((np.abs(found - reference)[finite] <= allowed).all())


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in REFUSED])
@pytest.mark.property
def test_every_operation_in_c_errs_no_more_than_twice_numpys(name):
    sample = SAMPLES[name]

    @at_most(3, first=1, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = operands(data.draw, case, dtype)

        def run(*x):
            return sample.function(*x, **case.params)

        compiled, oracle = ta.compile(run), Compiled(run, build=Interpreter)
        for x in (inputs, [again(x) for x in inputs]):
            found, naive = values(compiled, *x), values(oracle, *x)
            if isinstance(naive, type) or isinstance(found, type):
                assert found == naive
                continue
            wide = [t.astype(ta.float64) if t.dtype.is_float and t.dtype.itemsize > 1 else t for t in x]
            reference = values(run, *wide)
            if isinstance(reference, type):
                reference = naive
            floats = [t.dtype for t in x if t.dtype.is_float] or [ta.float32]
            epsilon = max(float(ta.finfo(d).eps) for d in floats)
            scale = max((float(np.abs(np.nan_to_num(t.astype(ta.float64).numpy(), posinf=0, neginf=0)).max(initial=0))
                         for t in x if t.dtype.is_float), default=0)  # fmt: skip
            for a, b, r in zip(found, naive, reference, strict=True):
                assert close(a, b, r if r.shape == b.shape else b, epsilon, scale)

    check()


@at_most(15, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_random_programs_agree_and_their_plans_hold_what_they_read(program):
    kept: dict[int, list] = {}

    def function(*inputs):
        found = program.evaluate(ta, inputs, kept)
        return tuple(found[i] for i in program.outputs)

    inputs = [Tensor(x) for x in program.inputs]
    compiled = ta.compile(function)
    for x in (inputs, [again(x) for x in inputs]):
        assume("from outside" not in str(outcome(compiled, *x)))  # what the program keeps, traced again
        found, naive = values(compiled, *x), values(function, *x)
        if isinstance(naive, type):
            assert found == naive
        else:
            for a, b in zip(found, naive, strict=True):
                largest = np.abs(b[np.isfinite(b)]).max(initial=1)
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * largest)
    for graph in compiled.graphs:
        follow(graph, plan(graph))



MAKERS = {
    "elementwise": lambda x: ta.exp(x) + 1,
    "matmul": lambda x: x @ x,
    "reduction over rows": lambda x: ta.stack([x, x, x]).sum(axis=0),
    "reduction of rows": lambda x: ta.stack([x] * 9, axis=-1).sum(axis=-1),
    "softmax": lambda x: ta.softmax(x, axis=-1),
    "layer_norm": lambda x: ta.layer_norm(x, x[0], x[1]),
    "take": lambda x: ta.take(x, Tensor([3, 0, 2, 2]), axis=0),
    "cumulative_sum": lambda x: ta.cumulative_sum(x, axis=1),
    "concat": lambda x: ta.concat([x[:2], x[2:]], axis=0),
    "half": lambda x: (x.astype(ta.bfloat16) @ x.astype(ta.bfloat16)).astype(ta.float32),
    "transposed": lambda x: (x @ x).T + 0,
    "padded twice": lambda x: padded(x * 2)[1:5, 2:6] * 1,
    "attention": lambda x: ta.scaled_dot_product_attention(*[x.reshape((1, 2, 2, 4))] * 3).reshape((4, 4)),
}


def padded(y):
    """y (4, 4) inside zeros (7, 9): the gradient of a slice."""
    _, pull = ta.vjp(lambda x: x[2:6, 1:5], ta.zeros((7, 9)))
    (inner,) = pull(y)
    _, pull = ta.vjp(lambda x: x[0, 3:, :9], ta.zeros((2, 10, 11)))
    return pull(inner)[0][0, 3:, :9]


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_within_zeros_is_what_was_made_beside_them(name):
    x = Tensor(np.random.default_rng(0).standard_normal((4, 4)), dtype=ta.float32)

    def once(x):
        _, pull = ta.vjp(lambda t: t[2:6, 1:5], ta.zeros((7, 9)))
        return pull(MAKERS[name](x))[0]

    def several_times(x):
        return padded(MAKERS[name](x))

    for run in (once, several_times):
        compiled = ta.compile(run)
        for _ in range(2):
            for a, b in zip(values(compiled, x), values(run, x), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        (graph,) = compiled.graphs
        planned = plan(graph)
        assert any(planned.is_part(value) for node in graph.nodes for value in made_by(node))


def test_what_goes_into_state_at_the_end_is_not_overwritten_under_another_name():
    x = Tensor(np.random.default_rng(0).standard_normal((8, 8)) / 8, dtype=ta.float32)
    found = []
    for compiled in (True, False):
        state = ta.ones((8, 8))

        def step(x, state=state):
            y = (x.T * 2) @ x
            y = y @ y
            old = state @ x  # so that the new contents can't be made where the old ones are
            state.assign(y)
            return ta.exp(y) @ x, old  # whose exponentials would find room in y

        (ta.compile(step) if compiled else step)(x)
        found.append(state.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-7)


def training(make, build, dtype, steps=5, seed=0):
    rng = np.random.default_rng(seed)
    batches = [Tensor(rng.integers(0, 65, (2, 17))) for _ in range(steps)]
    ta.manual_seed(seed)
    model = make()
    for p in model.parameters():
        p.array = p.detach().astype(dtype).array
    optimizer = ta.optim.AdamW(model.parameters(), lr=1e-2)

    def step(tokens):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        norm = ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss, norm

    step = step if build is None else Compiled(step, build=build) if build is Interpreter else ta.compile(step)
    return np.array([[x.item() for x in step(tokens)] for tokens in batches])


@pytest.mark.parametrize("make", [slow(gpt2), llama3])
def test_training_in_c_errs_no_more_than_twice_eager_training(make):
    """In the middle of five runs: where a gradient is nothing but rounding, AdamW goes a whole step by its sign."""
    naive, errors, floors = [], [], []
    for seed in range(5):
        reference = training(make, None, ta.float64, seed=seed)
        naive.append(np.abs(training(make, None, ta.float32, seed=seed) - reference).max(axis=0))
        errors.append(np.abs(training(make, "c", ta.float32, seed=seed) - reference).max(axis=0))
        floors.append(np.finfo(np.float32).eps * np.abs(reference).max(axis=0))
    assert (np.median(errors, axis=0) <= 2 * np.median(naive, axis=0) + 4 * np.median(floors, axis=0)).all()


@pytest.mark.parametrize(
    ("model", "threads"), [("gpt2", ["1", "3"]), *(slow(name, ["1", "2", "3", "2"]) for name in ("gpt2", "llama3"))]
)
def test_threads_change_no_bit(model, threads):
    code = (
        "from tests.backends.c.test_library import *\n"
        f"print(training({model}, 'c', ta.float32).tobytes().hex())"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": n}, capture_output=True, text=True)
        for n in threads
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_a_bad_index_names_operation_position_and_line():
    table = Tensor(np.ones((4, 3), np.float32))

    @ta.compile
    def look_up(i):
        return ta.embedding(table, i)

    assert look_up(Tensor([0, 3])).shape == (2, 3)
    with pytest.raises(OutOfBounds, match=r"take: index 1 is 4.*test_library.py"):
        look_up(Tensor([0, 4]))


def test_what_ranks_make_together_is_joined_as_it_is_read():
    def function(x):
        return ta.concat([all_reduce(x * 2), x, all_gather(x + 1)])

    x = ta.randn(6, 3)
    assert np.array_equal(ta.compile(function)(x).numpy(), function(x).numpy())


def test_collectives_that_are_on_their_way_at_a_bad_index_are_waited_for(monkeypatch):
    happened, begin = [], collective.begin

    def noting(name, *given):
        finish = begin(name, *given)
        happened.append("begun")
        return lambda: (happened.append("ended"), finish())

    monkeypatch.setattr(collective, "begin", noting)
    step = ta.compile(lambda x, rows: all_reduce(x * 2) + ta.take(x, rows, axis=0).sum())
    x = ta.ones((8,))
    step(x, ta.Tensor([1, 2]))
    with pytest.raises(OutOfBounds):
        step(x, ta.Tensor([1, 8]))
    assert happened == ["begun", "ended"] * 2


def test_state_that_a_bad_index_leaves_counts_as_unwritten():
    table, state = Tensor(np.ones((4, 3), np.float32)), Tensor([1.0, 2.0])

    @ta.compile
    def step(i):
        state.assign(state * 2)
        return ta.embedding(table, i)

    step(Tensor([0]))
    weight = ta.ones(2)
    weight.requires_grad = True
    saved = ta.sum(weight * state)
    with pytest.raises(OutOfBounds):
        step(Tensor([4]))
    saved.backward()
    assert state.tolist() == weight.grad.tolist() == [2.0, 4.0]


def test_without_a_compiler_numpy_serves_and_says_so(monkeypatch):
    from tinyarr.backends.c import backend

    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    backend._warn_of_numpy.cache_clear()
    double = ta.compile(lambda x: x + x)
    with pytest.warns(UserWarning, match="NumPy"):
        assert double(Tensor([1.0])).tolist() == [2.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ta.compile(lambda x: x * x)(Tensor([3.0])).tolist() == [9.0]


def test_kernels_show_readable_source():
    add = ta.compile(lambda x: (x + 1).sum())
    add(Tensor(np.ones((2, 3), np.float32)))
    (kernel,) = add.programs[0].kernels
    assert str(add.programs[0]).split()[:2] == ["add_sum_kernel", "float32[]"] and "test_library.py" in str(kernel)
    assert kernel.source.startswith("KERNEL add_sum_kernel(const float *x0, float *out)")
    assert "float v3 = v0 + v2;" in kernel.source and "lanes[lane] += x_part[i];" in kernel.source


def test_a_program_gives_back_what_eager_mode_holds_free():
    ta.empty(1 << 20)
    assert ta.memory_stats().pooled
    ta.compile(lambda x: x + 1)(ta.ones(3))
    assert not ta.memory_stats().pooled


SOURCE = "int answer(void) { return 42; }"


def test_the_cache_is_used_verified_and_repaired(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    assert compiler.load_cached(SOURCE).answer() == 42
    (file,) = cache.files()
    made = []
    monkeypatch.setattr(compiler, "load", lambda *a, **k: made.append(a) or ctypes.CDLL(None))
    assert compiler.load_cached(SOURCE).answer() == 42 and not made
    file.write_bytes(file.read_bytes()[:-40] + b"\0" * 40)
    assert cache.read(file.name) is None
    monkeypatch.undo()
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    assert compiler.load_cached(SOURCE + "\n").answer() == 42
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert compiler.load_cached(SOURCE).answer() == 42
    assert len(cache.files()) == 3


def test_a_cache_that_cannot_be_written_costs_time_alone(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "file"))
    assert compiler.load_cached(SOURCE).answer() == 42
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    assert compiler.load_cached(SOURCE).answer() == 42
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_two_processes_and_a_killed_one_share_a_cache(tmp_path):
    code = f"from tinyarr.backends.c import compiler\nassert compiler.load_cached({SOURCE!r}).answer() == 42"
    env = {**os.environ, "TINYARR_CACHE": str(tmp_path)}
    killed = subprocess.Popen([sys.executable, "-c", code], env=env)
    both = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    killed.kill()
    killed.wait()
    assert [p.wait() for p in both] == [0, 0]
    command = [sys.executable, "-m", "tinyarr", "cache", "--clear"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "1 files" in shown.stdout and not list(tmp_path.glob("*.so"))
