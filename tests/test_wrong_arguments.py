"""Whatever is passed by mistake, the error names the operation, the argument, what came and what to do."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import nn, optim, saving
from tinyarr.errors import ArgumentError, DtypeError, OutOfMemory, ShapeError

x = ta.ones((2, 3))
layer = nn.Linear(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ta.zeros("a"), TypeError, "zeros: shape is 'a': give ints, or a tuple of them"),
        (lambda: x.reshape(2.0, 3), TypeError, r"reshape: shape is \[2.0, 3\]: give ints"),
        (lambda: ta.zeros(10**15), OutOfMemory, "cpu: 4,000,000,000,000,000 bytes can't be had, [0-9,]+ are in use: "),
        (lambda: ta.zeros((10**10, 10**10)), OutOfMemory, "cpu: .* bytes can't be had"),
        (lambda: ta.arange("a"), TypeError, "arange: stop is 'a': it must be a Python number"),
        (lambda: ta.arange(0, None, x), TypeError, "arange: step is Tensor"),
        (lambda: ta.linspace(0, "a", 3), TypeError, "linspace: stop is 'a': it must be a Python number"),
        (lambda: x.sum(axis="a"), TypeError, "sum: axis is 'a': it must be an int"),
        (lambda: x.permute_dims(0), TypeError, "permute_dims: axes is 0: give a tuple of ints"),
        (lambda: x.permute_dims(1, 0), TypeError, r"permute_dims: .*: use permute_dims\(x, /, axes\)"),
        (lambda: x.split("a"), TypeError, "split: a size is 'a': it must be an int"),
        (lambda: ta.manual_seed("a"), TypeError, "Generator: seed is 'a': it must be an int"),
        (lambda: ta.randint(0, 2.5, ()), TypeError, "randint: high is 2.5: it must be an int"),
        (lambda: ta.concat(x), TypeError, "concat: tensors is Tensor: give a list of tensors"),
        (lambda: ta.stack(t for t in x), TypeError, "stack: tensors is generator: give a list of tensors"),
        (lambda: ta.concat([]), ShapeError, "concat: needs at least one tensor"),
        (lambda: ta.no_grad(3), TypeError, r"no_grad: .*: use no_grad\(\)"),
        (lambda: layer.to_dtype("int8"), DtypeError, "to_dtype: dtype is int8: it must be a floating dtype"),
        (lambda: layer.load_state_dict("a.safetensors"), TypeError, r"state is str: give .* saving\.load\(path\)\[0\]"),
        (lambda: optim.AdamW([layer.weight], lr="a"), ArgumentError, "AdamW: lr is 'a': it must be 0 or more"),
        (lambda: optim.AdamW([layer.weight], betas=0.9), ArgumentError, "AdamW: betas is 0.9: both must lie in"),
        (lambda: optim.clip_grad_norm(layer, 1.0), TypeError, r"clip_grad_norm: parameters is Linear: pass model\.par"),
        (lambda: optim.grad_norm(layer.parameters), TypeError, r"grad_norm: parameters is method: pass model\.par"),
        (lambda: ta.save(layer.state_dict(), "a"), TypeError, r"^save: path is dict: it comes first: save"),
        (lambda: saving.save("a", layer), TypeError, r"save: tensors is Linear: give .* model\.state_dict\(\)"),
        (lambda: ta.grad(lambda w: w["a"].sum())({"a": 1}), ArgumentError, "grad: argument 0 of .* is int: it must"),
        (lambda: x + np.ones(3), TypeError, "add: y is ndarray: make it a tensor"),
    ],
)
def test_a_wrong_argument_is_told_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()
