"""Tensor's methods: each is a public function of another module, or an operator of Python's. Floor 5.

Only those that say what to write in place of another library's name are missing: see other_names.py.
"""

from __future__ import annotations

from . import autograd, indexing, interchange
from .ops import activation, assign, create, elementwise, index, matmul, random, reduce, shape, softmax
from .ops.more import in_place, masking, sampling, scan, slices, sort, statistics, tiling  # fmt: skip
from .ops.operators import OPERATORS
from .tensor import Tensor, add_methods

# Elementwise operations, by their own names.
add_methods(**{
    operation.name: operation
    for operation in (
        elementwise.abs, elementwise.sign, elementwise.floor, elementwise.ceil, elementwise.trunc, elementwise.round,
        elementwise.sqrt, elementwise.exp, elementwise.expm1, elementwise.log, elementwise.log1p, elementwise.log2,
        elementwise.log10, elementwise.sin, elementwise.cos, elementwise.tan, elementwise.asin, elementwise.acos,
        elementwise.atan, elementwise.sinh, elementwise.cosh, elementwise.tanh, elementwise.asinh, elementwise.acosh,
        elementwise.atanh, elementwise.erf, elementwise.maximum, elementwise.minimum, elementwise.isnan,
        elementwise.isinf, elementwise.isfinite, elementwise.reciprocal, elementwise.square, elementwise.rsqrt,
        activation.relu, activation.sigmoid, activation.silu, activation.softplus,
    )
})  # fmt: skip
add_methods(
    astype=elementwise.astype, positive=elementwise.positive, clip=elementwise.clip,
    leaky_relu=activation.leaky_relu, gelu=activation.gelu, dropout=random.dropout,
)  # fmt: skip

# Operations on axes and shapes.
add_methods(
    reshape=shape.reshape, permute_dims=shape.permute_dims, broadcast_to=shape.broadcast_to, swapaxes=shape.swapaxes,
    expand_dims=shape.expand_dims, squeeze=shape.squeeze, flip=slices.flip, split=shape.split, unstack=slices.unstack,
    moveaxis=shape.moveaxis, T=property(shape.transposed), mT=property(shape.matrix_transpose),
    roll=tiling.roll, tile=tiling.tile, repeat=tiling.repeat,
    sum=reduce.sum, prod=reduce.prod, count_nonzero=reduce.count_nonzero, any=reduce.any, all=reduce.all,
    max=reduce.max, min=reduce.min, argmax=reduce.argmax, argmin=reduce.argmin,
    mean=reduce.mean, var=statistics.var, std=statistics.std, vector_norm=statistics.vector_norm,
    softmax=softmax.softmax, log_softmax=softmax.log_softmax, logsumexp=softmax.logsumexp,
    cumulative_sum=scan.cumulative_sum, cumulative_prod=scan.cumulative_prod, diff=scan.diff,
    argsort=sort.argsort, sort=sort.sort, topk=sort.topk, nonzero=sort.nonzero,
)  # fmt: skip

# Products, and elements at positions.
add_methods(
    matmul=matmul.matmul, linear=matmul.linear, take=index.take, embedding=index.embedding,
    take_along_axis=index.take_along_axis, one_hot=index.one_hot,
    masked_fill=masking.masked_fill, multinomial=sampling.multinomial,
    __getitem__=indexing.getitem, __setitem__=indexing.setitem, __iter__=indexing.iterate,
)  # fmt: skip
add_methods(**OPERATORS)

# Writes.
add_methods(
    assign=assign.assign, copy_=assign.assign, fill_=assign.assign, zero_=in_place.zero_,
    add_=in_place.add_, sub_=in_place.sub_, mul_=in_place.mul_, div_=in_place.div_, lerp_=in_place.lerp_,
    clamp_=in_place.clamp_, masked_fill_=in_place.masked_fill_, normal_=in_place.normal_, uniform_=in_place.uniform_,
    requires_grad_=in_place.requires_grad_, data=property(Tensor.detach, in_place.refuse_data),
)  # fmt: skip

# Memory, and gradients.
add_methods(
    __init__=interchange.initialize, clone=create.copy, contiguous=create.contiguous,
    to=interchange.to, to_device=interchange.to_device, copy_to_host_async=interchange.copy_to_host_async,
    __copy__=interchange.copied, __deepcopy__=interchange.copied, __reduce__=interchange.reduced,
    backward=autograd.backward, register_hook=autograd.register_hook, retain_grad=autograd.retain_grad,
)  # fmt: skip

# Python's values, text, and other libraries' arrays.
add_methods(
    numel=interchange.numel, item=interchange.item, tolist=interchange.tolist, numpy=interchange.to_numpy,
    __float__=lambda self: float(self.item()), __complex__=lambda self: complex(self.item()),
    __int__=lambda self: int(self.item()), __index__=interchange.as_index,
    __round__=interchange.rounded,
    __repr__=interchange.shown, __format__=interchange.formatted,
    __array__=interchange.as_numpy_array, __array_namespace__=interchange.array_namespace,
    __dlpack__=interchange.to_dlpack, __dlpack_device__=interchange.dlpack_device,
)  # fmt: skip
