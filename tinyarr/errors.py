"""Errors: every message is `operation: what came: what is needed`, in one class a kind of mistake. Floor 1.

Each class also derives from the built-in exception that NumPy or PyTorch would have raised, so that
`except ValueError` around tinyarr code does what its author expects.
"""

from __future__ import annotations

import operator


class TinyarrError(Exception):
    """Base of all errors that tinyarr raises on purpose."""


class ShapeError(TinyarrError, ValueError):
    """Shapes, axes or sizes that do not fit the operation."""


class DtypeError(TinyarrError, TypeError):
    """Dtypes that the operation does not take, or that do not promote to a common one."""


class DeviceError(TinyarrError, RuntimeError):
    """A device that is missing, or operands on different devices."""


class OutOfMemory(TinyarrError, MemoryError):
    """More memory than the device has left."""


class OutOfBounds(TinyarrError, IndexError):
    """An index outside its axis."""


class MaskError(ShapeError, OutOfBounds):
    """A mask whose shape is not that of what it indexes."""


class GradientError(TinyarrError, RuntimeError):
    """A gradient that cannot be computed: no graph, a graph already freed, a saved value since overwritten."""


class ArgumentError(TinyarrError, ValueError):
    """Any other argument of the right type and an unusable value."""


class TraceError(TinyarrError, RuntimeError):
    """A function that can't be compiled: it asks for elements, or for something that can't be found again."""


class RankError(TinyarrError, RuntimeError):
    """A rank that did not come, has ended, hangs, or does something else than the others."""


class FileError(TinyarrError, ValueError):
    """A file whose contents are not what its format promises."""


def describe(name: str, value) -> str:
    """Returns the words for an operand in a message: `x has shape (3, 4), dtype float32`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} has shape {tuple(value.shape)}, dtype {getattr(value.dtype, 'name', value.dtype)}"
    return f"{name} is {value!r} ({type(value).__name__})"


def whole_number(operation: str, name: str, value) -> int:
    """An argument as a Python int. Raises TypeError for what is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{operation}: {name} is {value!r}: it must be an int") from None
