"""Similarity of vectors. Floor 5."""

from __future__ import annotations

from ... import views
from ...tensor import Tensor, require_tensors
from ..elementwise import astype, maximum
from ..reduce import sum
from ..shape import broadcast_to
from .statistics import vector_norm


def cosine_similarity(x1: Tensor, x2: Tensor, *, axis: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors along an axis, x1 . x2 / (max(|x1|, eps) max(|x2|, eps)).

    The shapes broadcast and lose the axis, which is 1 unless given, as in PyTorch. Half types are computed in float32.
    """
    require_tensors("cosine_similarity", x1=x1, x2=x2)
    shape = views.broadcast_shapes("cosine_similarity", x1.shape, x2.shape)
    axis = views.normalize_axis("cosine_similarity", axis, len(shape))

    def unit(x: Tensor) -> Tensor:
        wide = broadcast_to(astype(x, x.dtype.compute, copy=False), shape)
        return wide / maximum(vector_norm(wide, axis=axis, keepdims=True), eps)

    return astype(sum(unit(x1) * unit(x2), axis=axis), (x1 * 1.0).dtype, copy=False)
