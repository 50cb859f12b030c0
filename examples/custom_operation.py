"""An operation of your own, here a convolution: its rule of shapes, its meaning, its gradient, a C and a CUDA kernel.

Prints that gradcheck accepts its gradient and the gradient of that, and how far the C kernel is from the plain meaning.
"""

import numpy as np

import tinyarr
from tinyarr import concat, einsum, flip, swapaxes, zeros
from tinyarr.backends.cpu import c_compiler
from tinyarr.backends.cpu.registry import kernel as cpu_kernel
from tinyarr.backends.cuda import registry as cuda
from tinyarr.errors import ShapeError
from tinyarr.ops.primitive import Primitive, apply
from tinyarr.testing import gradcheck, gradgradcheck

# One element of the result, in a language that both C and CUDA speak.
ELEMENT = """
    int q = i % Q, p = i / Q % P, m = i / (Q * P) % M, b = i / (Q * P * M);
    T sum = 0;
    for (int c = 0; c < C; c++)
        for (int k = 0; k < K; k++)
            for (int l = 0; l < L; l++)
                sum += x[((b * C + c) * H + p + k) * W + q + l] * w[((m * C + c) * K + k) * L + l];
    out[i] = sum;
"""
ARGUMENTS = "int n, int C, int H, int W, int M, int K, int L, int P, int Q"
C_SOURCE = f"""void conv2d(T *out, const T *x, const T *w, {ARGUMENTS})
{{ for (int i = 0; i < n; i++) {{ {ELEMENT} }} }}"""
CUDA_SOURCE = f"""extern "C" __global__ void conv2d(T *out, const T *x, const T *w, {ARGUMENTS})
{{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) {{ {ELEMENT} }} }}"""


def infer(shapes, dtypes):
    """x (B, C, H, W), w (M, C, K, L): (B, M, H - K + 1, W - L + 1)."""
    (B, C, H, W), (M, channels, K, L) = shapes
    if channels != C or H < K or W < L:
        raise ShapeError(f"conv2d: x has shape {shapes[0]}, w has shape {shapes[1]}: x must have w's channels and size")
    return [((B, M, H - K + 1, W - L + 1), dtypes[0])]


def plain(x, w):
    """The meaning in other operations: the sum over the window of a shifted image times a matrix of channels."""
    K, L = w.shape[2:]
    P, Q = x.shape[2] - K + 1, x.shape[3] - L + 1
    parts = [einsum("bchw,mc->bmhw", x[:, :, k : k + P, n : n + Q], w[:, :, k, n]) for k in range(K) for n in range(L)]
    return tinyarr.sum(tinyarr.stack(parts), axis=0)


conv2d = Primitive("conv2d", infer, inputs=("x", "w"), composite=plain)


def padded(x, rows, columns):
    """x (B, C, H, W) with zeros around each image."""
    for axis, n in ((2, rows), (3, columns)):
        edge = zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), dtype=x.dtype)
        x = concat([edge, x, edge], axis=axis)
    return x


@conv2d.gradient
def gradient(g, x, w):
    """Both gradients are convolutions themselves, and so differentiable again."""
    dx = apply(conv2d, padded(g, w.shape[2] - 1, w.shape[3] - 1), swapaxes(flip(w, axis=(2, 3)), 0, 1))
    dw = swapaxes(apply(conv2d, swapaxes(x, 0, 1), swapaxes(g, 0, 1)), 0, 1)
    return dx, dw


def sizes(x, w, out):
    return [np.int32(n) for n in (np.prod(out.shape), *x.shape[1:], w.shape[0], *w.shape[2:], *out.shape[2:])]


libraries = {t: c_compiler.load(f"typedef {t} T;\n{C_SOURCE}") for t in ("float", "double")}


@cpu_kernel("conv2d", layouts="dense")
def on_cpu(x, w, out):
    library = libraries["float" if out.dtype == np.float32 else "double"]
    library.conv2d(*(np.ctypeslib.as_ctypes(a.reshape(-1)) for a in (out, x, w)), *map(int, sizes(x, w, out)))


@cuda.kernel("conv2d", layouts="dense")
def on_cuda(inputs, outputs):
    (x, w), (out,) = inputs, outputs
    source = cuda.Source((), (("T", "float" if out.dtype is tinyarr.float32 else "double"),), CUDA_SOURCE)
    arguments = (cuda.Output(0), cuda.Input(0), cuda.Input(1), *sizes(x, w, out))
    return cuda.Plan([cuda.Launch(source, "conv2d", (-(-int(arguments[3]) // 256), 1, 1), (256, 1, 1), arguments)])


tinyarr.manual_seed(0)
x, w = (tinyarr.randn(*shape, dtype=tinyarr.float64) for shape in ((2, 3, 5, 6), (4, 3, 2, 3)))
print("gradcheck:    ", gradcheck(lambda x, w: apply(conv2d, x, w), x, w))
print("gradgradcheck:", gradgradcheck(lambda x, w: apply(conv2d, x, w), x, w))
x, w = x.astype(tinyarr.float32), w.astype(tinyarr.float32)
difference = abs(apply(conv2d, x, w) - plain(x, w)).max()
print(f"the C kernel differs from the plain meaning by {difference.item():.1e}")
