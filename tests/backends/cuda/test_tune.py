"""How cuBLASLt's algorithms are chosen, on machines without a GPU: a library and a clock stand in for the real ones."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tinyarr import cache, dtypes, tuning
from tinyarr.backends.cuda.libraries import cublaslt
from tinyarr.backends.cuda.libraries.cublaslt import LEAST_OPERATIONS, RESULT, WORKSPACE, Product
from tinyarr.errors import DeviceError, FileError

half = dtypes.bfloat16
SMALL = Product(6, 8, 5, half, half, False, False, 5, 8, 8)
LARGE = SMALL._replace(batch=-(-LEAST_OPERATIONS // (2 * 6 * 8 * 5)), x_stride=0, y_stride=0, out_stride=0)


class Names:
    """Numbers of the library, here their names."""

    def __getattr__(self, name):
        return name


class Library:
    """cuBLASLt: the heuristic's results, which have (workspace, state, milliseconds), and what it was asked for."""

    cuBLASLtError = type("cuBLASLtError", (Exception,), {})
    MatmulDescAttribute = MatmulPreferenceAttribute = MatrixLayoutAttribute = Names()
    ReductionScheme = SimpleNamespace(COMPUTE_TYPE=2)

    def __init__(self, results):
        self.results, self.wishes = results, {}
        self.now, self.ran, self.operands, self.strides = 0.0, [], set(), []
        self.noise = [0.0]

    def __getattr__(self, name):
        return lambda *args: 0

    def get_version(self):
        return 130102

    def matmul_preference_set_attribute(self, preference, name, address, nbytes):
        self.wishes[name] = int.from_bytes(ctypes.string_at(address, nbytes), "little")

    def matrix_layout_set_attribute(self, layout, name, address, nbytes):
        if name == "STRIDED_BATCH_OFFSET":
            self.strides.append(int.from_bytes(ctypes.string_at(address, nbytes), "little", signed=True))

    def matmul_algo_get_heuristic(self, handle, desc, a, b, c, d, preference, most, results, count):
        kept = self.results[:most]
        table = np.zeros(len(kept), RESULT)
        for i, (workspace, state, _) in enumerate(kept):
            table[i] = algorithm(i), workspace, state, 1.0, (0,) * 4
        ctypes.memmove(results, table.ctypes.data, table.nbytes)
        ctypes.memmove(count, np.array([len(kept)], np.int32).ctypes.data, 4)

    def matmul_algo_check(self, handle, desc, a, b, c, d, address, result):
        number = ctypes.string_at(address, 64)[0]
        if number >= len(self.results):
            raise self.cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        table = np.zeros(1, RESULT)
        table["workspace"] = self.results[number][0]
        ctypes.memmove(result, table.ctypes.data, table.nbytes)

    def matmul(self, handle, desc, alpha, a, la, b, lb, beta, c, lc, d, ld, address, workspace, nbytes, stream):
        number = ctypes.string_at(address, 64)[0]
        self.ran.append(number)
        self.operands.add((b, a, d, workspace, nbytes))
        self.now += self.results[number][2] + self.noise[len(self.ran) % len(self.noise)]


def algorithm(number):
    return bytes([number]) * 64


class Memory:
    """Host memory that stands in for the GPU's, full of NaNs."""

    def __init__(self):
        self.blocks = []

    def __call__(self, nbytes):
        room = np.full(nbytes + 2 * 512, 0xFF, np.uint8)
        start = -room.ctypes.data % 512
        self.blocks.append(room[start : start + nbytes])
        self.after = room[start + nbytes :]
        return SimpleNamespace(memory=SimpleNamespace(ptr=self.blocks[-1].ctypes.data), room=room)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """Makes a GPU whose library has these results."""
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "cache"))
    cached = cublaslt._library_and_card, cublaslt._handle
    for function in cached:
        function.cache_clear()

    def make(*results):
        library = Library([(0, 0, x) if isinstance(x, float) else x for x in results])
        stream = SimpleNamespace(ptr=7, synchronize=lambda: None)

        class Event:
            def record(self, on):
                assert on is stream
                self.at = library.now

        def copy(target, source, nbytes, kind, on):
            assert on == 7
            ctypes.memmove(target, source, nbytes)

        runtime = SimpleNamespace(
            getDevice=lambda: 0, getDeviceProperties=lambda device: {"name": b"a card"}, memcpyAsync=copy,
            memcpyHostToDevice=1, memcpyDeviceToDevice=3,
        )  # fmt: skip
        cuda = SimpleNamespace(runtime=runtime, Event=Event, get_elapsed_time=lambda a, b: b.at - a.at)
        bindings = SimpleNamespace(cublasLt=library)
        for name, module in {"cupy": SimpleNamespace(cuda=cuda), "cupy.cuda": cuda, "nvmath": None,
                             "nvmath.bindings": bindings}.items():  # fmt: skip
            monkeypatch.setitem(sys.modules, name, module)
        new_process(monkeypatch)
        return library, stream, Memory()

    yield make
    for function in cached:
        function.cache_clear()


