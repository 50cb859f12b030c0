"""An operation of your own, here a convolution: its meaning, and a C and a CUDA kernel.

Prints that gradcheck accepts its gradient and the gradient of that, and how far the C kernel is from the plain meaning.
"""

import numpy as np

import tinyarr
from tinyarr import einsum
from tinyarr.backends.c import compiler
from tinyarr.backends.cuda.planning import registry as cuda
from tinyarr.backends.numpy.registry import kernel as cpu_kernel
from tinyarr.errors import ShapeError
from tinyarr.ops.fused import fused
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


@fused
def conv2d(x, w):
    """x (B, C, H, W), w (M, C, K, L): the sum over the window of a shifted image times a matrix of channels.

    This is what the operation means. Its rule of shapes and its gradients, of any order, are derived from it, and it is
    what runs where there is no kernel.
    """
    (C, H, W), (channels, K, L) = x.shape[1:], w.shape[1:]
    if channels != C or H < K or W < L:
        raise ShapeError(f"conv2d: x has shape {x.shape}, w has shape {w.shape}: x must have w's channels and size")
    P, Q = H - K + 1, W - L + 1
    parts = [einsum("bchw,mc->bmhw", x[:, :, k : k + P, n : n + Q], w[:, :, k, n]) for k in range(K) for n in range(L)]
    return tinyarr.sum(tinyarr.stack(parts), axis=0)


def sizes(x, w, out):
    return [np.int32(n) for n in (np.prod(out.shape), *x.shape[1:], w.shape[0], *w.shape[2:], *out.shape[2:])]


libraries = {t: compiler.load(f"typedef {t} T;\n{C_SOURCE}") for t in ("float", "double")}


@cpu_kernel("conv2d", layouts="dense")
def on_cpu(x, w, out):
    library = libraries["float" if out.dtype == np.float32 else "double"]
    library.conv2d(*(np.ctypeslib.as_ctypes(a.reshape(-1)) for a in (out, x, w)), *map(int, sizes(x, w, out)))


@cuda.kernel("conv2d", layouts="dense")
def on_cuda(inputs, outputs):
    (x, w), (out,) = inputs, outputs
    source = cuda.Source((), (("T", "float" if out.dtype is tinyarr.float32 else "double"),), CUDA_SOURCE)
    arguments = (cuda.Output(0), cuda.Input(0), cuda.Input(1), *sizes(x, w, out))
    return cuda.LaunchPlan(
        [cuda.Launch(source, "conv2d", (-(-int(arguments[3]) // 256), 1, 1), (256, 1, 1), arguments)]
    )


tinyarr.manual_seed(0)
x, w = (tinyarr.randn(*shape, dtype=tinyarr.float64) for shape in ((2, 3, 5, 6), (4, 3, 2, 3)))
print("gradcheck:    ", gradcheck(conv2d, x, w))
print("gradgradcheck:", gradgradcheck(conv2d, x, w))
x, w = x.astype(tinyarr.float32), w.astype(tinyarr.float32)
difference = abs(conv2d(x, w) - conv2d.composite(x, w)).max()
print(f"the C kernel differs from the plain meaning by {difference.item():.1e}")
