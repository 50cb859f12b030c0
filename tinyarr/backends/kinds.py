"""The kinds of device that tinyarr knows. A backend is loaded when a device of its kind is first used. Floor 5."""

from __future__ import annotations

from typing import Any

from ..device import Device, register


def _cpu(device: Device) -> Any:
    from .c.backend import CpuBackend

    return CpuBackend(device)


def _cuda(device: Device) -> Any:
    from .. import cuda

    cuda.require(device.index)
    from .cuda.device.backend import CudaBackend

    return CudaBackend(device)


def _cuda_planner(like: str) -> Any:
    from .cuda.planning.planner import CudaPlanner

    return CudaPlanner()


def _meta(device: Device) -> Any:
    from .meta import MetaBackend

    return MetaBackend(device)


register("cpu", _cpu, planner=lambda like: Device("cpu").backend)
register("cuda", _cuda, numbered=True, planner=_cuda_planner)
register("meta", _meta)
