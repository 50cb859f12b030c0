"""Base of optimizers that leave out state which no group's options need. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ArgumentError
from .optimizer import Optimizer, parameter_groups


class OptionalState(Optimizer):
    """Optimizer whose state `needed_by` names the option of, as a velocity needs a momentum, is kept if a group has it.

    The formula gets None for what is not kept. Raises ArgumentError where such an option is to be written later.
    """

    needed_by: dict[str, str] = {}

    def __init__(self, parameters: Iterable[Any], lr: float, defaults: dict[str, Any]):
        groups = parameter_groups(parameters, type(self).__name__)
        given = [defaults, *(group for group in groups if isinstance(group, dict))]
        needed = {name for name, option in self.needed_by.items() if any(options.get(option) for options in given)}
        self.state_names = tuple(name for name in self.state_names if name in needed or name not in self.needed_by)
        super().__init__(groups, lr, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        for name, option in self.needed_by.items():
            if name not in self.state_names and options.get(option):
                came = f"{option} is {options[option]}, and the optimizer was made without it and keeps no {name}"
                raise ArgumentError(f"{type(self).__name__}: {came}: make another")
