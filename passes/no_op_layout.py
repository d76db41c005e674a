"""an operator that moves or pads nothing  ==>  its input

Forms: Transpose that keeps the order; Reshape, Flatten, Expand to the shape that is there; Squeeze, Unsqueeze
of no axis; Slice of everything; Pad by 0; Tile by 1; Concat of one; Split into one; Resize by 1; MaxPool,
AveragePool with a 1 x 1 window; GlobalAveragePool and reductions over dimensions of size 1; DepthToSpace,
SpaceToDepth by blocks of 1. tf2onnx, Paddle and PyTorch write all of these for layers whose parameters happen
to do nothing.

Refuses: nothing; where the shapes do not prove that nothing happens, it does not match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Numerics, Rewrite

_WHOLE = 2**31 - 1


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _transpose(node: ir.Node, x: ir.Value) -> bool:
    perm = facts.attribute(node, "perm")
    if perm is None:
        rank = facts.rank(x)
        return rank is not None and rank <= 1
    return tuple(perm) == tuple(range(len(perm)))


def _same_shape(node: ir.Node, x: ir.Value) -> bool:
    return facts.same_shape(x, node.outputs[0])


def _reshape(node: ir.Node, x: ir.Value) -> bool:
    if _same_shape(node, x):
        return True
    target, shape = facts.ints(_input(node, 1)), facts.dims(x)
    if target is None or shape is None or len(target) != len(shape):
        return False
    zero_copies = not facts.attribute(node, "allowzero", 0)
    kept = [
        wanted == dim if wanted > 0 else (wanted == 0 and (zero_copies or dim == 0))
        for wanted, dim in zip(target, shape, strict=True)
    ]
    # One dimension that the others leave no choice: it is what it was, unless the tensor is empty.
    return all(kept) or (
        target.count(-1) == 1 and kept.count(False) == 1 and (0 not in shape or 0 not in target)
    )


def _flatten(node: ir.Node, x: ir.Value) -> bool:
    return _same_shape(node, x) or (facts.rank(x) == 2 and facts.attribute(node, "axis", 1) in (1, -1))


def _expand(node: ir.Node, x: ir.Value) -> bool:
    if _same_shape(node, x):
        return True
    target, shape = facts.ints(_input(node, 1)), facts.dims(x)
    if target is None:
        return False
    if not target or shape is None or len(target) > len(shape):
        return not target
    aligned = shape[len(shape) - len(target) :]
    return all(wanted in (1, dim) for wanted, dim in zip(target, aligned, strict=True))


def _squeeze(node: ir.Node, x: ir.Value) -> bool:
    shape = facts.static_dims(x)
    return _input(node, 1) is None and shape is not None and 1 not in shape


def _unsqueeze(node: ir.Node, x: ir.Value) -> bool:
    del x
    return facts.ints(_input(node, 1)) == ()


def _slice(node: ir.Node, x: ir.Value) -> bool:
    starts, ends = facts.ints(_input(node, 1)), facts.ints(_input(node, 2))
    steps = facts.ints(_input(node, 4)) if _input(node, 4) is not None else ()
    if steps is None or any(step != 1 for step in steps):
        return False
    shape = facts.static_dims(x)
    if shape is not None and facts.static_dims(node.outputs[0]) == shape:
        return True
    return (
        starts is not None
        and ends is not None
        and all(start == 0 for start in starts)
        and all(end >= _WHOLE for end in ends)
    )


def _pad(node: ir.Node, x: ir.Value) -> bool:
    del x
    pads = facts.ints(_input(node, 1))
    return pads is not None and not any(pads)


def _tile(node: ir.Node, x: ir.Value) -> bool:
    del x
    repeats = facts.ints(_input(node, 1))
    return repeats is not None and all(repeat == 1 for repeat in repeats)


def _concat(node: ir.Node, x: ir.Value) -> bool:
    del x
    return len(node.inputs) == 1


def _split(node: ir.Node, x: ir.Value) -> bool:
    del x
    return len(node.outputs) == 1


def _resize(node: ir.Node, x: ir.Value) -> bool:
    if facts.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    if facts.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    scales = facts.constant(_input(node, 2))
    if scales is not None and scales.size:
        return bool((scales == 1.0).all())
    shape = facts.static_dims(x)
    return shape is not None and shape == facts.static_dims(node.outputs[0])


def _pool(node: ir.Node, x: ir.Value) -> bool:
    del x
    return (
        all(size == 1 for size in facts.attribute(node, "kernel_shape", (0,)))
        and all(stride == 1 for stride in facts.attribute(node, "strides", ()))
        and not windows.is_padded(node)
    )


def _global_pool(node: ir.Node, x: ir.Value) -> bool:
    del node
    shape = facts.dims(x)
    return shape is not None and len(shape) > 2 and all(dim == 1 for dim in shape[2:])


def _reduce(node: ir.Node, x: ir.Value) -> bool:
    axes, shape = facts.ints(_input(node, 1)), facts.dims(x)
    if _input(node, 1) is None or axes == ():
        if facts.attribute(node, "noop_with_empty_axes", 0):
            return True
        axes = tuple(range(len(shape))) if shape is not None else None
    if axes is None or shape is None or not facts.attribute(node, "keepdims", 1):
        return False
    return all(shape[axis] == 1 for axis in axes)


def _blocks(node: ir.Node, x: ir.Value) -> bool:
    del x
    return bool(facts.attribute(node, "blocksize", 0) == 1)


_NOTHING_HAPPENS: dict[str, Callable[[ir.Node, ir.Value], bool]] = {
    "AveragePool": _pool,
    "Concat": _concat,
    "DepthToSpace": _blocks,
    "Expand": _expand,
    "Flatten": _flatten,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _pool,
    "Pad": _pad,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


class NoOpLayout(Rewrite):
    """Operators that move, pad, resample or reduce nothing."""

    name: ClassVar[str] = "no-op-layout"
    roots: ClassVar[tuple[str, ...]] = tuple(_NOTHING_HAPPENS)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The input takes the place of the output."""
        del build
        x = node.inputs[0]
        if x is None or not _NOTHING_HAPPENS[node.op_type](node, x):
            return None
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return None
        return x
