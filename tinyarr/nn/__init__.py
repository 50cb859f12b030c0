"""Neural networks: Module and Parameter, layers, initial values, losses. Floor 1."""

from . import init
from .layers import Dropout, Embedding, LayerNorm, Linear, ModuleDict, ModuleList, RMSNorm, Sequential
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