def new_process(monkeypatch):
    monkeypatch.setattr(tuning, "_choices", {})
    monkeypatch.setattr(tuning, "_eager", {})


def test_the_fastest_candidate_is_taken_and_the_first_where_it_is_hardly_slower(gpu):
    library, stream, memory = gpu(1.0, 0.9, 0.8, 0.85)
    assert cublaslt.tune(LARGE, stream, memory) == LARGE._replace(algorithm=algorithm(2))
    assert sorted(set(library.ran)) == [0, 1, 2, 3]
    assert cublaslt._choice([1.0, 0.995, 1.2]) == 0
    assert cublaslt._choice([1.0, 0.985, 0.98]) == 2


def test_a_few_slow_rounds_do_not_decide(gpu):
    library, stream, memory = gpu(1.0, 0.9)
    library.noise = [3.0] + [0.0] * 5  # every third time of the second
    assert cublaslt.tune(LARGE, stream, memory).algorithm == algorithm(1)


def test_every_round_times_every_candidate_in_turn_after_one_that_warms_up(gpu):
    library, stream, memory = gpu(1.0, 0.9, 0.8)
    cublaslt.tune(LARGE, stream, memory)
    assert library.ran == [0, 1, 2] * (1 + cublaslt.ROUNDS)
    assert cublaslt.ROUNDS % 2, "the median is one of the times"


def test_a_small_product_keeps_the_librarys_first_choice(gpu):
    library, stream, memory = gpu(1.0, 0.5)
    assert cublaslt.tune(SMALL, stream, memory) == SMALL
    assert cublaslt.tune(LARGE._replace(batch=LARGE.batch - 1), stream, memory).algorithm is None
    assert library.ran == [] and memory.blocks == [] and tuning.choices() == {}


def test_a_product_is_timed_once_and_never_again(gpu, tmp_path, monkeypatch):
    library, stream, memory = gpu(1.0, 0.5)
    tuned = cublaslt.tune(LARGE, stream, memory)
    tuning.save(tmp_path / "tuning.json")
    timed = len(library.ran)

    def again():
        library.results.reverse()  # timing would choose the other one
        assert cublaslt.tune(LARGE, stream, memory) == tuned == cublaslt.tune(tuned, stream, memory)
        assert len(library.ran) == timed and len(memory.blocks) == 1

    again()
    new_process(monkeypatch)
    again()
    new_process(monkeypatch)
    for file in cache.files():
        file.unlink()
    tuning.load(tmp_path / "tuning.json")
    again()


def test_candidates_that_need_more_memory_or_do_not_run_are_left_out(gpu):
    library, stream, memory = gpu((WORKSPACE, 0, 1.0), (WORKSPACE + 1, 0, 0.1), (0, 15, 0.1), (0, 0, 0.5))
    assert cublaslt.candidates(LARGE) == [algorithm(0), algorithm(3)]
    assert cublaslt.tune(LARGE, stream, memory).algorithm == algorithm(3)
    assert {nbytes for *_, nbytes in library.operands} == {WORKSPACE}
    library, stream, memory = gpu((0, 15, 0.1))
    with pytest.raises(DeviceError, match="cuBLASLt has no algorithm for Product"):
        cublaslt.candidates(LARGE)


