"""The NVIDIA GPU of this machine, asked of its driver: no package is needed for it."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (CUDA Driver API)."""


@dataclass(frozen=True)
class Gpu:
    """A device.

    Attributes:
        name: As its maker calls it.
        capability: 90 for compute capability 9.0.
    """

    name: str
    capability: int

    @property
    def architecture(self) -> str:
        """As ``--arch`` names it."""
        return f"sm_{self.capability}"


@functools.cache
def first_gpu() -> Gpu | None:
    """The first device; None where there is none, or no driver."""
    driver = _driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        numbers.append(number.value)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), 10 * numbers[0] + numbers[1])


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
