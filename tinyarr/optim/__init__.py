"""Optimizers, schedulers, clipping, averages of weights: the names of all rooms of this package. Floor 5."""

from .adamw import AdamW
from .adaptive import Adagrad, Adam, RMSprop
from .averaging import ExponentialMovingAverage
from .clipping import clip_grad_norm, grad_norm
from .lbfgs import LBFGS
from .momentum import SGD, Lion
from .muon import Muon
from .optimizer import Optimizer
from .scheduler import Scheduler

__all__ = [
    "LBFGS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "ExponentialMovingAverage",
    "Lion",
    "Muon",
    "Optimizer",
    "RMSprop",
    "Scheduler",
    "clip_grad_norm",
    "grad_norm",
]
