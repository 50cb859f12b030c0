"""Batches of items: what they hold, in which order, and how workers end, whatever happens."""

import collections
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tests.tiers import at_most, slow
from tinyarr import optim, tape
from tinyarr.data import DataLoader, TensorDataset, collate, workers
from tinyarr.errors import ArgumentError, ShapeError

ROOT = Path(__file__).parents[2]
WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "processes": True}]
each_kind = pytest.mark.parametrize("kind", WORKERS, ids=["alone", "threads", "processes"])
workers_only = pytest.mark.parametrize("kind", WORKERS[1:], ids=["threads", "processes"])


class Failing:
    """Numbers up to 12, of which some can't be had."""

    def __init__(self, bad, how):
        self.bad, self.how = bad, how

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.how(i) if i == self.bad else i


class Draws(Failing):
    def __getitem__(self, i):
        return i, tinyarr.rand(3)


def numbers(loader):
    return [batch.tolist() for batch in loader]


@at_most(40)
@given(st.integers(0, 30), st.integers(1, 8), st.booleans(), st.booleans(), st.integers(0, 5), st.integers(0, 9))
def test_each_item_comes_once_in_an_order_that_no_worker_changes(n, size, shuffle, drop_last, threads, seed):
    options = {"batch_size": size, "shuffle": shuffle, "drop_last": drop_last, "seed": seed}
    loader = DataLoader(range(n), **options)
    epochs = [numbers(loader) for _ in range(2)]
    for batches in epochs:
        assert len(batches) == len(loader) == (n // size if drop_last else -(-n // size))
        assert all(len(batch) == size for batch in batches[:-1])
        items = [i for batch in batches for i in batch]
        assert len(set(items)) == len(items) == (n // size * size if drop_last else n)
        assert shuffle or items == list(range(len(items)))
    other = DataLoader(range(n), num_workers=threads, **options)
    assert [numbers(other), numbers(other)] == epochs


def test_epochs_and_seeds_have_orders_of_their_own_and_every_run_the_same():
    orders = [numbers(loader) for seed in range(3) for loader in [DataLoader(range(50), 50, True, seed=seed)] * 3]
    assert len({tuple(batch) for (batch,) in orders}) == 9
    later = DataLoader(range(50), 50, True, seed=1)
    later.epoch = 2
    assert numbers(later) == orders[5]
    large = [numbers(DataLoader(range(50), 50, True, seed=2**64 - n)) for n in (1, 2)]
    assert large[0] != large[1]
    assert numbers(DataLoader(range(8), 8, True)) == [[0, 2, 1, 5, 4, 3, 6, 7]]  # and every version


@each_kind
def test_a_resumed_loader_goes_on_within_an_epoch(kind):
    options = {"batch_size": 3, "shuffle": True, **kind}
    loader = DataLoader(range(12), **options)
    numbers(loader)
    passing = iter(loader)
    first = [next(passing).tolist() for _ in range(2)]
    resumed = DataLoader(range(12), **options)
    resumed.load_state_dict(loader.state_dict())
    assert loader.state_dict() == {"epoch": 1, "batch": 2}
    last = numbers(passing)
    assert numbers(resumed) == last and sorted(i for batch in first + last for i in batch) == list(range(12))
    assert numbers(resumed) == numbers(loader)


def test_a_pass_that_is_left_is_not_gone_on_with():
    loader = DataLoader(range(12), 3, True)
    first = next(iter(loader)).tolist()
    batches = numbers(loader)
    assert len(batches) == 4 and loader.epoch == 2 and batches != numbers(DataLoader(range(12), 3, True))
    assert first == numbers(DataLoader(range(12), 3, True))[0]


Point = collections.namedtuple("Point", "x y")


def test_items_of_any_nesting_become_one():
    item = lambda i: {"image": np.full((2, 2), i, np.uint8), "at": Point(0.5 * i, i), "name": f"n{i}", "flags": [i > 0]}  # noqa: E731
    (batch,) = DataLoader([item(0), item(1)], 2)
    assert batch["image"].dtype is tinyarr.uint8 and batch["image"].tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert isinstance(batch["at"], Point) and batch["name"] == ["n0", "n1"]
    x, y, (flags,) = batch["at"].x, batch["at"].y, batch["flags"]
    assert [(t.dtype.name, t.tolist()) for t in (x, y, flags)] == [
        ("float32", [0, 0.5]), ("int64", [0, 1]), ("bool", [False, True])
    ]  # fmt: skip
    assert collate([tinyarr.ones(2), tinyarr.zeros(2)]).tolist() == [[1, 1], [0, 0]]
    assert collate([np.float64(1), np.float64(2)]).dtype == np.float64
    assert collate([None, None]) == [None, None]
    assert [collate(items).dtype.name for items in ([1, 2.5], [True, 2.5], [True, 2], [np.float64(1), 2.5])] == [
        "float32", "float32", "int64", "float64"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.ones(2), np.ones(3)], r"collate: items have shapes \[\(2,\), \(3,\)\]: pad them, or give a collate_fn"),
        ([(1, 2), (1, 2, 3)], r"collate: items have \[2, 3\] entries: give a collate_fn"),
        ([{"a": 1}, {"a": 1, "b": 2}], r"collate: not all items have the keys \['b'\]: give them all, or give"),
        ([{"a": 1, "b": 2}, {"a": 1}], r"collate: not all items have the keys \['b'\]"),
    ],
)
def test_items_that_do_not_fit_together_are_an_error(items, message):
    with pytest.raises(ShapeError, match=message):
        numbers(DataLoader(items, 2))


