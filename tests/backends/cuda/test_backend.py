"""Memory, copies, streams and errors of the CUDA backend."""

import gc

import numpy as np
import pytest

import tinyarr
from tinyarr import Tensor, cuda, dtypes
from tinyarr.errors import OutOfBounds, OutOfMemory

pytestmark = pytest.mark.cuda
GPU = tinyarr.Device("cuda:0")


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda d: d.name)
def test_a_tensor_goes_to_the_gpu_and_back_unchanged(dtype):
    x = Tensor(np.arange(-300, 300).reshape(20, 30), dtype=dtypes.float32).astype(dtype)
    for view in (x, x.mT, x[::-2, 3:], x[:0], x[3, 4]):
        there = view.to("cuda")
        assert there.device is GPU and (there.to("cpu").numpy() == view.numpy()).all()
        assert there.to("cpu").numpy().tobytes() == view.numpy().tobytes()


@pytest.mark.parametrize("dtype", [dtypes.int8, dtypes.bfloat16, dtypes.float32, dtypes.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(32, 32), (65, 127), (3, 64, 200), (2, 5, 33, 70)])
def test_transposed_tensors_are_copied(shape, dtype):
    x = Tensor(np.random.default_rng(0).integers(-99, 99, shape), dtype=dtypes.float32).astype(dtype)
    assert (tinyarr.copy(x.to("cuda").mT).numpy() == x.mT.numpy()).all()


def test_a_large_tensor_goes_to_the_gpu_and_back_unchanged():
    x = np.random.default_rng(0).normal(size=(20_000_000,)).astype(np.float32)
    assert (Tensor(x, device="cuda").numpy() == x).all()


def test_the_source_may_change_as_soon_as_the_copy_returns():
    x = np.zeros(1_000_000, np.float32)
    copies = []
    for i in range(20):
        x.fill(i)
        copies.append(Tensor(x, device="cuda"))
    assert [float(c.max().item()) for c in copies] == list(range(20))


@pytest.mark.parametrize("at", [(), 1, (slice(None), 2), (slice(None, None, -2), slice(1, 4)), slice(0, 0)], ids=repr)
@pytest.mark.parametrize("dtype", [dtypes.bool, dtypes.bfloat16, dtypes.float32], ids=lambda d: d.name)
def test_a_copy_to_the_host_holds_what_was_there_when_it_was_begun(at, dtype):
    x = (tinyarr.arange(30, device="cuda").reshape((5, 6)) % 7).astype(dtype)
    scalar, view = x.astype("float32").sum(), x[at]
    expected = view.to("cpu").numpy()
    for y in (view, scalar):
        y.copy_to_host_async()
        y.copy_to_host_async()
    assert view.numpy().tobytes() == view.numpy().tobytes() == expected.tobytes()
    assert scalar.item() == scalar.item() == x.astype("float32").numpy().sum()
    assert x.T.numpy().tobytes() == x.numpy().T.tobytes()


def test_a_tensor_that_was_written_is_copied_to_the_host_anew():
    x = tinyarr.zeros((3, 4), device="cuda")
    row = x[1]
    row.copy_to_host_async()
    x[1, 2] = 5.0  # through another view
    assert row.tolist() == [0, 0, 5, 0]
    row.copy_to_host_async()
    x.assign(1.0)
    row.copy_to_host_async()
    assert row.tolist() == [1, 1, 1, 1]
    step = tinyarr.compile(lambda: x.assign(x + 1))
    for i in range(3):
        row.copy_to_host_async()
        step()
        assert row.tolist() == [i + 2.0] * 4


def test_reading_a_copy_that_was_begun_does_not_wait_for_later_work():
    import cupy

    x = tinyarr.rand(4096, 4096, device="cuda")
    total = (x @ x).sum()
    total.copy_to_host_async()
    end = cupy.cuda.Event(disable_timing=True)
    for _ in range(300):  # which the GPU takes far longer to compute than the host to launch
        x = x @ x
        x = x / x.max()
    end.record(GPU.backend.stream)
    value = total.item()
    assert not end.done
    assert value == total.item() == total.to("cpu").item()
    cuda.synchronize()


def test_copies_to_the_host_are_forgotten_with_the_memory():
    gc.collect()
    copies = GPU.backend._on_host._copies
    before = len(copies)
    for i in range(20):
        x = tinyarr.full((100,), i, device="cuda")
        x.copy_to_host_async()
    assert len(copies) == before + 1 and x.tolist() == [19] * 100
    del x
    assert len(copies) == before


def test_a_bad_index_is_told_where_a_copy_that_was_begun_is_read():
    bad = tinyarr.arange(5, device="cuda").take(Tensor([7], device="cuda"))
    bad.copy_to_host_async()
    with pytest.raises(OutOfBounds, match="take: indices"):
        bad.numpy()


def test_memory_is_counted_and_comes_back():
    before = tinyarr.memory_stats("cuda").in_use
    x = tinyarr.zeros((1024, 1024), device="cuda")
    stats = tinyarr.memory_stats("cuda")
    assert stats.in_use - before == 4 * 2**20 and stats.peak >= stats.in_use
    del x
    assert tinyarr.memory_stats("cuda").in_use == before


