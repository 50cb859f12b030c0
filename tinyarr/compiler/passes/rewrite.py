"""Rewriting: several nodes that one primitive computes become that one. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ... import views
from ...ops.elementwise import _astype, add
from ...ops.index import _take_gradient, index_add
from ...ops.matmul import _matmul, matmul_add, matmul_wide
from ...ops.primitive import Call, Primitive
from ...ops.shape import _unslice
from ...program import Graph, Node, Read, Step, Value
from ..uses import Uses, is_call, is_elementwise, reads_runs


def add_rows_in_place(graph: Graph) -> Graph:
    """Adds to a tensor only the rows of an embedding's gradient that are not zero, those of the batch's tokens.

    Example: GPT-2's table (50257, 768), tied to the head, with 1,024 tokens: %3 = add(%1, take_gradient(%2, i)) becomes
    %3 = index_add(%1, %2, i). It reads 3 MiB of rows, where a second gradient of 147 MiB would be filled with zeros,
    written and added. The gradients of several batches add up the same way.
    """
    lives = Uses(graph)
    return replace(graph, nodes=[_with_rows(graph, lives, node) for node in graph.nodes])


def _with_rows(graph: Graph, lives: Uses, node: Step) -> Step:
    if not is_call(node, add) or len(node.outputs[0].shape) < 2:
        return node
    shape = node.outputs[0].shape
    for x, rows in (node.inputs, node.inputs[::-1]):
        gradient, start = _rows(graph, lives, rows), 0
        if gradient is None or gradient.outputs[0].shape != shape or not isinstance(x, Read) or x.view.shape != shape:
            continue
        if is_call(gradient, _unslice):
            params, part = gradient.call.params, gradient.inputs[0]
            is_rows = part.view.shape == part.value.shape and part.view.shape[1:] == shape[1:]
            if not is_rows or len(part.view.shape) != len(shape) or set(params["steps"]) != {1}:
                continue
            gradient, start = _rows(graph, lives, part), params["starts"][0]
        if not is_call(gradient, _take_gradient):
            continue
        params = gradient.call.params
        if params["axis"] == 0 and not params["wrap"]:
            inputs = (x, *gradient.inputs)
            shapes = tuple(read.view.shape for read in inputs)
            dtypes = tuple(read.value.dtype for read in inputs)
            call = Call(index_add, node.call.device, shapes, dtypes, {"start": start, "size": params["size"]})
            if dtypes[0] is dtypes[1] and call.device.backend.holds(call):
                return replace(node, call=call, inputs=inputs)
    return node


def _rows(graph: Graph, lives: Uses, read: Any) -> Node | None:
    """Returns the node that makes the value of a read, if this is its only read and shows all of it, in order."""
    maker = _maker(graph, lives, read)
    if maker is None:
        return None
    whole = views.is_contiguous(read.view) and views.size(read.view.shape) == views.size(read.value.shape)
    return maker if whole else None


def _maker(graph: Graph, lives: Uses, read: Any) -> Node | None:
    """Returns the node that makes the value of a read, if this is its only reader."""
    if not isinstance(read, Read) or read.value not in lives.maker or read.value in lives.kept:
        return None
    maker = graph.nodes[lives.maker[read.value]]
    return maker if isinstance(maker, Node) and len(lives.readers[read.value]) == 1 else None


def keep_products_wide(graph: Graph) -> Graph:
    """Makes products of half types in float32 where they are only converted to it, and adds them to float32 sums.

    Example, a weight in bfloat16 whose gradients of many batches add up in float32 (%1):

        %4: bfloat16 = matmul(%2, %3)
        %5: float32 = astype(%4)
        %6: float32 = add(%1, %5)           becomes %6: float32 = matmul_add(%1, %2, %3)

    The library's epilogue adds, in the memory of %1 where nothing else needs it, so that two passes over the weight are
    saved. Without the sum it is matmul_wide(%2, %3).
    """
    for find in _added, _converted:  # the second looks at what the first has left
        lives, nodes = Uses(graph), list[Step | None](graph.nodes)
        for position in range(len(nodes)):
            found = find(graph, lives, position)
            if found is not None:
                gone, at, node = found
                for other in gone:
                    nodes[other] = None
                nodes[at] = node
        graph = replace(graph, nodes=[node for node in nodes if node is not None])
    return graph


# The positions of nodes that go, and where one takes a product's place.
_Found = tuple[Sequence[int], int, Node]


def _added(graph: Graph, lives: Uses, position: int) -> _Found | None:
    """A sum with a converted product, as one call."""
    node = graph.nodes[position]
    if not is_call(node, add):
        return None
    shape, (dtype,) = node.outputs[0].shape, node.call.out_dtypes
    for c, converted in (node.inputs, node.inputs[::-1]):
        cast = _rows(graph, lives, converted)
        product = _product(graph, lives, cast)
        fits = isinstance(c, Read) and c.view.shape == shape and c.value.dtype is dtype
        if cast is None or product is None or not fits or cast.outputs[0].shape != shape:
            continue
        at, x, y = product
        # What is made later can't be added to here, and the factors, far larger than a weight, must not wait for it.
        if lives.maker.get(c.value, -1) < at:
            return _instead(node, matmul_add, (c, x, y), (position, lives.maker[converted.value]), at)
    return None


def _converted(graph: Graph, lives: Uses, position: int) -> _Found | None:
    """A converted product, as one call, where the result is in memory anyway and not made as it is read."""
    node = graph.nodes[position]
    product = _product(graph, lives, node)
    if product is None or not isinstance(node, Node) or not _is_stored(graph, lives, node.outputs[0]):
        return None
    at, *factors = product
    return _instead(node, matmul_wide, factors, (position,), at)


def _product(graph: Graph, lives: Uses, cast: Step | None) -> tuple[int, Read, Read] | None:
    """Returns the position of a product x y and x and y, if `cast` converts it to float32 and is its only reader.

    Where it converts the transpose, x and y are the factors of that: (x y)^T = y^T x^T.
    """
    if not is_call(cast, _astype):
        return None
    (read,), (wide,) = cast.inputs, cast.call.out_dtypes
    product = _maker(graph, lives, read)
    if not is_call(product, _matmul):
        return None
    (narrow,), (x, y) = product.call.out_dtypes, product.inputs
    if wide is narrow or wide is not narrow.compute:
        return None
    at, whole = lives.maker[read.value], views.contiguous(product.outputs[0].shape)
    if read.view == whole:
        return at, x, y
    return (at, _transposed(y), _transposed(x)) if read.view == _exchanged(whole) else None


def _transposed(read: Read) -> Read:
    return Read(read.value, _exchanged(read.view))


def _exchanged(view: views.View) -> views.View:
    """The view with its last two axes exchanged."""
    *lead, row, column = range(len(view.shape))
    return views.permute(view, (*lead, column, row))


def _instead(
    node: Node, primitive: Primitive, inputs: Sequence[Read], gone: Sequence[int], at: int
) -> _Found | None:
    """Returns the call of another primitive with the node's results; None where there is no kernel for it."""
    shapes, dtypes = tuple(x.view.shape for x in inputs), tuple(x.value.dtype for x in inputs)
    call = Call(primitive, node.call.device, shapes, dtypes, {})
    if call.device.backend.kernel(call) is None:
        return None
    return gone, at, replace(node, call=call, inputs=tuple(inputs))


def _is_stored(graph: Graph, lives: Uses, value: Value) -> bool:
    """Returns whether a value is in memory, however its readers are fused."""
    readers = [graph.nodes[position] for position in lives.readers.get(value, ())]
    if value in lives.kept or len(readers) != 1 or not isinstance(readers[0], Node):
        return True
    return not is_elementwise(readers[0]) and not reads_runs(readers[0])
