"""Names and keywords of PyTorch and NumPy, and what to write here: where one is used, the error says so. Floor 5.

A few are so common that they work: at the end.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, MutableMapping
from types import FunctionType
from typing import Any, NoReturn

import numpy as np

from . import autograd, dtypes, nn, optim
from .device import Device
from .errors import ArgumentError
from .random import Generator
from .tensor import Tensor, add_methods

SHARED = {  # by functions and methods
    "permute": "permute_dims",
    "transpose": "permute_dims, or swapaxes for two axes",
    "unsqueeze": "expand_dims",
    "flatten": "reshape(-1), or reshape(len(x), -1) to keep the first axis",
    "ravel": "reshape(x, (-1,))",
    "view": "reshape",
    "gather": "take_along_axis",
    "index_select": "take",
    "chunk": "split",
    "cumsum": "cumulative_sum",
    "cumprod": "cumulative_prod",
    "bmm": "matmul",
    "mm": "matmul",
    "dot": "vecdot or matmul",
    "amax": "max",
    "amin": "min",
    "norm": "vector_norm",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "power": "pow",
    "clamp": "clip",
    "mul": "multiply",
    "sub": "subtract",
    "div": "divide",
    "neg": "negative",
    "ge": "greater_equal",
    "gt": "greater",
    "le": "less_equal",
    "lt": "less",
    "eq": "equal",
    "ne": "not_equal",
    "unique": "unique_values",
    "absolute": "abs",
    "masked_select": "x[mask]",
    "argwhere": "nonzero",
    "movedim": "moveaxis",
    "swapdims": "swapaxes",
    "mv": "matmul",
    "addmm": "matmul(x, y) + bias",
    "repeat_interleave": "repeat",
    "unbind": "unstack",
    "take_along_dim": "take_along_axis",
    "fmod": "x - y * (x / y).trunc()",
    "lerp": "x + weight * (end - x)",
    "diag": "einsum('ii->i', x), or eye(len(x)) * x for a matrix",
    "diagonal": "einsum('ii->i', x)",
    "trace": "einsum('ii->', x)",
    "bernoulli": "rand(*p.shape) < p",
    "median": "numpy.median of x.numpy(), or sort, through which gradients flow",
    "quantile": "numpy.quantile of x.numpy(), or sort, through which gradients flow",
    "histc": "numpy.histogram of x.numpy()",
    "bincount": "one_hot(x, n).sum(0)",
    "index_add": "matmul with one_hot(index), which adds up",
    "scatter_add": "matmul with one_hot(index), which adds up",
    "scatter": "x[index] = value into a clone, or one_hot",
}
FUNCTIONS = SHARED | {
    "array": "Tensor(data), or asarray, which copies only where it must",
    "as_tensor": "asarray",
    "dtype": "dtypes.Dtype",
    "FloatTensor": "Tensor(data, dtype=tinyarr.float32)",
    "LongTensor": "Tensor(data, dtype=tinyarr.int64)",
    "BoolTensor": "Tensor(data, dtype=tinyarr.bool)",
    "Size": "tuple, which x.shape is",
    "numel": "size, an attribute of a tensor",
    "set_default_dtype": "dtype= where a tensor is made",
    "get_default_dtype": "float32, which it always is",
    "autocast": "astype, or model.to(tinyarr.bfloat16): nothing is cast behind one's back",
    "amp": "astype, or model.to(tinyarr.bfloat16): nothing is cast behind one's back",
    "linalg": "vector_norm, or numpy.linalg on x.numpy()",
    "fft": "numpy.fft on x.numpy()",
    "special": "erf, sigmoid and their like, which are functions of tinyarr itself",
    "func": "grad, vjp, jvp, vmap and jacobian, which are functions of tinyarr itself",
    "jacrev": "jacobian",
    "jacfwd": "jacobian",
    "cartesian_prod": "meshgrid and stack",
    "inference_mode": "no_grad",
    "set_grad_enabled": "no_grad or enable_grad",
    "jit": "compile",
    "utils": "data, for torch.utils.data, or checkpoint",
    "clip_grad_norm_": "optim.clip_grad_norm",
    "is_tensor": "isinstance(x, Tensor)",
    "allclose": "numpy.allclose of x.numpy() and y.numpy()",
    "from_numpy": "asarray or from_dlpack",
    "cat": "concat",
    "concatenate": "concat",
    "vstack": "concat",
    "hstack": "concat",
    "rsample": "normal",
    "manual_seed_all": "manual_seed",
    "set_default_device": "use_device",
    "DataLoader": "data.DataLoader",
    "isclose": "numpy.isclose of x.numpy() and y.numpy()",
    "normalize": "x / vector_norm(x, axis=-1, keepdims=True)",
    "is_grad_enabled": "enable_grad or no_grad, which say what holds inside, whatever holds outside",
    "Module": "nn.Module",
    "Parameter": "nn.Parameter",
}
SAME = {  # as here
    "tensor": Tensor,
    "device": Device,
    "long": dtypes.int64,
    "int": dtypes.int32,
    "short": dtypes.int16,
    "float": dtypes.float32,
    "double": dtypes.float64,
    "half": dtypes.float16,
}
METHODS = SHARED | {
    "t": "T",
    "expand": "broadcast_to",
    "float": "astype(tinyarr.float32)",
    "double": "astype(tinyarr.float64)",
    "half": "astype(tinyarr.float16)",
    "bfloat16": "astype(tinyarr.bfloat16)",
    "long": "astype(tinyarr.int64)",
    "int": "astype(tinyarr.int32)",
    "bool": "astype(tinyarr.bool)",
    "type": "astype",
    "cpu": "to('cpu')",
    "cuda": "to('cuda')",
    "dim": "ndim",
    "nelement": "size",
    "view_as": "reshape(y.shape)",
    "expand_as": "broadcast_to(y.shape)",
    "type_as": "astype(y.dtype)",
    "is_cuda": "device.kind == 'cuda'",
    "detach_": "detach()",
    "values": "max or sort, whose result is the values alone",
    "indices": "argmax or argsort, whose result is the positions alone",
    "pow": "x ** y",
    "tril": "tinyarr.tril(x)",
    "triu": "tinyarr.triu(x)",
    "isin": "tinyarr.isin(x, elements)",
    "ndimension": "ndim",
    "element_size": "dtype.itemsize",
    "is_contiguous": "contiguous(), which copies only where it must",
    "grad_fn": "node, which is None for a leaf",
    "new_tensor": "Tensor(data, dtype=x.dtype)",
    "new_zeros": "zeros(shape, dtype=x.dtype)",
    "new_ones": "ones(shape, dtype=x.dtype)",
    "new_full": "full(shape, value, dtype=x.dtype)",
    "unsqueeze_": "expand_dims",
    "squeeze_": "squeeze",
    "resize_": "reshape",
    "clamp_min_": "clamp_(min=low)",
    "clamp_max_": "clamp_(max=high)",
    "neg_": "assign(-x)",
    "pow_": "assign(x ** y)",
    "addcmul_": "assign(x + value * y * z)",
    "addcdiv_": "assign(x + value * y / z)",
    "bernoulli_": "assign(tinyarr.rand(*x.shape) < p)",
    "scatter_": "x[index] = value",
    "index_fill_": "x[index] = value",
    "index_copy_": "x[index] = value",
    "index_add_": "assign(x + ...), with matmul and one_hot(index), which adds up",
    "scatter_add_": "assign(x + ...), with matmul and one_hot(index), which adds up",
    "fill_diagonal_": "assign(where(eye(n, dtype=tinyarr.bool), value, x))",
}
METHODS |= {f"{name}_": f"assign(x.{name}())" for name in (
    "abs", "ceil", "cos", "exp", "floor", "log", "relu", "round", "rsqrt", "sigmoid", "sin", "sqrt", "square", "tanh",
)}  # fmt: skip
GENERATOR = {
    "manual_seed": "Generator(seed)",
    "initial_seed": "key",
    "get_state": "state_dict()",
    "set_state": "load_state_dict(state)",
}
NN = {
    "ParameterList": "list: a Module finds the parameters in lists",
    "ParameterDict": "dict: a Module finds the parameters in dicts",
    "Buffer": "Module.register_buffer(name, tensor)",
    "MultiheadAttention": "tinyarr.scaled_dot_product_attention between Linear layers",
    "functional": "tinyarr.relu and its like, which are functions of tinyarr itself",
    "utils": "tinyarr.optim.clip_grad_norm for clipping",
    "AdaptiveAvgPool2d": "x.mean((2, 3), keepdims=True) for a size of 1, else AvgPool2d",
    "ELU": "tinyarr.where(x >= 0, x, tinyarr.expm1(tinyarr.minimum(x, 0)))",
    "KLDivLoss": "tinyarr.sum(target * (tinyarr.log(target) - x)) / len(x) for log-probabilities x",
    "Unflatten": "x.reshape(len(x), *sizes)",
    "MaxPool1d": "MaxPool2d((1, size)) of x.expand_dims(2), then squeeze(2)",
    "InstanceNorm2d": "GroupNorm(channels, channels, affine=False)",
}
INIT = {
    "eye_": "tinyarr.eye, as in p.data.copy_(tinyarr.eye(*p.shape))",
}
DATA = {
    "random_split": "tinyarr.randperm(len(dataset)).tolist(), and [dataset[i] for i in a slice of it] for each part",
}
MODULE = {
    "cuda": "to('cuda'), or tinyarr.use_device('cuda') around the module's making",
    "cpu": "to('cpu'), or tinyarr.use_device('cpu') around the module's making",
    "half": "to_dtype(tinyarr.float16)",
    "bfloat16": "to_dtype(tinyarr.bfloat16)",
    "float": "to_dtype(tinyarr.float32)",
    "double": "to_dtype(tinyarr.float64)",
    "register_parameter": "setattr(self, name, nn.Parameter(tensor))",
    "add_module": "setattr(self, name, module)",
    "register_module": "setattr(self, name, module)",
}
AUTOGRAD = {
    "grad": "tinyarr.gradients(outputs, inputs)",
    "Function": "tinyarr.custom_gradient",
}
OPTIM = {
    "lr_scheduler": "Scheduler, with a function of the step, as those of tinyarr.schedule",
    "swa_utils": "ExponentialMovingAverage",
    "clip_grad_norm_": "clip_grad_norm",
    "StepLR": "Scheduler(optimizer, lambda step: lr * gamma ** (step // step_size))",
    "CosineAnnealingLR": "Scheduler(optimizer, tinyarr.schedule.cosine(lr, steps, final=0.0))",
    "EMA": "ExponentialMovingAverage",
}
OPTIMIZER = {
    "add_param_group": "all groups when the optimizer is made",
}
KEYWORDS = {  # of functions that do not have them
    "dim": "axis",
    "dims": "axis",
    "keepdim": "keepdims",
    "unbiased": "correction, 1 for the unbiased estimate",
    "ddof": "correction",
    "out": "x.assign(result)",
    "size": "shape",
    "steps": "num",
    "diagonal": "k",
    "in_dims": "in_axes",
    "out_dims": "out_axes",
    "as_tuple": "stack(nonzero(x), axis=1) for rows of positions: nonzero gives a tuple",
    "non_blocking": "to(device), which waits until the elements are there",
    "input": "the first argument, without its name",
}
OWN_KEYWORDS = {  # of one function or class that does not have them
    "compile": {
        "dynamic": "compile(function): new shapes are traced when they come, and ints among the arguments are inputs",
        "fullgraph": "compile(function), which always makes one graph of all",
        "mode": "compile(function), whose programs tinyarr.tuning can tune",
    },
    "load": {"map_location": "device"},
    "DataLoader": {"pin_memory": "device='cuda', to which batches are copied"},
    "Embedding": {"padding_idx": "masked_fill(embedding(tokens), (tokens == padding_idx).expand_dims(-1), 0.0)"},
    "LayerNorm": {"elementwise_affine": "the function layer_norm(x), which has no weights unless they are given"},
}


def missing(owner: str, names: dict[str, str], name: str) -> NoReturn:
    """Raises AttributeError, with the name that is meant where it is known."""
    hint = f": use {names[name]}" if name in names else ""
    raise AttributeError(f"{owner} has no attribute {name!r}{hint}")


class _Missing:
    """An attribute that is not there. A `__getattr__` would make every access to an object's attributes slower."""

    def __init__(self, names: dict[str, str], name: str):
        self._names, self._name = names, name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        missing(owner.__name__, self._names, self._name)


