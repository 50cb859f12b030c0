"""Names that users of PyTorch and NumPy look for, and what they are called here."""

from __future__ import annotations

from typing import NoReturn

from .tensor import Tensor

FUNCTIONS = {
    "tensor": "Tensor(data) or asarray",
    "from_numpy": "asarray or from_dlpack",
    "cat": "concat",
    "concatenate": "concat",
    "vstack": "concat",
    "hstack": "concat",
    "permute": "permute_dims",
    "transpose": "permute_dims, or swapaxes for two axes",
    "unsqueeze": "expand_dims",
    "flatten": "reshape(x, (-1,))",
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
    "rsample": "normal",
    "manual_seed_all": "manual_seed",
    "set_default_device": "use_device",
}
METHODS = FUNCTIONS | {
    "t": "T",
    "expand": "broadcast_to",
    "repeat_interleave": "repeat",
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
    "data": "detach()",
    "numel": "size",
    "dim": "ndim",
    "copy_": "assign",
    "fill_": "assign",
    "zero_": "assign(0)",
    "add_": "x += y, which makes a new tensor, or assign",
    "requires_grad_": "requires_grad = True",
}


def missing(owner: str, names: dict[str, str], name: str) -> NoReturn:
    """Raises AttributeError, with the name that is meant where it is known."""
    hint = f": use {names[name]}" if name in names else ""
    raise AttributeError(f"{owner} has no attribute {name!r}{hint}")


class _Missing:
    """An attribute that is not there. A `__getattr__` would make every access to a tensor's attributes slower."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, tensor: Tensor | None, owner: type) -> NoReturn:
        missing("Tensor", METHODS, self._name)


for _name in METHODS:
    setattr(Tensor, _name, _Missing(_name))
