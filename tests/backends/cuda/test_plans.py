"""Every kernel is planned, and compiled for three generations of GPUs, on machines that have none."""

import contextlib
import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from tests.samples import SAMPLES
from tests.test_optim import UPDATES, leaves, set_gradients
from tests.test_primitives import FUSED, OWN, operands, recorded, values_of
from tests.tiers import at_most
from tinyarr import Device, Tensor, dtypes
from tinyarr.backends.cuda.kernels import elementwise
from tinyarr.backends.cuda.libraries import cublaslt
from tinyarr.backends.cuda.planning import compiler
from tinyarr.backends.cuda.planning import plans as planning
from tinyarr.backends.cuda.planning.registry import (
    KERNELS,
    Input,
    Launch,
    LibraryCall,
    Operand,
    Output,
    Scratch,
    Source,
)
from tinyarr.errors import TinyarrError
from tinyarr.ops.elementwise_primitive import Elementwise
from tinyarr.ops.index import index_add
from tinyarr.ops.primitive import Call

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
COMPOSED = {"scaled_dot_product_attention", "scaled_dot_product_attention_gradient"}  # where no kernel applies


@functools.cache
def plans(name):
    """The plans of what a sample runs, a case for each dtype, and its large case."""
    sample, found = SAMPLES[name], []

    def run(function, *inputs):
        with recorded() as ran, contextlib.suppress(TinyarrError):
            function(*inputs)
        for call, _ in ran:
            if call.primitive.view is None and (planner := planning.planner(call)):
                found.append((call, planner(*planning.dense_operands(call))))

    @at_most(
        3, first=1, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        for dtype in sample.takes or (None,):
            run(lambda *x: sample.function(*x, **case.params), *operands(data.draw, case, dtype))

    check()
    if name in FUSED and sample.large is not None:
        rng, case = np.random.default_rng(0), sample.large
        for dtype in {dtypes.float32, dtypes.bfloat16} & set(sample.takes):
            kinds = [o.dtype or dtype for o in case.operands]
            inputs = [Tensor(values_of(o, d)(rng, o.shape), dtype=d) for o, d in zip(case.operands, kinds)]
            run(lambda *x: sample.function(*x, **case.params), *inputs)
    return found


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.property
def test_a_plan_stays_within_what_a_launch_may_ask_for(name):
    for call, plan in plans(name):
        inputs, outputs = len(call.in_shapes), len(call.out_shapes)
        counts = {"Input": inputs, "Output": outputs, "Scratch": len(plan.scratch)}
        written = set()
        for step in plan.steps:
            for argument in step.arguments:
                kind = type(argument).__name__
                if kind in counts:
                    assert 0 <= argument.number < counts[kind] and argument.offset >= 0
                if kind == "Output":
                    written.add(argument.number)
            if isinstance(step, Launch):
                x, y, z = step.grid
                assert 1 <= x < 2**31 and 1 <= y < 2**16 and 1 <= z < 2**16, (call, step.grid)
                assert 1 <= step.block[0] * step.block[1] * step.block[2] <= 1024
                assert step.shared_bytes <= 160 * 1024, "an A100 has no more shared memory"
        assert written == {i for i, shape in enumerate(call.out_shapes) if 0 not in shape}, call


def test_every_primitive_has_a_kernel_or_a_composite_on_cuda():
    lacking = [
        name for name, p in OWN.items()
        if not (p.view or p.composite or p in KERNELS or isinstance(p, Elementwise))
    ]
    assert lacking == [] and {p.name for p in KERNELS} <= set(OWN) | {"conv2d", "wait"}


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAMPLES, "flash attention", "updates under a condition"])
def test_every_kernel_compiles_without_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    others = {"flash attention": flash_steps, "updates under a condition": conditional_steps}
    steps = others[name]() if name in others else [s for _, plan in plans(name) for s in plan.steps]
    sources = {step.source: step.function for step in steps if isinstance(step, Launch)}
    assert sources or name in COMPOSED or all(isinstance(s, LibraryCall) for s in steps) or OWN[name].view
    for source, function in sources.items():
        for architecture in ARCHITECTURES:
            assert function.encode() in compiler.compile_source(source, architecture)


def flash_steps():
    """Every kernel of flash_attention.cu, in every form."""
    from tinyarr.backends.cuda.kernels import flash_attention
    from tinyarr.views import contiguous_strides

    def operand(shape, dtype=dtypes.bfloat16):
        return Operand(shape, contiguous_strides(shape), dtype)

    steps = []
    for D in (64, 128):
        q, k, lse = operand((2, 4, 70, D)), operand((2, 2, 133, D)), operand((2, 4, 70), dtypes.float32)
        for causal in (False, True):
            steps += flash_attention.plan([q, k, k], [q, lse], causal=causal, scale=0.1).steps
            steps += flash_attention.plan([q, q, k, k, q, lse], [q, k, k], causal=causal, scale=0.1).steps
    return steps


def conditional_steps():
    """What steps of optimizers launch that depend on a condition: a kernel for each update, of joined gradients."""
    steps = []
    for make, dtype in UPDATES.values():
        parameters = leaves(dtype)
        optimizer = make(parameters)
        set_gradients(parameters, [np.ones(p.shape) for p in parameters])
        with recorded() as ran:
            optimizer.step(where=Tensor(True))
        for call, _ in ran:
            if call.primitive.view is None and not call.primitive.parts:
                plan = planning.planner(call)(*planning.dense_operands(call))
                assert len(plan.steps) == 1 and not plan.scratch
                steps += plan.steps
    return steps


def test_an_update_under_a_condition_is_one_kernel():
    launched = [step.function for step in conditional_steps()]
    for update in ("adamw", "adamw_master", "adamw_stochastic", "sgd", "sgd_master"):
        assert f"tinyarr_{update}_update_where" in launched and f"tinyarr_{update}_update" not in launched