def test_a_single_candidate_needs_no_timing(gpu):
    library, stream, memory = gpu(1.0)
    assert cublaslt.tune(LARGE, stream, memory).algorithm == algorithm(0)
    assert library.ran == [] and memory.blocks == []


@pytest.mark.parametrize(("aligned", "alignment"), [(True, 16), (False, 2)])
def test_the_heuristic_is_told_what_memory_there_is_and_how_to_add_up(gpu, aligned, alignment):
    library, *_ = gpu(1.0)
    assert cublaslt.candidates(SMALL._replace(aligned=aligned)) == [algorithm(0)]
    assert library.wishes["MAX_WORKSPACE_BYTES"] == WORKSPACE and library.wishes["REDUCTION_SCHEME_MASK"] == 2
    assert {library.wishes[f"MIN_ALIGNMENT_{x}_BYTES"] for x in "ABCD"} == {alignment}


def test_a_recorded_algorithm_is_checked_before_it_runs(gpu):
    gpu(1.0, (WORKSPACE + 1, 0, 1.0))
    cublaslt.prepare(SMALL._replace(algorithm=algorithm(0)))
    with pytest.raises(DeviceError, match=r"algorithm recorded for Product.*needs 33,554,433 bytes.*remove the file"):
        cublaslt.prepare(SMALL._replace(algorithm=algorithm(1)))
    with pytest.raises(DeviceError, match=r"algorithm recorded for Product.*NOT_SUPPORTED.*remove the file"):
        cublaslt.prepare(SMALL._replace(algorithm=algorithm(2)))


@pytest.mark.parametrize("text", ["", "no hex", "00" * 63])
def test_a_record_that_is_no_algorithm_is_told(gpu, text):
    _, stream, memory = gpu(1.0)
    tuning.record(cublaslt.key(LARGE, 130102, "a card"), text)
    with pytest.raises(FileError, match=r"recorded for cuBLASLt 130102, a card, .* is .*, not the 64 bytes"):
        cublaslt.tune(LARGE, stream, memory)


def test_eager_mode_takes_the_first_choice_or_what_was_loaded_for_it(gpu, tmp_path):
    library, stream, memory = gpu(1.0, 0.5)

    def ran():
        cublaslt.prepare(LARGE)(7, 1, 2, 3, 4)
        return library.ran.pop()

    cublaslt.tune(LARGE, stream, memory)
    tuning.save(tmp_path / "tuning.json")
    tuning.load(tmp_path / "tuning.json")
    assert ran() == 0
    tuning.load(tmp_path / "tuning.json", eager=True)
    assert ran() == 1


def test_the_key_says_all_that_a_choice_depends_on(monkeypatch):
    others = {"dtype": dtypes.float16, "out_dtype": dtypes.float32, "epilogue": "bias"}
    keys = {cublaslt.key(SMALL, 130102, "NVIDIA H100 80GB HBM3")}
    assert keys == {
        "cuBLASLt 130102, NVIDIA H100 80GB HBM3, computes in float32, workspace 33554432: m=6 n=8 k=5 dtype=bfloat16 "
        "out_dtype=bfloat16 x_transposed=False y_transposed=False x_ld=5 y_ld=8 out_ld=8 batch=1 x_stride=0 y_stride=0 "
        "out_stride=0 accumulate=False epilogue=None scaled=False aligned=True"
    }
    for name, value in SMALL._asdict().items():
        if name != "algorithm":
            other = others.get(name, not value if type(value) is bool else 77)
            keys.add(cublaslt.key(SMALL._replace(**{name: other}), 130102, "NVIDIA H100 80GB HBM3"))
    assert len(keys) == len(Product._fields), "each field but the algorithm, and none changed"
    single = SMALL._replace(dtype=dtypes.float32)
    found = {cublaslt.key(single, *of) for of in ((1, "a card"), (2, "a card"), (1, "another"))}
    monkeypatch.setenv("TINYARR_TF32", "1")
    found.add(cublaslt.key(single, 1, "a card"))
    assert len(found) == 4
    assert cublaslt.key(SMALL._replace(algorithm=algorithm(1)), 1, "") == cublaslt.key(SMALL, 1, "")


