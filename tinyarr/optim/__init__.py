"""Optimizers, clipping and averages of weights: the names of all rooms of this package, of whichever floor. Floor 5."""

from .adamw import AdamW
from .adaptive import Adagrad, Adam, RMSprop
from .clipping import clip_grad_norm, grad_norm
from .momentum import SGD, Lion
from .optimizer import Optimizer

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Optimizer", "RMSprop", "clip_grad_norm", "grad_norm"]