def test_out_of_memory_names_the_biggest_tensors():
    kept = tinyarr.zeros((1111, 2222, 33), device="cuda")
    with pytest.raises(OutOfMemory, match=r"(?s)MiB wanted.*are free.*\(1111, 2222, 33\)"):
        tinyarr.empty((1 << 40,), device="cuda")
    assert float(kept.sum().item()) == 0


def test_a_bad_index_raises_at_the_next_synchronization_and_once():
    x = tinyarr.arange(5, device="cuda")
    bad = x.take(Tensor([[0, 1], [2, 7]], device="cuda"))
    with pytest.raises(OutOfBounds, match=r"take: indices\[1, 1\] is 7, the axis has size 5: use -5 to 4"):
        bad.numpy()
    assert x.take(Tensor([4, -1], device="cuda")).tolist() == [4, 4]
    with pytest.raises(OutOfBounds, match="target 1 is 9, there are 4 classes"):
        tinyarr.cross_entropy(tinyarr.zeros((2, 4), device="cuda"), Tensor([0, 9], device="cuda")).item()


def test_events_measure_time():
    x = tinyarr.rand(1000, 1000, device="cuda")
    start, end = cuda.Event(), cuda.Event()
    start.record()
    for _ in range(10):
        x = x + 1
    end.record()
    assert 0 < start.elapsed_time(end) < 1000


def test_dlpack_shares_memory_with_cupy_and_pytorch_both_ways():
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    for dtype in (dtypes.float32, dtypes.int64, dtypes.float16, dtypes.bool, dtypes.bfloat16):
        x = Tensor(np.arange(12).reshape(3, 4), dtype=dtypes.float32).astype(dtype).to("cuda")[::2, 1:]
        x.copy_to_host_async()
        seen = torch.from_dlpack(x)
        assert seen.shape == (2, 3) and seen.float().cpu().tolist() == x.astype("float32").tolist()
        seen.fill_(1)
        torch.cuda.synchronize()
        assert (x.astype("float32") == 1).all().item() and (x.numpy() == 1).all()
        back = tinyarr.from_dlpack(seen)
        assert back.dtype is dtype and back.astype("float32").tolist() == x.astype("float32").tolist()
    y = cupy.arange(6, dtype=cupy.float32).reshape(2, 3)
    shared = tinyarr.from_dlpack(y)
    assert shared.device is GPU
    y += 1
    cupy.cuda.Stream.null.synchronize()
    assert shared.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert cupy.from_dlpack(shared + 1).tolist() == [[2, 3, 4], [5, 6, 7]]


def test_random_draws_are_those_of_the_cpu():
    def draws(device):
        tinyarr.manual_seed(7)
        with tinyarr.use_device(device):
            x = tinyarr.ones((1001,))
            drawn = [
                tinyarr.rand(3, 333), tinyarr.randn(10, 101), tinyarr.randint(0, 10**9, (77,)),
                tinyarr.dropout(x, 0.3), tinyarr.randn(1000, dtype=dtypes.bfloat16),
            ]  # fmt: skip
        return [x.numpy().tobytes() for x in drawn]

    assert draws("cpu") == draws("cuda")


def test_more_than_2_31_elements_are_mapped_and_summed():
    n = 2**31 + 4099
    x = tinyarr.full((n,), 1, dtype=dtypes.int8, device="cuda")
    y = (x + x)[-5000:]
    assert y.shape == (5000,) and (y == 2).all().item()
    del y
    z = tinyarr.full((n,), 1, dtype=dtypes.bfloat16, device="cuda")
    total = z.sum()  # every partial sum of ones below 2**24 is exact in float32, and so is every sum of them here
    assert total.astype("float32").item() == 2.0**31
    strided = z[::-1][: n - 1]
    assert (-strided)[-3:].astype("float32").tolist() == [-1, -1, -1]


def test_the_rows_of_very_many_indices_are_added_up():
    rng = np.random.default_rng(0)
    indices, g = rng.integers(0, 70_000, 300_000), rng.integers(-9, 10, (300_000, 3)).astype("float32")
    indices[rng.random(300_000) < 0.1] = 69_999  # a run through many blocks
    expected = np.zeros((70_000, 3), "float32")
    np.add.at(expected, indices, g)
    table = tinyarr.zeros((70_000, 3), device="cuda", requires_grad=True)
    tinyarr.embedding(table, Tensor(indices, device="cuda")).backward(Tensor(g, device="cuda"))
    np.testing.assert_array_equal(table.grad.numpy(), expected)


def test_a_batch_on_its_way_is_there_for_whoever_reads_it():
    """Batches are made before earlier work has run, in memory that such work used, and read by kernels and programs."""

    @tinyarr.compile
    def total(x, weight):
        return (x * weight).sum()

    weight, busy = tinyarr.ones(1 << 20, device="cuda"), tinyarr.randn(4096, 4096, device="cuda")
    found = []
    for i in range(12):
        for _ in range(3):
            busy = busy @ busy * 1e-3  # its memory goes back to the pool while it runs
        batch = Tensor(np.full(1 << 20, i, np.float32), device="cuda")
        other = Tensor(np.full(1 << 20, -1, np.float32), device="cuda")
        found += [total(batch, weight), total(other, weight), batch.max()]
        del other
    values = [x.item() for x in found]
    assert values == [v for i in range(12) for v in (i * 2.0**20, -(2.0**20), float(i))]
