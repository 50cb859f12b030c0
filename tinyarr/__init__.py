"""tinyarr: arrays, automatic differentiation, and models trained with them, small enough to read. Floor 5."""

import importlib as _importlib

from . import dtypes, nn, optim, random, schedule
from . import methods as _methods  # gives Tensor its methods
from .autograd import gradients
from .backends import kinds as _kinds  # registers cpu, cuda and meta
from .device import Device, default_device, memory_stats, use_device
from .dtypes import (
    bfloat16,
    bool,
    can_cast,
    finfo,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    isdtype,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .interchange import asarray, from_dlpack
from .namespace import VERSION as __array_api_version__
from .namespace import __array_namespace_info__
from .ops import row
from .ops.activation import gelu, leaky_relu, relu, sigmoid, silu, softplus
from .ops.attention import scaled_dot_product_attention
from .ops.create import (
    arange,
    copy,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from .ops.elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    astype,
    atan,
    atan2,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clip,
    copysign,
    cos,
    cosh,
    divide,
    equal,
    erf,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    hypot,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    nextafter,
    not_equal,
    positive,
    pow,
    reciprocal,
    remainder,
    round,
    rsqrt,
    sign,
    signbit,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
    where,
)
from .ops.elementwise_primitive import elementwise
from .ops.index import embedding, one_hot, take, take_along_axis
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.loss import cross_entropy
from .ops.matmul import linear, matmul, scaled_matmul
from .ops.more.convolution import conv1d, conv2d, conv_transpose2d, fold, unfold
from .ops.more.exponentials import logaddexp
from .ops.more.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from .ops.more.masking import masked_fill
from .ops.more.pooling import avg_pool2d, max_pool2d
from .ops.more.rotary import rotary_embedding
from .ops.more.sampling import multinomial, rand_like, randn_like, randperm
from .ops.more.scan import cumulative_prod, cumulative_sum, diff
from .ops.more.slices import flip, unstack
from .ops.more.sort import argsort, nonzero, searchsorted, sort, topk
from .ops.more.spacing import eye, linspace
from .ops.more.statistics import std, var, vector_norm
from .ops.more.tiling import broadcast_arrays, meshgrid, pad, repeat, roll, tile, tril, triu
from .ops.norm import layer_norm, rms_norm
from .ops.random import dropout, normal, rand, randint, randn, random_bits, uniform
from .ops.reduce import all, any, argmax, argmin, count_nonzero, max, mean, min, prod, sum
from .ops.rowwise import rowwise
from .ops.shape import (
    broadcast_to,
    concat,
    expand_dims,
    matrix_transpose,
    moveaxis,
    permute_dims,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
)
from .ops.softmax import log_softmax, logsumexp, softmax
from .other_names import FUNCTIONS as _OTHER_NAMES
from .other_names import SAME as _SAME
from .other_names import explained as _explained
from .other_names import missing as _missing
from .other_names import takes_axis as _takes_axis
from .random import Generator, default_generator, manual_seed, use_generator
from .tape import detect_anomaly, enable_grad, no_grad
from .tensor import Tensor
from .transforms import checkpoint, custom_gradient, vjp

e, inf, nan, pi = 2.718281828459045, float("inf"), float("nan"), 3.141592653589793
newaxis = None
__version__ = "0.1.0"

_LATER = {  # by module what no tensor needs, which is imported when it is first used
    "compiler": "compile",
    "derivatives": "grad hessian jacobian jvp value_and_grad",
    "tree_files": "load save",
    "ops.more.einsum": "einsum outer tensordot vecdot",
    "ops.more.similarity": "cosine_similarity",
    "ops.more.sets": "isin unique_all unique_counts unique_inverse unique_values",
    "batching.mapping": "vmap",
    "stateless": "functional_call",
    "": "compiler cuda data distributed saving testing tuning",  # modules themselves
}
_MODULES = {name: module for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str):
    if name in _MODULES:
        module = _importlib.import_module(f".{_MODULES[name] or name}", __name__)
        value = globals()[name] = getattr(module, name) if _MODULES[name] else module
        if _takes_axis(value) or name in _EXPLAINED:
            globals()[name] = _explained(value)
        return globals()[name]
    if name in _SAME:
        return _SAME[name]
    _missing("tinyarr", _OTHER_NAMES, name)


_EXPLAINED = """binary_cross_entropy binary_cross_entropy_with_logits compile cross_entropy enable_grad grad huber_loss
    l1_loss linspace load mse_loss multinomial nll_loss no_grad nonzero normal randint scaled_dot_product_attention
    smooth_l1_loss tril triu uniform value_and_grad vmap""".split()
for _name, _value in list(globals().items()):
    if _takes_axis(_value) or _name in _EXPLAINED:
        globals()[_name] = _explained(_value)
    elif _name in ("tensor", "array", "device"):  # modules with names of PyTorch's functions
        del globals()[_name]

__all__ = [name for name in [*globals(), *_MODULES] if not name.startswith("_")] + ["__array_namespace_info__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