def _listed(self: object) -> list[str]:
    """Returns what dir() lists of an object: its attributes without those that are not there."""
    kind = type(self)
    return [n for n in object.__dir__(self) if not isinstance(inspect.getattr_static(kind, n, None), _Missing)]


@functools.cache
def explained(function: Callable) -> Callable:
    """The function, which says what to write where it is called with arguments that it doesn't take."""
    plain = inspect.unwrap(function)

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except TypeError:
            given = {name: value for name, value in keywords.items() if value is not None}
            if len(given) < len(keywords):  # np.mean(x) calls x.mean(axis=None, dtype=None, out=None)
                return call(*args, **given)
            _check_call(function.__name__, function, args, keywords)
            raise

    if plain.__code__.co_varnames[1 : plain.__code__.co_argcount] == ("axis",) and plain.__defaults__:
        # Reductions of small tensors: the dict that `call` makes of its keywords costs a twentieth of them.
        explaining = call

        @functools.wraps(function)
        def call(x: Any, /, axis: Any = plain.__defaults__[0], **keywords: Any) -> Any:
            return explaining(x, axis, **keywords) if keywords else function(x, axis)

    call.__module__ = "tinyarr" if hasattr(sys.modules["tinyarr"], function.__name__) else function.__module__
    return call


def explain_class(kind: Any) -> None:
    """Has a class say, under its own name, what to write where it is made with arguments that it doesn't take."""
    make = kind.__init__

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        try:
            make(self, *args, **keywords)
        except TypeError:
            _check_call(kind.__name__, make.__get__(self), args, keywords)
            raise

    kind.__init__ = __init__


