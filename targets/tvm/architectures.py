"""What ``--arch`` names: NVIDIA GPUs as compute capabilities (``sm_90``), x86 processors as levels (``x86-64-v3``)."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable, Mapping

from graphopt.errors import UnknownNameError

GPUS = (
    "sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121",
)  # fmt: skip
"""What CUDA 13 compiles for."""

_WITH_ARM = frozenset({"sm_87", "sm_110"})
"""Parts of chips with an Arm processor; machine code for others is not promised to run on them, or the reverse."""

DEFAULT_GPUS = ("sm_80", "sm_90")
"""Without ``--arch``, on a machine that has no GPU."""

PROCESSORS: Mapping[str, str] = {
    "x86-64-v4": "avx512f", "x86-64-v3": "avx2", "x86-64": "", "aarch64": "neon",
    "x86-64-v4+vnni": "avx512f+vnni", "x86-64-v3+vnni": "avx2+vnni",
}  # fmt: skip
"""The vector registers of each level of a processor (x86-64 psABI), and with products of bytes."""

_GPU = re.compile(r"(?:sm_|compute_)?(\d{1,2})\.?(\d)")


def gpus_of(text: str, known: Collection[str] = GPUS) -> tuple[str, ...]:
    """Compute capabilities, lowest first, from ``sm_80,sm_90``, ``90`` or ``9.0``.

    Args:
        known: Those that the compiler makes code for.

    Raises:
        UnknownNameError: One is none of these.
    """
    found = set()
    for part in (part.strip().lower() for part in text.split(",")):
        match = _GPU.fullmatch(part)
        name = f"sm_{match[1]}{match[2]}" if match is not None else part
        if match is None or name not in known:
            raise UnknownNameError(
                "CUDA architecture", part, sorted(known, key=number), hint="--arch sm_80,sm_90"
            )
        found.add(name)
    return tuple(sorted(found, key=number))


def processor_of(text: str) -> str:
    """The level of a processor as it is named here.

    Raises:
        UnknownNameError: No such level, or one of another kind of processor than this machine's.
    """
    known = [name for name in PROCESSORS if name.startswith("aarch64") == _is_arm()]
    if text.lower() not in known:
        raise UnknownNameError("processor level", text, known, hint=f"--arch {known[0]}")
    return text.lower()


def number(gpu: str) -> int:
    """80 of ``sm_80`` or ``compute_80``."""
    return int(gpu.rpartition("_")[2])


def code_for(device: int, made: Iterable[str]) -> str | None:
    """Which of the codes in a bundle a GPU runs; None where it runs none.

    Machine code runs on its own capability and higher ones of the same major number; PTX (``compute_90``) is compiled
    by the driver of any GPU that is not older (CUDA C++ Programming Guide, binary and PTX compatibility).

    Args:
        device: Compute capability, as 90.
        made: Names, as ``sm_90`` and ``compute_90``.
    """
    native = [name for name in made if name.startswith("sm_") and _runs_natively(device, number(name))]
    portable = [name for name in made if name.startswith("compute_") and number(name) <= device]
    return max(native or portable, key=number, default=None)


def nearest(device: int, known: Collection[str]) -> str | None:
    """What a compiler makes for a GPU: its own code, PTX where the GPU is newer than all it knows, None if too old."""
    own = f"sm_{device}"
    if own in known:
        return own
    older = [name for name in known if number(name) < device]
    return ptx_of(max(older, key=number)) if older else None


def ptx_of(gpu: str) -> str:
    """``compute_90``, the PTX of ``sm_90``: what the drivers of newer GPUs compile."""
    return gpu.replace("sm_", "compute_")


def gpus_here() -> tuple[str, ...]:
    """Those of :data:`GPUS` that computers with this kind of processor have."""
    return tuple(name for name in GPUS if _is_arm() or name not in _WITH_ARM)


def _is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def _runs_natively(device: int, code: int) -> bool:
    if {f"sm_{device}", f"sm_{code}"} & _WITH_ARM:
        return code == device
    return code // 10 == device // 10 and code <= device