@pytest.mark.parity
@pytest.mark.slow
def test_a_rejected_source_is_shown_with_the_compilers_message():
    with pytest.raises(compiler.NvrtcError, match=r"(?s)sm_90 rejected the source.*nonsense.*nonsense"):
        compiler.compile_source(Source(text="nonsense"), "sm_90")


@pytest.mark.parity
@pytest.mark.slow
def test_a_damaged_cache_entry_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    source = Source(text='extern "C" __global__ void nothing() {}')
    code = compiler.compile_source(source, "sm_90")
    (file,) = tmp_path.iterdir()
    for damaged in (b"", file.read_bytes()[:-1], file.read_bytes()[:40] + b"x" + file.read_bytes()[41:]):
        file.write_bytes(damaged)
        assert compiler.compile_source(source, "sm_90") == code
    monkeypatch.setenv("TINYARR_CACHE", str(file / "no" / "folder"))
    assert compiler.compile_source(source, "sm_90") == code


def test_strided_and_broadcast_operands_share_one_kernel_for_all_sizes():
    def source(shape, strides):
        (step,) = elementwise.copy(
            (Operand(shape, strides, dtypes.float32), Output(0)),
            (Operand(shape, (shape[1], 1), dtypes.float32), Output(1)),
        )
        return step.source

    assert source((4, 8), (0, 1)) == source((6, 40), (0, 1)) == source((6, 40), (80, 1))
    assert source((4, 8), (1, 4)) == source((5, 7), (1, 5)) != source((4, 8), (0, 1))


@pytest.mark.parametrize(("dtype", "pack"), [(dtypes.float32, 4), (dtypes.bfloat16, 8), (dtypes.float64, 2)])
def test_a_load_takes_128_bits_where_strides_and_alignment_allow(dtype, pack):
    def packs(shape, strides, aligned=True):
        operand = Operand(shape, strides, dtype, aligned)
        (step,) = elementwise.copy((operand, Output(0)), (Operand(shape, (shape[1], 1), dtype), Output(1)))
        return dict(step.source.macros)["PACK"]

    assert packs((3, 64), (64, 1)) == packs((3, 64), (128, 1)) == packs((3, 64), (0, 1)) == str(pack)
    assert packs((1, 67), (67, 1)) == str(pack)  # the last pack is taken one by one
    assert packs((3, 64), (64, 1), aligned=False) == packs((3, 64), (1, 3)) == "1"


def test_a_transposed_tensor_is_copied_in_tiles():
    for dtype in (dtypes.bfloat16, dtypes.float32):
        x, y = Operand((64, 96), (1, 64), dtype), Operand((64, 96), (96, 1), dtype)
        assert [step.function for step in elementwise.copy((x, Output(0)), (y, Output(1)))] == ["transpose"]


@pytest.mark.parametrize("library", [False, True])
def test_a_product_is_added_to_what_the_result_holds(library, monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: library)
    c, out = (Operand((64, 96), (96, 1), dtypes.float32) for _ in range(2))
    x, y = Operand((64, 32), (1, 64), dtypes.bfloat16), Operand((32, 96), (96, 1), dtypes.bfloat16)
    (added,) = KERNELS[OWN["matmul_add"]].plan([c, x, y], [out]).steps
    if library:
        assert added.spec[:10] == (64, 96, 32, dtypes.bfloat16, dtypes.float32, True, False, 64, 96, 96)
        assert (added.spec.batch, added.spec.accumulate) == (1, True)
        assert added.arguments == (Input(1), Input(2), Output(0), Scratch(0))
    else:
        assert ("ACCUMULATE", "1") in added.source.macros and added.arguments[:3] == (Output(0), Input(1), Input(2))
    (alone,) = KERNELS[OWN["matmul_wide"]].plan([x, y], [out]).steps
    assert not alone.spec.accumulate if library else ("ACCUMULATE", "0") in alone.source.macros


@pytest.mark.parametrize("library", [False, True])
def test_a_product_made_in_another_order_is_that_of_the_transposed_factors(library, monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: library)
    x, y = Operand((64, 32), (32, 1), dtypes.bfloat16), Operand((32, 96), (96, 1), dtypes.bfloat16)
    (step,) = KERNELS[OWN["matmul"]].plan([x, y], [Operand((64, 96), (1, 64), dtypes.bfloat16)]).steps
    if library:
        assert step.spec[:10] == (96, 64, 32, dtypes.bfloat16, dtypes.bfloat16, True, True, 96, 32, 64)
        assert step.arguments[:3] == (Input(1), Input(0), Output(0))
    else:
        assert step.arguments[:3] == (Output(0), Input(1), Input(0))


def test_what_is_updated_is_copied_first_unless_it_is_the_result():
    x, g = (Operand((n, 4), (4, 1), dtypes.float32) for n in (8, 3))
    rows = Operand((3,), (1,), dtypes.int64)
    shapes, kinds = zip(*((o.shape, o.dtype) for o in (x, g, rows)))
    call = Call(index_add, Device("cpu"), shapes, kinds, {"start": 2, "size": 5})
    apart, in_place = (planning.planner(call, there)([x, g, rows], [x]).steps for there in (False, True))
    assert apart[0].function == "tinyarr_copy" and apart[1:] == in_place


def test_positions_beyond_2_31_are_counted_in_64_bits():
    def index(n):
        operand = Operand((n,), (1,), dtypes.int8)
        (step,) = elementwise.copy((operand, Output(0)), (operand, Output(1)))
        return dict(step.source.macros)["Index"]

    assert index(2**31 - 1) == "uint32_t" and index(2**31) == "uint64_t"
