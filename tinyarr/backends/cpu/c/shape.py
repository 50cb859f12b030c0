"""Joining tensors, and placing one in zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .elementwise import copied, filled
from .kernel import Operand, Site, kernel


def part(x: Operand, name: str, offset: int, shape, strides) -> tuple[str, Operand]:
    """A declaration of a pointer into an operand, and what it points to."""
    return f"{x.type} *{name} = {x.name} + {offset};", replace(x, name=name, shape=shape, strides=strides)


@kernel("concat")
def concat(site: Site) -> str:
    (out,), axis = site.outputs, site.params["axis"]
    text, start = [], 0
    for number, x in enumerate(site.inputs):
        if x.size and number not in site.placed:
            declaration, target = part(out, f"part{number}", start * out.strides[axis], x.shape, out.strides)
            text += [declaration, copied(x, target)]
        start += x.shape[axis]
    return "\n".join(text)


def _zeros_around(x: Operand, out: Operand, starts: Sequence[int]) -> str:
    """Axis by axis, what lies before and after x, between what the axes before it have filled."""
    text, offset, shape = [], 0, list(out.shape)
    for axis, (start, size) in enumerate(zip(starts, x.shape, strict=True)):
        for side, low, high in (("before", 0, start), ("after", start + size, out.shape[axis])):
            if low < high:
                shape[axis] = high - low
                where = offset + low * out.strides[axis]
                declaration, outside = part(out, f"{side}{axis}", where, tuple(shape), out.strides)
                text += [declaration, filled(outside, "0")]
        offset += start * out.strides[axis]
        shape[axis] = size
    return "\n".join(text)


@kernel("unslice")
def unslice(site: Site) -> str:
    (x,), (out,) = site.inputs, site.outputs
    if site.placed:
        return _zeros_around(x, out, site.params["starts"])
    text = [filled(out, "0")]
    if x.size:
        starts, steps = site.params["starts"], site.params["steps"]
        offset = sum(a * s for a, s in zip(starts, out.strides, strict=True))
        strides = tuple(a * s for a, s in zip(steps, out.strides, strict=True))
        declaration, target = part(out, "inside", offset, x.shape, strides)
        text += [declaration, copied(x, target)]
    return "\n".join(text)
