"""Products of bytes, added up in fours by one instruction (VNNI), as an intrinsic that loops can be matched with.

``vpdpbusd`` multiplies unsigned by signed bytes and adds four products to an int32, without saturation (Intel 64 and
IA-32 Architectures Software Developer's Manual, volume 2).
"""

from __future__ import annotations

from graphopt.targets.tvm.adapter import from_source, llvm_intrinsic, register_tensor_intrinsic
from graphopt.targets.tvm.lower.tiles import Vectors

_HEAD = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer(({lanes}, 4), "int8", offset_factor=1),
    C: T.Buffer(({lanes},), "int32", offset_factor=1, scope="local"),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:{lanes}], A[0:4], B[0:{lanes}, 0:4])
        T.writes(C[0:{lanes}])
"""
_MEANS = """
        for i in T.serial(0, {lanes}):
            for k in T.serial(0, 4):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")
"""
_IS = """
        C[T.ramp(T.int32(0), 1, {lanes})] = T.call_llvm_pure_intrin(
            {number},
            C.vload([0], dtype="int32x{lanes}"),
            T.reinterpret(
                T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), {lanes}), dtype="int8x{bytes}"
            ),
            B.vload([0, 0], dtype="int8x{bytes}"),
            dtype="int32x{lanes}",
        )
"""
_registered: dict[int, str] = {}


def dot_product(vectors: Vectors) -> str:
    """Name of the intrinsic that adds to one vector of int32; registered when it is first asked for."""
    lanes = vectors.lanes
    if lanes not in _registered:
        number = llvm_intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}")
        values = {"lanes": lanes, "bytes": 4 * lanes, "number": number}
        name = f"graphopt.dot_product_{lanes}"
        means, is_ = ((_HEAD + body).format(**values) for body in (_MEANS, _IS))
        register_tensor_intrinsic(name, from_source(means), from_source(is_))
        _registered[lanes] = name
    return _registered[lanes]