def reached(rows, columns, ld, batch, stride):
    """How many elements lie between the first and the last of a batch of matrices."""
    at = [b * stride + r * ld + c for b in range(batch) for r in range(rows) for c in range(columns)]
    return max(at) - min(at) + 1


@pytest.mark.parametrize("x_transposed", [False, True])
@pytest.mark.parametrize("y_transposed", [False, True])
@pytest.mark.parametrize(("x_stride", "y_stride"), [(100, 0), (3, 120), (-100, -120)])
def test_operands_reach_as_far_as_their_matrices(x_transposed, y_transposed, x_stride, y_stride):
    spec = Product(6, 8, 5, half, dtypes.float32, x_transposed, y_transposed, 11, 9, 13, 3, x_stride, y_stride, 90)
    x, y, out, workspace = cublaslt._operands(spec)
    assert x == (half, reached(*((5, 6) if x_transposed else (6, 5)), 11, 3, x_stride))
    assert y == (half, reached(*((8, 5) if y_transposed else (5, 8)), 9, 3, y_stride))
    assert out == (dtypes.float32, reached(6, 8, 13, 3, 90)) and workspace == (dtypes.uint8, WORKSPACE)
    used = 2 * (x[1] + y[1]) + 4 * out[1] + WORKSPACE
    assert used <= cublaslt.operand_bytes(spec) < used + 3 * 512


def test_what_a_product_gets_is_in_the_order_of_its_arguments():
    out, single = (half, 6 * 8), dtypes.float32
    assert cublaslt._operands(SMALL._replace(epilogue="bias"))[4:] == [(half, 8)]
    assert cublaslt._operands(SMALL._replace(epilogue="gelu_aux_bias"))[4:] == [(half, 8), out]
    assert cublaslt._operands(SMALL._replace(epilogue="gelu_gradient"))[4:] == [out]
    assert cublaslt._operands(SMALL._replace(scaled=True))[4:] == [(single, 1), (single, 1)]


def test_operands_are_random_lie_apart_and_fit(gpu):
    library, stream, memory = gpu(1.0, 0.5)
    spec = Product(3000, 500, 4000, half, dtypes.float32, False, True, 4008, 4000, 500, 2, -4008 * 3000, 0, 1_500_000)
    cublaslt.tune(spec, stream, memory)
    (block,) = memory.blocks
    assert block.nbytes == cublaslt.operand_bytes(spec) and (memory.after == 0xFF).all()
    ((x, y, out, workspace, _),) = library.operands
    start = block.ctypes.data
    assert library.strides[:3] == [0, -4008 * 3000, 1_500_000], "asked for as it is"
    assert set(library.strides[3:]) == {0, 4008 * 3000, 1_500_000}, "timed from where the memory begins"
    assert start == x < y < out < workspace <= start + block.nbytes - WORKSPACE
    assert all(address % 512 == 0 for address in (x, y, out, workspace))
    for address, (dtype, count) in zip((x, y, out), cublaslt._operands(spec)):
        found = block[address - start :][: count * dtype.itemsize].view(dtype.numpy).astype(np.float32)
        assert abs(found.mean()) < 0.05 and abs(found.std() - 1) < 0.05
        assert not np.array_equal(found[:4008], found[4008:8016])


@pytest.mark.parametrize("dtype", list(cublaslt.TYPES))
@pytest.mark.parametrize("count", [1, cublaslt.DRAWN, 3 * cublaslt.DRAWN + 17])
def test_an_operand_is_filled_whole_with_finite_numbers_and_nothing_behind(gpu, dtype, count):
    _, stream, memory = gpu()
    room = count * dtype.itemsize
    memory(room)
    cublaslt._fill(memory.blocks[0].ctypes.data, dtype, count, stream)
    found = memory.blocks[0].view(dtype.numpy).astype(np.float64)
    assert np.isfinite(found).all() and found.any() and (memory.after == 0xFF).all()


def test_a_result_has_the_layout_of_the_librarys_struct():
    offsets = {name: RESULT.fields[name][1] for name in RESULT.names}
    assert RESULT.itemsize == 96
    assert offsets == {"algorithm": 0, "workspace": 64, "state": 72, "waves": 76, "reserved": 80}