def test_a_batch_is_made_as_one_s_own_function_says():
    made = [*DataLoader([np.array([1]), np.array([2, 3])], 2, collate_fn=lambda items: (np.concatenate(items), "text"))]
    assert made[0][0].tolist() == [1, 2, 3] and made[0][1] == "text"
    assert next(iter(DataLoader(range(3), 3, device="meta"))).device.kind == "meta"


def test_tensors_and_arrays_are_a_data_set_of_their_rows():
    dataset = TensorDataset(tinyarr.arange(6).reshape(3, 2), np.arange(3.0), [5, 6, 7])
    assert len(dataset) == 3
    assert [[t.tolist() for t in batch] for batch in DataLoader(dataset, 2)] == [
        [[[0, 1], [2, 3]], [0, 1], [5, 6]], [[[4, 5]], [2], [7]]
    ]  # fmt: skip
    with pytest.raises(ShapeError, match=r"TensorDataset: tensors have \[3, 2\] rows"):
        TensorDataset(np.ones(3), np.ones(2))


def test_what_items_draw_is_a_function_of_seed_epoch_and_number_alone():
    found = []
    for kind in WORKERS:
        loader = DataLoader(Draws(None, None), 5, True, **kind)
        found.append([[(x.tolist(), y.tolist()) for x, y in loader] for _ in range(2)])
    assert found[0] == found[1] == found[2] and found[0][0] != found[0][1]
    rows = {tuple(row) for _, y in found[0][0] for row in y}
    assert len(rows) == 12


def noisy(items):
    """A batch that draws as its items do."""
    return collate(items), tinyarr.rand(2).numpy()


def test_what_a_batch_draws_is_the_same_in_each_run_and_with_any_workers_and_not_what_its_items_drew():
    found = []
    for kind in [{}, *WORKERS]:
        tinyarr.rand(1)
        loader = DataLoader(Draws(None, None), 5, True, collate_fn=noisy, **kind)
        found.append([(items.tolist(), drawn.tolist()) for (_, items), drawn in loader])
    assert all(each == found[0] for each in found)
    assert len({tuple(drawn) for _, drawn in found[0]}) == 3
    assert all(drawn != items[0][:2] for items, drawn in found[0])


class DrawsElsewhere(Draws):
    def __getitem__(self, i):
        return random.random(), np.random.rand()


def test_in_processes_what_items_draw_from_other_generators_is_a_function_of_seed_and_number():
    outside = random.getstate(), np.random.get_state()[1].tolist()
    dataset = DrawsElsewhere(None, None)
    loaders = [DataLoader(dataset, 4, num_workers=n, processes=True) for n in (1, 2)]
    one, two = ([x.tolist() for batch in loader for x in batch] for loader in loaders)
    assert one == two and len({x for numbers in one for x in numbers}) == 24
    assert (random.getstate(), np.random.get_state()[1].tolist()) == outside


class SeesContext(Draws):
    def __getitem__(self, i):
        return tape.recording.get(), tinyarr.ones(1).device.kind == "cpu"


