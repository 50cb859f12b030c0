"""Modules beside torch's in float64: its state_dict loads, and outputs, gradients and buffers are the same."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, nn

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


LABELS = np.array([2, 0, -100, 1])
CASES = {  # name: (makes ours, makes torch's, arrays)
    "Linear": (lambda **d: nn.Linear(3, 4, **d), lambda t, **d: t.Linear(3, 4, **d), [normal(2, 3)]),
    "LayerNorm": (lambda **d: nn.LayerNorm(3, **d), lambda t, **d: t.LayerNorm(3, **d), [normal(2, 3)]),
    "LayerNorm without bias": (
        lambda **d: nn.LayerNorm(3, bias=False, **d), lambda t, **d: t.LayerNorm(3, bias=False, **d), [normal(2, 3)],
    ),
    "LayerNorm over axes": (
        lambda **d: nn.LayerNorm((4, 3), eps=0.1, **d), lambda t, **d: t.LayerNorm((4, 3), eps=0.1, **d),
        [normal(2, 5, 4, 3)],
    ),
    "LayerNorm over all axes without bias": (
        lambda **d: nn.LayerNorm([2, 3], bias=False, **d), lambda t, **d: t.LayerNorm([2, 3], bias=False, **d),
        [normal(2, 3)],
    ),
    "RMSNorm": (lambda **d: nn.RMSNorm(3, **d), lambda t, **d: t.RMSNorm(3, **d), [normal(2, 3)]),
    "BatchNorm1d": (lambda **d: nn.BatchNorm1d(3, **d), lambda t, **d: t.BatchNorm1d(3, **d), [normal(5, 3)]),
    "BatchNorm1d over time": (
        lambda **d: nn.BatchNorm1d(3, eps=0.1, momentum=None, **d),
        lambda t, **d: t.BatchNorm1d(3, eps=0.1, momentum=None, **d), [normal(5, 3, 4)],
    ),
    "BatchNorm2d": (
        lambda **d: nn.BatchNorm2d(3, momentum=0.3, **d), lambda t, **d: t.BatchNorm2d(3, momentum=0.3, **d),
        [normal(2, 3, 4, 5)],
    ),
    "BatchNorm2d, neither affine nor tracked": (
        lambda **d: nn.BatchNorm2d(3, affine=False, track_running_stats=False, **d),
        lambda t, **d: t.BatchNorm2d(3, affine=False, track_running_stats=False, **d), [normal(2, 3, 4, 5)],
    ),
    "GroupNorm": (lambda **d: nn.GroupNorm(2, 6, **d), lambda t, **d: t.GroupNorm(2, 6, **d), [normal(3, 6, 4, 2)]),
    "GroupNorm, not affine": (
        lambda **d: nn.GroupNorm(3, 6, eps=0.1, affine=False, **d),
        lambda t, **d: t.GroupNorm(3, 6, eps=0.1, affine=False, **d), [normal(3, 6)],
    ),
}  # fmt: skip
for _name in ("RNN", "GRU", "LSTM"):
    CASES |= {
        _name: (
            lambda n=_name, **d: getattr(nn, n)(3, 4, **d), lambda t, n=_name, **d: getattr(t, n)(3, 4, **d),
            [normal(5, 2, 3)],
        ),
        f"{_name} in layers and both directions": (
            lambda n=_name, **d: getattr(nn, n)(3, 4, 2, batch_first=True, bidirectional=True, **d),
            lambda t, n=_name, **d: getattr(t, n)(3, 4, 2, batch_first=True, bidirectional=True, **d),
            [normal(5, 2, 3)],
        ),
        f"{_name} without bias, without a batch": (
            lambda n=_name, **d: getattr(nn, n)(3, 4, bias=False, **d),
            lambda t, n=_name, **d: getattr(t, n)(3, 4, bias=False, **d), [normal(5, 3)],
        ),
        f"{_name}Cell": (
            lambda n=_name, **d: getattr(nn, f"{n}Cell")(3, 4, **d),
            lambda t, n=_name, **d: getattr(t, f"{n}Cell")(3, 4, **d), [normal(2, 3)],
        ),
    }  # fmt: skip
for _name in ("RNN", "GRU"):
    CASES[f"{_name} from a state"] = (
        lambda n=_name, **d: getattr(nn, n)(3, 4, 2, **d), lambda t, n=_name, **d: getattr(t, n)(3, 4, 2, **d),
        [normal(5, 2, 3), normal(2, 2, 4)],
    )  # fmt: skip
CASES["RNN of relu"] = (
    lambda **d: nn.RNN(3, 4, nonlinearity="relu", **d), lambda t, **d: t.RNN(3, 4, nonlinearity="relu", **d),
    [normal(5, 2, 3)],
)  # fmt: skip
for _name in "ReLU LeakyReLU GELU SiLU Sigmoid Softplus Tanh Identity".split():
    CASES[_name] = (lambda n=_name, **d: getattr(nn, n)(), lambda t, n=_name, **d: getattr(t, n)(), [normal(9)])
CASES |= {
    "Softmax": (lambda **d: nn.Softmax(1), lambda t, **d: t.Softmax(1), [normal(2, 3, 2)]),
    "LogSoftmax": (lambda **d: nn.LogSoftmax(1), lambda t, **d: t.LogSoftmax(1), [normal(2, 3, 2)]),
    "Flatten": (lambda **d: nn.Flatten(), lambda t, **d: t.Flatten(), [normal(2, 3, 2)]),
    "Flatten some": (lambda **d: nn.Flatten(0, 1), lambda t, **d: t.Flatten(0, 1), [normal(2, 3, 2)]),
    "CrossEntropyLoss": (
        lambda **d: nn.CrossEntropyLoss(ta.ones(3, **d) * 2, label_smoothing=0.2),
        lambda t, **d: t.CrossEntropyLoss(torch_of([2.0] * 3), label_smoothing=0.2), [normal(4, 3), LABELS],
    ),
    "NLLLoss": (
        lambda **d: nn.NLLLoss(Tensor([1.0, 2.0, 3.0], **d), reduction="sum"),
        lambda t, **d: t.NLLLoss(torch_of([1.0, 2.0, 3.0]), reduction="sum"), [normal(4, 3), LABELS],
    ),
    "BCEWithLogitsLoss": (
        lambda **d: nn.BCEWithLogitsLoss(pos_weight=Tensor([1.0, 2.0, 3.0], **d)),
        lambda t, **d: t.BCEWithLogitsLoss(pos_weight=torch_of([1.0, 2.0, 3.0])), [normal(4, 3), RNG.random((4, 3))],
    ),
}  # fmt: skip
for _name in "MSELoss L1Loss HuberLoss SmoothL1Loss".split():
    for _reduction in ("mean", "sum", "none"):
        CASES[f"{_name} {_reduction}"] = (
            lambda n=_name, r=_reduction, **d: getattr(nn, n)(reduction=r),
            lambda t, n=_name, r=_reduction, **d: getattr(t, n)(reduction=r), [normal(2, 3), normal(2, 3)],
        )  # fmt: skip
CASES["BCELoss"] = (lambda **d: nn.BCELoss(), lambda t, **d: t.BCELoss(), [RNG.random((2, 3)), RNG.random((2, 3))])


def torch_of(x):
    import torch

    return torch.tensor(np.array(x), requires_grad=False)


def flat(results):
    """All tensors of nested tuples."""
    return [t for r in results for t in flat(r)] if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_torch_s_state_loads_and_gives_torch_s_results(name, training):
    import torch

    torch.manual_seed(0)
    make, make_theirs, arrays = CASES[name]
    ours, theirs = make(dtype=ta.float64), make_theirs(torch.nn, dtype=torch.float64)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({key: t.detach().numpy() for key, t in theirs.state_dict().items()})
    ours.train(training), theirs.train(training)
    inputs = [Tensor(x, requires_grad=x.dtype == np.float64) for x in arrays]
    others = [torch.tensor(x, requires_grad=x.dtype == np.float64) for x in arrays]
    for _ in range(3):  # later calls begin with buffers that the first has changed
        found, expected = flat(ours(*inputs)), flat(theirs(*others))
    assert len(found) == len(expected)
    total, total_of_theirs = 0.0, 0.0
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x.numpy(), y.detach().numpy(), rtol=1e-12, atol=1e-13)
        g = np.random.default_rng(1).normal(size=x.shape)
        total, total_of_theirs = total + (x * Tensor(g)).sum(), total_of_theirs + (y * torch.tensor(g)).sum()
    total.backward()
    total_of_theirs.backward()
    for key, t in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key].numpy(), t.numpy(), rtol=1e-12, atol=1e-13, err_msg=key)
    gradients = [(key, p, dict(theirs.named_parameters())[key]) for key, p in ours.named_parameters()]
    for key, x, y in [*gradients, *(("input", x, y) for x, y in zip(inputs, others) if x.requires_grad)]:
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-11, atol=1e-12, err_msg=key)