def _check_call(name: str, function: Callable, args: tuple, keywords: dict[str, Any]) -> None:
    """Raises TypeError, with what to write, where the function, which an error calls `name`, can't be called so."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        known = KEYWORDS | OWN_KEYWORDS.get(name, {})
        hints = [known[key] for key in keywords if key not in signature.parameters and key in known]
        hint = " and ".join(hints) if hints else f"{name}{inspect.Signature(plain)}"
        raise TypeError(f"{name}: {error}: use {hint}") from None


def takes_axis(value: object) -> bool:
    """Returns whether a value is a function with a parameter `axis` or `axes`, which PyTorch calls dim or dims."""
    if not isinstance(value, FunctionType):
        return False
    code = inspect.unwrap(value).__code__
    return not {"axis", "axes"}.isdisjoint(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


for _kind, _names in ((Tensor, METHODS), (nn.Module, MODULE), (optim.Optimizer, OPTIMIZER), (Generator, GENERATOR)):
    for _name in _names:
        setattr(_kind, _name, _Missing(_names, _name))
    _kind.__dir__ = _listed  # type: ignore[method-assign]
    for _name, _value in list(vars(_kind).items()):
        if takes_axis(_value) or _name in ("to", "nonzero"):
            setattr(_kind, _name, explained(_value))
for _module, _names in ((nn, NN), (nn.init, INIT), (optim, OPTIM), (autograd, AUTOGRAD)):
    _module.__getattr__ = functools.partial(missing, _module.__name__, _names)  # type: ignore[method-assign]
for _value in list(vars(nn).values()):
    # A module made of a function has its signature, by which it checks the options itself.
    _is_module = isinstance(_value, type) and issubclass(_value, nn.Module) and not hasattr(_value, "__signature__")
    if _is_module and _value.__init__ is not object.__init__:
        explain_class(_value)


class ParameterGroup(MutableMapping):
    """An optimizer's group as PyTorch has it: a dict of "params", "lr" and the options. Writing changes the optimizer.

    The learning rate of one of several groups is kept as a multiple, "lr_scale", of the optimizer's.
    """

    def __init__(self, optimizer: optim.Optimizer, options: dict[str, Any], is_only: bool):
        self._optimizer, self._options, self._is_only = optimizer, options, is_only

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            packed = [p for p in self._optimizer._packed if p.options is self._options]
            return [parameter for p in packed for parameter in reversed(p.parameters)]
        return self._optimizer.lr * self._options["lr_scale"] if key == "lr" else self._options[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr" and self._is_only:
            self._optimizer.lr = value
            key, value = "lr_scale", 1.0
        elif key == "lr":
            whole = self._optimizer.lr.item()
            if whole == 0 == value:
                return
            if whole == 0:
                raise ArgumentError(f"param_groups: lr is 0, and {value} for a group a multiple of it: raise lr first")
            key, value = "lr_scale", float(value) / whole
        if key not in self._options:
            raise ArgumentError(f"param_groups: {key!r} can't be written: use 'lr' or one of {list(self._options)}")
        self._optimizer._check({key: value})
        self._options[key] = value

    def __delitem__(self, key: str) -> NoReturn:
        raise ArgumentError(f"param_groups: {key!r} can't be taken away")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", "lr", *self._options))

    def __len__(self) -> int:
        return len(self._options) + 2

    def __repr__(self) -> str:
        return repr(dict(self))


def _param_groups(self: optim.Optimizer) -> list[ParameterGroup]:
    """The groups as PyTorch has them; writing into one changes the optimizer."""
    options = {id(p.options): p.options for p in self._packed}
    return [ParameterGroup(self, o, len(options) == 1) for o in options.values()]

def _of_ufunc(self: Tensor, ufunc: np.ufunc, how: str, *operands: Any, **keywords: Any) -> Tensor:
    """np.exp(x) is exp(x), and np.float32(2) * x is multiply(np.float32(2), x)."""
    name = SHARED.get(ufunc.__name__, _UFUNCS.get(ufunc.__name__, ufunc.__name__))
    function = getattr(sys.modules["tinyarr"], name, None)
    if how != "__call__" or keywords or function is None:
        raise TypeError(f"np.{ufunc.__name__}: a Tensor came: use tinyarr's functions, or x.numpy()")
    return function(*operands)


_UFUNCS = {
    "invert": "bitwise_invert", "left_shift": "bitwise_left_shift", "right_shift": "bitwise_right_shift",
    "rint": "round",
}  # fmt: skip

optim.Optimizer.param_groups = property(_param_groups)  # type: ignore[attr-defined]
add_methods(__array_ufunc__=_of_ufunc)
