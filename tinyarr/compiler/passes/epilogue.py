"""Epilogues: a library applies a bias, a GELU or a GELU's gradient to a product before it stores it. Floor 2.

Example: %3 = matmul(%0, %1), %4 = add(%3, %2), %5 = gelu_tanh(%4) become %4, %5 = matmul_bias_gelu(%0, %1, %2). The sum
%4 is stored for backward, %3 never. Two passes over the largest values of a GPT's layer (B * T, 4 C) are saved.

A bias that an elementwise kernel or a norm adds as it reads the product stays there: that costs nothing either. The
product is not rounded to its dtype in between (order.py lists what changes bits).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ... import views
from ...ops.activation import _gelu_tanh
from ...ops.elementwise import add
from ...ops.epilogue import matmul_bias, matmul_bias_gelu, matmul_gelu_gradient
from ...ops.matmul import _matmul
from ...ops.primitive import Call, Primitive
from ...program import Graph, Node, Read, Step, Value
from ..uses import Uses, is_call


def product_epilogues(graph: Graph) -> Graph:
    """Merges products with their bias and GELU, as far as the backend has a kernel for both together."""
    return _Epilogues(graph).graph()


class _Epilogues:
    def __init__(self, graph: Graph):
        self._graph = graph
        self._lives = Uses(graph)
        self._nodes: list[Step | None] = list(graph.nodes)

    def graph(self) -> Graph:
        for position, node in enumerate(self._graph.nodes):
            if is_call(node, _gelu_tanh):
                self._bias_gelu(position, node)
            elif isinstance(node, Node) and node.call.primitive.gradient_of is _gelu_tanh:
                before, g = node.inputs
                self._replace(matmul_gelu_gradient, position, g, before, node.outputs)
        for position, left in enumerate(self._nodes):
            if is_call(left, add) and not self._is_fused(left.outputs[0]):
                self._bias(position, left)
        return replace(self._graph, nodes=[node for node in self._nodes if node is not None])

    def _bias_gelu(self, position: int, node: Any) -> None:
        """Merges x y + bias and its GELU; the sum stays a result, which backward reads."""
        (read,) = node.inputs
        added = self._lives.maker.get(read.value)
        if added is None or not _is_whole(read):
            return
        sum_ = self._nodes[added]
        if is_call(sum_, add):
            for product, bias in (sum_.inputs, sum_.inputs[::-1]):
                if self._replace(matmul_bias_gelu, added, product, bias, (*sum_.outputs, *node.outputs)):
                    self._nodes[position] = None
                    return

    def _bias(self, position: int, node: Any) -> None:
        for product, bias in (node.inputs, node.inputs[::-1]):
            if self._replace(matmul_bias, position, product, bias, node.outputs):
                return

    def _replace(self, made: Primitive, position: int, product: Any, more: Any, outputs: tuple[Value, ...]) -> bool:
        """Merges the node at a position with the product that it alone reads. Returns whether it could."""
        lives = self._lives
        maker = lives.maker.get(product.value) if isinstance(product, Read) else None
        node = None if maker is None else self._nodes[maker]
        if not (is_call(node, _matmul) and isinstance(more, Read)):
            return False
        (m, n), alone = node.call.out_shapes[0][-2:], lives.readers[product.value] == [position]
        shape, wanted = product.view.shape, (m, n) if made is matmul_gelu_gradient else (n,)
        along = more.view.shape == (shape if made is matmul_gelu_gradient else (n,)) and more.value is not product.value
        own = views.reshape(more.view, wanted) if along else None
        is_matrix = len(node.call.out_shapes[0]) == 2 and _is_whole(product)
        fits = is_matrix and shape[-1:] == (n,) and outputs[0].shape == shape  # () of a product of two vectors
        if not (fits and alone and product.value not in lives.kept and own is not None):
            return False
        operands = (*node.inputs, Read(more.value, own))
        # The product moves down to its reader, and must find its operands as they were.
        if any(lives.overwritten(x.value) < position for x in operands):
            return False
        shapes, dtypes = tuple(x.view.shape for x in operands), tuple(x.value.dtype for x in operands)
        call = Call(made, node.call.device, shapes, dtypes, {})
        # The library wants a bias at a multiple of 16 bytes: 8 elements of a half type.
        if len(set(dtypes)) > 1 or own.offset % 8 or call.device.backend.kernel(call) is None:
            return False
        line = self._graph.nodes[position].line
        self._nodes[position] = Node(call, operands, outputs, line, node.repetition)
        self._nodes[maker] = None  # type: ignore[index]
        return True

    def _is_fused(self, value: Value) -> bool:
        """Returns whether an elementwise kernel or a norm reads a value, and so can make it on the way."""
        readers = [self._graph.nodes[r] for r in self._lives.readers.get(value, ())]
        return any(r.call.primitive.cheap for r in readers if isinstance(r, Node))


def _is_whole(read: Read) -> bool:
    size = views.size(read.value.shape)
    return read.view.offset == 0 and views.is_contiguous(read.view) and views.size(read.view.shape) == size
