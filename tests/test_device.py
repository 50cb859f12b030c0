"""Devices: their names, the default one, and meta, which has shapes and no memory."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Device
from tinyarr.errors import DeviceError

device = sys.modules["tinyarr.device"]  # tinyarr.device is the class


@pytest.mark.parametrize("name", ["cpu", "cuda:0", "cuda:3", "meta"])
def test_there_is_one_object_a_device_also_after_copying_and_pickling(name):
    device = Device(name)
    assert Device(device) is Device(name) is copy.deepcopy(device) is pickle.loads(pickle.dumps(device)) is device
    assert str(device) == repr(device) == name


def test_devices_know_their_kind_and_number():
    assert Device() is Device("cpu") and Device("cuda") is Device("cuda:0") is not Device("cuda:1")
    assert (Device("cuda:12").kind, Device("cuda:12").index, Device("cpu").kind) == ("cuda", 12, "cpu")


def test_meta_may_stand_in_for_another_device():
    planned = Device("meta", like="cuda:sm_90")
    assert planned is Device("meta", like="cuda:sm_90") is pickle.loads(pickle.dumps(planned)) is not Device("meta")
    assert (planned.like, repr(planned), str(planned)) == ("cuda:sm_90", "meta (like cuda:sm_90)", "meta")
    with pytest.raises(DeviceError, match="only 'meta' stands in"):
        Device("cpu", like="cuda")


def test_a_kind_of_device_can_be_added(monkeypatch):
    monkeypatch.setattr(device, "_kinds", {kind: device._kinds[kind] for kind in ("cpu", "cuda", "meta")})
    monkeypatch.setattr(device, "_known", dict(device._known))
    made = []
    device.register("toy", lambda device: made.append(device) or "its backend", numbered=True)
    toy = Device("toy:1")
    assert not made and toy.backend == toy.backend == "its backend" and made == [toy] and str(Device("toy")) == "toy:0"
    with pytest.raises(DeviceError, match="use 'cpu', 'cuda', 'cuda:N', 'meta', 'toy' or 'toy:N'"):
        Device("joy")
    with pytest.raises(DeviceError, match="like='toy:1' came: 'meta' can stand in for 'cpu' or 'cuda'"):
        Device("meta", like="toy:1").backend  # noqa: B018
    device.register("toy", lambda device: "another", numbered=True)  # as a cell of a notebook that runs again does
    assert Device("toy").backend == "another"
    for kind in ("toy:1", "", 3):
        with pytest.raises(DeviceError, match=r"register: kind is .*: give a name without a colon"):
            device.register(kind, lambda device: "its backend")


@pytest.mark.parametrize("bad", ["gpu", "cuda:", "cuda:-1", "cpu:0", "CPU", "", " cpu", 0, None])
def test_anything_else_is_no_device_and_the_message_says_what_is(bad):
    with pytest.raises(DeviceError, match=r"is not a device: use 'cpu', 'cuda', 'cuda:N'.* or '"):
        Device(bad)


def test_cuda_is_refused_in_one_clear_line():
    if not ta.cuda.is_available():
        with pytest.raises(DeviceError, match=r"^cuda:0: (CuPy is not installed|there is no NVIDIA driver): .*$"):
            ta.zeros((2,), device="cuda")
    with pytest.raises(DeviceError, match=r"^cuda:99: .*$"):
        ta.zeros((2,), device="cuda:99")


def test_use_device_changes_the_default_inside_its_block_alone():
    assert ta.default_device() is Device("cpu")
    with ta.use_device("meta") as device:
        assert ta.default_device() is device is ta.zeros((2,)).device is ta.rand(2).device is ta.Tensor([1]).device
        with ta.use_device("cpu"):
            assert ta.arange(3).device is Device("cpu")
        assert ta.zeros((2,), device="cpu").device is Device("cpu")
        with pytest.raises(KeyError), ta.use_device("cpu"):
            raise KeyError
        assert ta.default_device() is device
    assert ta.zeros((2,)).device is Device("cpu")


def test_use_device_is_not_seen_by_another_thread():
    seen = []
    with ta.use_device("meta"):
        thread = threading.Thread(target=lambda: seen.append(ta.default_device()))
        thread.start()
        thread.join()
    assert seen == [Device("cpu")]


def test_operands_on_different_devices_are_refused_and_named():
    x, y = ta.ones((2,)), ta.ones((2,), device="meta")
    with pytest.raises(DeviceError, match=r"add: x is on cpu, y is on meta: move them .*\.to\(device\)"):
        x + y
    with pytest.raises(DeviceError, match="add: out is on meta, the operands on cpu"):
        ta.add(x, x, out=y)


def model(x, w, tokens):
    h = ta.layer_norm(ta.embedding(w, tokens) + x.reshape((1, 4, 8)), w[0], w[1])
    q, k, v = ((h @ ta.concat([w[:8], w[:8], w[:8]], axis=1)).reshape((2, 4, 3, 2, 4)).permute_dims((2, 0, 3, 1, 4)))
    h = ta.scaled_dot_product_attention(q, k, v, is_causal=True).permute_dims((0, 2, 1, 3)).reshape((2, 4, 8))
    h = (h.gelu().dropout(0.1).mean(axis=-1, keepdims=True) * h).softmax()
    return ta.where(h > 0, h, -h) @ w.T, ta.argmax(h, axis=-1)


def test_a_whole_computation_on_meta_has_the_shapes_and_dtypes_of_the_real_one():
    def run(device):
        with ta.use_device(device):
            x, w = ta.randn(4, 8, requires_grad=True), ta.rand(16, 8, requires_grad=True)
            tokens = ta.randint(0, 16, (2, 4))
            logits, best = model(x, w, tokens)
            loss = ta.cross_entropy(logits, tokens)
            loss.backward()
            w.detach()[0] = 1.0
            return [(t.shape, t.dtype) for t in (logits, best, loss, x.grad, w.grad)]

    assert run("meta") == run("cpu")


def test_meta_takes_no_memory_and_its_views_share_a_storage():
    x = ta.empty((10**6, 10**6), device="meta")
    y = (x @ x.T)[::2].reshape((-1, 100))
    assert y.shape == (5 * 10**9, 100) and y.nbytes == 2 * 10**12 and y.array.storage.memory is None
    assert x.T.array.storage is x.array.storage is not (x + 1).array.storage
    assert ta.memory_stats("meta").in_use == 0


def test_meta_has_no_values_and_says_so():
    x = ta.zeros((1,), device="meta")
    for read in (x.item, x.tolist, x.numpy, x.__bool__, x.__float__, lambda: x.to("cpu"), lambda: np.asarray(x)):
        with pytest.raises(DeviceError, match=r"\(1,\) is on meta, which has shapes and no values"):
            read()
    assert repr(x) == "Tensor(shape=(1,), device='meta')"


def test_to_moves_a_tensor_or_returns_it_where_it_is():
    x = ta.ones((2, 3), dtype=ta.bfloat16)
    assert x.to("cpu") is x
    assert (x.to("meta").shape, x.to("meta").dtype, x.to("meta").device) == ((2, 3), ta.bfloat16, Device("meta"))
