"""Neural networks: the names of all rooms of this package, of whichever floor. Floor 5."""

from . import init
from .containers import ModuleDict, ModuleList, Sequential
from .convolution import AvgPool2d, Conv1d, Conv2d, ConvTranspose2d, MaxPool2d
from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from .losses import CrossEntropyLoss, MSELoss
from .module import Module, Parameter

__all__ = [
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "Sequential",
    "init",
]
