"""Neural networks: the names of all rooms of this package, of whichever floor. Floor 5."""

from . import init
from .containers import ModuleDict, ModuleList, Sequential
from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from .losses import CrossEntropyLoss, MSELoss
from .module import Module, Parameter

__all__ = [
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "Sequential",
    "init",
]