@each_kind
def test_items_are_made_without_the_caller_s_context(kind):
    with tinyarr.no_grad(), tinyarr.use_device("meta"):
        loader = DataLoader(SeesContext(None, None), 12, device="cpu", **kind)
        ((records, on_cpu),) = loader
    assert all(records.tolist()) and all(on_cpu.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_start_anew_give_the_same_batches(method, monkeypatch):
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    assert numbers(DataLoader(range(9), 2, True, **WORKERS[2])) == numbers(DataLoader(range(9), 2, True))


def raise_key_error(i):
    raise KeyError(f"no item {i}")


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_unpicklable(i):
    raise Unpicklable("this", "that")


@each_kind
def test_what_an_item_raises_is_raised_with_its_number_after_all_batches_before_it(kind):
    seen = []
    with pytest.raises(KeyError, match="no item 7") as caught:
        for batch in DataLoader(Failing(7, raise_key_error), 2, **kind):
            seen += batch.tolist()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert "DataLoader: this was raised by item 7 of the dataset" in caught.value.__notes__
    with pytest.raises((RuntimeError, Unpicklable), match="this and that") as caught:
        numbers(DataLoader(Failing(7, raise_unpicklable), 2, **kind))
    assert "item 7 of the dataset" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def raise_stop_iteration(i):
    return next(iter([]))


@each_kind
def test_an_item_that_raises_stop_iteration_does_not_end_the_pass_in_silence(kind):
    with pytest.raises(RuntimeError, match="StopIteration was raised where a batch was made") as caught:
        numbers(DataLoader(Failing(7, raise_stop_iteration), 2, **kind))
    assert "DataLoader: this was raised by item 7 of the dataset" in caught.value.__notes__


def test_what_can_t_leave_a_process_is_an_error_and_so_is_a_process_that_ends():
    with pytest.raises(Exception, match="pickle"):
        list(DataLoader(Failing(7, lambda i: lambda: i), 2, **WORKERS[2]))
    with pytest.raises(ChildProcessError, match=r"ended with exit code 3 at the batch of items \[6, 7\]: see what"):
        numbers(DataLoader(Failing(7, lambda i: os._exit(3)), 2, **WORKERS[2]))


def wait_for(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


@workers_only
@pytest.mark.parametrize("how", ["break", "error", "close"])
def test_all_workers_end_with_the_pass(kind, how):
    threads = set(threading.enumerate())
    passing = iter(DataLoader(range(1000), 2, **kind))
    next(passing)
    assert multiprocessing.active_children() if "processes" in kind else set(threading.enumerate()) - threads
    if how == "close":
        passing.close()
    elif how == "break":
        del passing
    else:
        with contextlib.suppress(ZeroDivisionError):
            passing.throw(ZeroDivisionError)
    assert wait_for(lambda: not multiprocessing.active_children() and set(threading.enumerate()) <= threads)


def test_threads_are_only_so_far_ahead():
    asked = []
    passing = iter(DataLoader(Failing(None, None), 1, num_workers=1, collate_fn=asked.append))
    next(passing)
    most = 1 + workers.AHEAD + 1  # given, waiting, and one that waits for room
    assert wait_for(lambda: len(asked) == most)
    time.sleep(0.05)
    assert len(asked) == most
    passing.close()


PROGRAM = """
import sys, time
from tinyarr.data import DataLoader

class Slow:
    def __len__(self): return 100
    def __getitem__(self, i):
        time.sleep(0.01 if i < 4 else 1000)
        return i

if __name__ == "__main__":
    for batch in DataLoader(Slow(), 2, num_workers=2, processes=sys.argv[1] == "processes"):
        print(batch.tolist(), flush=True)
"""


def processes_of(session):
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            found += [path.parent.name] if int(its) == session and state != "Z" else []
    return found


@pytest.mark.parametrize(
    ("kind", "sent"), [("threads", signal.SIGINT), ("processes", signal.SIGINT), slow("processes", signal.SIGKILL)]
)
def test_ctrl_c_ends_a_program_whose_items_take_for_ever_and_no_worker_outlives_it(tmp_path, kind, sent):
    (tmp_path / "program.py").write_text(PROGRAM)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    try:
        assert [run.stdout.readline() for _ in range(2)] == ["[0, 1]\n", "[2, 3]\n"]
        if sent is signal.SIGINT:
            os.killpg(run.pid, sent)  # as a terminal does
        else:
            os.kill(run.pid, sent)
        error = run.communicate(timeout=60)[1]
        assert sent is signal.SIGKILL or error.rstrip().endswith("KeyboardInterrupt")
        assert wait_for(lambda: not processes_of(run.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_a_line_is_learned_from_shuffled_batches():
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    w, b = (tinyarr.zeros((), requires_grad=True) for _ in range(2))
    optimizer = optim.SGD([w, b], lr=0.2)
    loader = DataLoader(TensorDataset(x, 3 * x - 2), 8, True, num_workers=1)
    for _ in range(10):
        for inputs, targets in loader:
            ((w * inputs + b - targets) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (w.item(), b.item()) == pytest.approx((3, -2), abs=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DataLoader(range(3), 0), ArgumentError, "DataLoader: batch_size is 0: it must be at least 1"),
        (lambda: DataLoader(range(3), 1.5), TypeError, r"DataLoader: batch_size is 1\.5: it must be an int"),
        (lambda: DataLoader(range(3), num_workers=-1), ArgumentError, "num_workers is -1: it must be at least 0"),
        (lambda: DataLoader(range(3), seed=2**64), ArgumentError, r"seed is 18446744073709551616: it must lie in \["),
        (lambda: DataLoader(range(3), seed=-1), ArgumentError, r"seed is -1: it must lie in"),
        (lambda: DataLoader(iter([1])), TypeError, r"dataset is list_iterator: it must have len\(\) and items"),
    ],
)
def test_a_loader_of_what_is_no_data_set_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
