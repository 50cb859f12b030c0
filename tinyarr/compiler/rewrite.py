"""What is written as several operations and has one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import views
from ..ops.index import index_add
from ..ops.primitive import Call
from ..program import Graph, Node, Read, Step
from .lives import Lives


def add_rows_in_place(graph: Graph) -> Graph:
    """A tensor plus the gradient of an embedding, zero but for the rows of a batch: only those rows are added.

    So the table of a tied embedding, and one whose gradients of several batches add up, is gone through once less, and
    has no second gradient of its own beside the first.
    """
    lives = Lives(graph)
    return replace(graph, nodes=[_with_rows(graph, lives, node) for node in graph.nodes])


def _with_rows(graph: Graph, lives: Lives, node: Step) -> Step:
    if not isinstance(node, Node) or node.call.primitive.name != "add" or len(node.outputs[0].shape) < 2:
        return node
    shape = node.outputs[0].shape
    for x, rows in (node.inputs, node.inputs[::-1]):
        gradient, start = _rows(graph, lives, rows), 0
        if gradient is None or gradient.outputs[0].shape != shape or not isinstance(x, Read) or x.view.shape != shape:
            continue
        if gradient.call.primitive.name == "unslice":
            params, part = gradient.call.params, gradient.inputs[0]
            is_rows = part.view.shape == part.value.shape and part.view.shape[1:] == shape[1:]
            if not is_rows or len(part.view.shape) != len(shape) or set(params["steps"]) != {1}:
                continue
            gradient, start = _rows(graph, lives, part), params["starts"][0]
        if gradient is None or gradient.call.primitive.name != "take_gradient":
            continue
        params = gradient.call.params
        if params["axis"] == 0 and not params["wrap"]:
            inputs = (x, *gradient.inputs)
            shapes = tuple(read.view.shape for read in inputs)
            dtypes = tuple(read.value.dtype for read in inputs)
            call = Call(index_add, node.call.device, shapes, dtypes, {"start": start, "size": params["size"]})
            if dtypes[0] is dtypes[1] and call.device.backend.kernel(call) is not None:
                return replace(node, call=call, inputs=inputs)
    return node


def _rows(graph: Graph, lives: Lives, read: Any) -> Node | None:
    """What makes a value of which nothing else is read than all of it, here."""
    if not isinstance(read, Read) or read.value not in lives.maker or read.value in lives.kept:
        return None
    maker = graph.nodes[lives.maker[read.value]]
    whole = views.is_contiguous(read.view) and views.size(read.view.shape) == views.size(read.value.shape)
    return maker if isinstance(maker, Node) and whole and len(lives.readers[read.value]) == 1 else None
