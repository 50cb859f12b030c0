"""Data in and out: Python's, NumPy's, and what is printed."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tinyarr as ta
from tinyarr.dtypes import ALL
from tinyarr.errors import DeviceError, DtypeError, GradientError, ShapeError, TraceError
from tinyarr.testing import dtypes, shapes, tensors

NATIVE = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (True, ta.bool, ()),
        (3, ta.int64, ()),
        (2.5, ta.float32, ()),
        ([1, 2], ta.int64, (2,)),
        ([1, 2.5], ta.float32, (2,)),
        ([True, False], ta.bool, (2,)),
        ([[1], [2]], ta.int64, (2, 1)),
        ([], ta.float32, (0,)),
        ([[], []], ta.float32, (2, 0)),
        ((1.0, (2.0)), ta.float32, (2,)),
        (range(3), ta.int64, (3,)),
        (np.float64(1.5), ta.float64, ()),
        (np.arange(3, dtype=np.uint16), ta.uint16, (3,)),
        (np.ones((2, 2), np.float16), ta.float16, (2, 2)),
        (np.ones(2, ml_dtypes.bfloat16), ta.bfloat16, (2,)),
        (np.arange(3, dtype=">f8"), ta.float64, (3,)),
        (ta.ones((2,), dtype=ta.float8_e5m2), ta.float8_e5m2, (2,)),
        ([ta.Tensor(1.5), ta.Tensor(2.5)], ta.float32, (2,)),
    ],
    ids=repr,
)
def test_tensor_takes_the_dtype_of_arrays_and_the_defaults_for_python_numbers(data, dtype, shape):
    x = ta.Tensor(data)
    assert (x.dtype, x.shape) == (dtype, shape)
    assert ta.Tensor(data, dtype=ta.float64).dtype is ta.float64
    assert ta.Tensor(data).tolist() == ta.asarray(data).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([[1, 2], [3]], ShapeError, "unequal lengths"),
        ([1j], DtypeError, "holds complex128: use bool, integers or real"),
        (["a"], DtypeError, "use bool, integers or real"),
        ([None], DtypeError, "use bool, integers or real"),
        ([2**70], DtypeError, "use bool, integers or real"),
        (np.zeros(2, [("a", int)]), DtypeError, "use bool, integers or real"),
        (np.zeros(2, "M8[s]"), DtypeError, "use bool, integers or real"),
        (np.zeros(2, np.longdouble), DtypeError, "is not a dtype of tinyarr"),
    ],
    ids=repr,
)
def test_what_is_no_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        ta.Tensor(data)


@pytest.mark.filterwarnings("error")
def test_data_that_do_not_fit_are_cast_without_numpys_warnings():
    assert ta.Tensor([1e300]).tolist() == [np.inf]
    assert ta.Tensor(np.array([np.nan]), dtype=ta.uint8).shape == (1,)


@given(arrays(st.sampled_from([d.numpy for d in ALL if d.numpy.char in NATIVE]), shapes()))
def test_an_array_comes_back_as_it_went_in(a):
    back = ta.Tensor(a).numpy()
    assert back.dtype == a.dtype and back.shape == a.shape and back.tobytes() == a.tobytes()


@given(tensors(shapes(), dtypes()))
def test_numpy_and_tolist_read_any_layout_in_row_major_order(x):
    values = x.numpy()
    assert values.flags.c_contiguous and values.shape == x.shape and values.dtype == x.dtype.numpy
    assert x.tolist() == values.tolist() and values.tobytes() == np.array(x.array.data, order="C").tobytes()


def test_nothing_shares_memory_across_the_border():
    a = np.zeros(3)
    x = ta.Tensor(a)
    y = ta.Tensor(x)
    a[0] = 1
    x.numpy()[1] = 1
    np.asarray(x)[1] = 1
    x[2] = 1.0
    assert (x.tolist(), y.tolist()) == ([0.0, 0.0, 1.0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_item_and_tolist_give_python_numbers(d):
    kind = {"bool": bool, "float": float}.get(d.kind, int)
    x = ta.Tensor([[1]], dtype=d)
    assert type(x.item()) is type(x.tolist()[0][0]) is kind and x.item() == 1
    assert ta.Tensor(1, dtype=d).tolist() == 1


def test_item_of_anything_but_one_element_is_refused():
    for shape in ((2,), (0,)):
        with pytest.raises(ShapeError, match=r"item: the tensor has shape \(.,\): only a single element"):
            ta.zeros(shape).item()


@given(tensors(shapes(), dtypes()))
def test_a_copy_to_the_host_that_was_begun_changes_no_element_that_is_read(x):
    before = x.numpy().tobytes()
    assert x.copy_to_host_async() is None and x.numpy().tobytes() == before
    y = ta.copy(x)
    y.copy_to_host_async()
    y.assign(ta.zeros_like(y))
    assert not y.numpy().astype(bool).any()


def test_a_copy_to_the_host_needs_values():
    with pytest.raises(DeviceError, match=r"copy_to_host_async: the tensor \(2,\) is on meta"):
        ta.ones(2, device="meta").copy_to_host_async()
    with pytest.raises(TraceError, match=r"shape \(2,\) was asked for its elements in a function"):
        ta.compile(lambda x: x.copy_to_host_async())(ta.ones(2))


def test_a_tensor_made_of_a_tensor_is_a_leaf_with_its_own_memory():
    x = ta.Tensor([1.0], requires_grad=True)
    y = ta.Tensor(x * 2)
    z = ta.Tensor(x, dtype=ta.float64, requires_grad=True)
    assert y.is_leaf and not y.requires_grad and z.is_leaf and z.requires_grad and z.dtype is ta.float64
    assert y.array.storage is not x.array.storage


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", [ta.Tensor, ta.nn.Parameter])
def test_a_leaf_is_copied_and_pickled_by_value(copied, kind):
    x = kind(ta.randn(200, 300, dtype=ta.bfloat16, requires_grad=True))
    x.requires_grad = True
    x.grad_dtype = ta.float32
    y = copied(x.detach().T)
    z = copied(x)
    assert type(z) is kind and z.requires_grad and z.grad_dtype is ta.float32 and not y.requires_grad
    assert z.numpy().tobytes() == x.numpy().tobytes() and y.numpy().tobytes() == x.detach().T.numpy().tobytes()
    assert z.array.storage is not x.array.storage and len(pickle.dumps(x)) < 1.1 * x.nbytes
    with pytest.raises(GradientError, match=r"use x\.detach\(\)"):
        copied(ta.ones(1, requires_grad=True) * 2)


def test_numpy_reads_tensors_but_not_through_a_graph():
    x = ta.Tensor([1.0, 2.0])
    assert np.asarray(x).dtype == np.float32 and np.asarray(x, dtype=np.float64).tolist() == [1.0, 2.0]
    assert np.stack([x, x]).shape == (2, 2)
    x.requires_grad = True
    with pytest.raises(GradientError, match=r"use x\.detach\(\) or x\.numpy\(\)"):
        np.asarray(x)
    assert x.numpy().tolist() == (x * 1).numpy().tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="can only be copied out"):
        np.asarray(x.detach(), copy=False)


def test_numpy_scalars_leave_operations_to_the_tensor():
    x = ta.Tensor([1.0, 2.0])
    for scalar in (np.float32(2), np.float64(2), np.int8(2)):
        for y in (scalar * x, x * scalar, scalar + x - scalar + 1):
            assert isinstance(y, ta.Tensor) and y.dtype is ta.float32
    assert isinstance(np.float32(2) < x, ta.Tensor)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (ta.Tensor([1.0, 2.5]), "Tensor([1. , 2.5])"),
        (ta.Tensor(3), "Tensor(3)"),
        (ta.Tensor([True]), "Tensor([ True])"),
        (ta.Tensor([1], dtype=ta.uint8), "Tensor([1], dtype=uint8)"),
        (ta.Tensor([1.5], dtype=ta.bfloat16), "Tensor([1.5], dtype=bfloat16)"),
        (ta.Tensor([1.0], requires_grad=True), "Tensor([1.], requires_grad=True)"),
        (ta.Tensor([[1, 2], [3, 4]]), "Tensor([[1, 2],\n        [3, 4]])"),
        (ta.zeros((0, 2)), "Tensor([], shape=(0, 2))"),
    ],
)
def test_repr_shows_the_elements_and_what_is_not_the_default(x, expected):
    assert repr(x) == expected


def test_repr_of_a_large_tensor_is_short():
    assert len(repr(ta.zeros((1000, 1000)))) < 500


class OnlyDLPack:
    """An array of a library that offers nothing but the standard's protocol."""

    def __init__(self, values):
        self.__dlpack__, self.__dlpack_device__ = values.__dlpack__, values.__dlpack_device__


def test_a_tensor_is_made_and_a_state_loaded_of_what_offers_dlpack():
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    x = ta.Tensor(OnlyDLPack(values))
    values[0, 0] = 7
    assert x.dtype is ta.float64 and x.tolist() == [[0, 1, 2], [3, 4, 5]]
    layer = ta.nn.Linear(3, 2)
    layer.load_state_dict({"weight": OnlyDLPack(values), "bias": np.ones(2)})
    assert layer.weight.dtype is ta.float32 and layer.weight.tolist() == values.tolist()
    optimizer = ta.optim.SGD(layer.parameters(), momentum=0.9)
    optimizer.load_state_dict(optimizer.state_dict() | {"0.1.velocity": OnlyDLPack(values), "step": np.int64(3)})
    assert optimizer.state_of(layer.weight)["velocity"].tolist() == values.tolist()


@pytest.mark.parity
def test_a_state_of_torch_is_loaded():
    import torch

    theirs, ours = torch.nn.Linear(3, 2), ta.nn.Linear(3, 2)
    ours.load_state_dict(theirs.state_dict())
    assert ours.weight.tolist() == theirs.weight.tolist() and ours.bias.tolist() == theirs.bias.tolist()
