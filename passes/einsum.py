"""Einsum(a, b)  ==>  MatMul(Transpose(a), Transpose(b)), Mul, Transpose or ReduceSum

Forms: Keras' EinsumDense and MultiHeadAttention (``abc,cde->abde``, ``aecd,abcd->acbe``), torch.einsum in
vision transformers (``bqhd,bkhd->bhqk``), outer products of rotary embeddings (``i,j->ij``), plain transposes
and sums. Each is what ONNX Runtime's Einsum does inside, so no form is slower, and other rewrites see it.

Refuses: more than two operands; a label that is repeated in one operand (a diagonal); a shared label whose sizes
are not known to be equal (a size of 1 broadcasts); labels to be merged whose sizes are not known; integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.symbolic import Shapes
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite


class Einsum(Rewrite):
    """Einsum of one or two operands."""

    name = "einsum"
    roots = ("Einsum",)
    numerics = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Batch labels stay in front, then what only one operand has, as MatMul wants it."""
        operands = [value for value in node.inputs if value is not None]
        parsed = _labels(facts.attribute(node, "equation", ""), operands)
        if parsed is None:
            return None
        terms, output = parsed
        if len(terms) > 2:
            raise Refuse("more than two operands")
        if any(len(set(term)) != len(term) for term in (*terms, output)):
            raise Refuse("a label is repeated in one operand")
        old = node.outputs[0]
        if not all(facts.is_float(value) for value in operands):
            raise Refuse("not a floating-point type")
        if len(terms) == 2 and not _agree(operands, terms):
            raise Refuse("the sizes of a shared label are not known to be equal")
        others = (
            [set(output) | set(terms[1 - index]) for index in range(2)] if len(terms) == 2 else [set(output)]
        )
        for index, other in enumerate(others):
            operands[index], terms[index] = _reduced(build, operands[index], terms[index], other)
        if len(terms) == 1:
            return _transposed(build, operands[0], terms[0], output, old)
        if not set(terms[0]) & set(terms[1]) - set(output):
            return _multiplied(build, operands, terms, output, old)
        return _contracted(build, operands, terms, output, old)


def _labels(equation: str, operands: Sequence[ir.Value]) -> tuple[list[str], str] | None:
    """Labels of each operand and of the output, with capital letters for what an ellipsis stands for."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        return None
    if not arrow:
        counted = "".join(terms).replace(".", "")
        output = ("..." if "." in left else "") + "".join(
            sorted(c for c in set(counted) if counted.count(c) == 1)
        )
    widths = set()
    for term, operand in zip(terms, operands, strict=True):
        rank = facts.rank(operand)
        if rank is None:
            return None
        if "..." in term:
            widths.add(rank - len(term) + 3)
        elif rank != len(term):
            return None
    # Ellipses of unequal rank, or of size 1 on one side, broadcast: that is not expressed in labels.
    if len(widths) > 1 or (
        widths and len(terms) > 1 and any("..." not in term for term in terms) and widths != {0}
    ):
        return None
    spare = [label for label in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if label not in equation]
    dots = "".join(spare[: next(iter(widths), 0)])
    terms = [term.replace("...", dots) for term in terms]
    output = output.replace("...", dots)
    return terms, output


def _agree(operands: Sequence[ir.Value], terms: Sequence[str]) -> bool:
    """Whether labels of both operands have provably equal sizes in both."""
    shapes = Shapes()
    left, right = (shapes.of(operand) for operand in operands)
    if left is None or right is None:
        return False
    sizes = dict(zip(terms[0], left, strict=True))
    return all(sizes.get(label, size) == size for label, size in zip(terms[1], right, strict=True))


def _reduced(build: Builder, value: ir.Value, term: str, kept: set[str]) -> tuple[ir.Value, str]:
    """Sum over the labels that nothing else has."""
    axes = [index for index, label in enumerate(term) if label not in kept]
    if not axes:
        return value, term
    shape = _permuted(value, [index for index in range(len(term)) if index not in axes])
    summed = build.op("ReduceSum", value, np.array(axes), keepdims=0, shape=shape)
    return summed, "".join(label for label in term if label in kept)


def _permuted(value: ir.Value, axes: Sequence[int]) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[axis] for axis in axes])


def _transposed(
    build: Builder, value: ir.Value, term: str, wanted: str, like: ir.Value | None = None
) -> ir.Value:
    if term == wanted:
        return value
    perm = [term.index(label) for label in wanted]
    array = facts.constant(value)
    if array is not None and like is None:
        return build.constant(array.transpose(perm))
    return build.op("Transpose", value, perm=perm, like=like, shape=_permuted(value, perm))


def _multiplied(
    build: Builder, operands: list[ir.Value], terms: list[str], output: str, old: ir.Value
) -> ir.Value:
    """No label is summed over: an outer or elementwise product."""
    factors = []
    for value, term in zip(operands, terms, strict=True):
        order = "".join(label for label in output if label in term)
        value = _transposed(build, value, term, order)
        missing = [index for index, label in enumerate(output) if label not in term]
        leading = 0
        while leading < len(missing) and missing[leading] == leading:
            leading += 1
        if len(missing) > leading:
            shape = None
            if value.shape is not None:
                dims = iter(value.shape)
                shape = ir.Shape([1 if index in missing else next(dims) for index in range(len(output))])
            value = build.op("Unsqueeze", value, np.array(missing), shape=shape)
        factors.append(value)
    return build.op("Mul", *factors, like=old)


def _contracted(
    build: Builder, operands: list[ir.Value], terms: list[str], output: str, old: ir.Value
) -> ir.Value:
    left, right = terms
    batch = "".join(label for label in output if label in left and label in right)
    rows = "".join(label for label in output if label in left and label not in right)
    columns = "".join(label for label in output if label in right and label not in left)
    if output == batch + columns + rows and rows and columns:
        # The product of the exchanged operands is already in the order of the output.
        operands, (left, right), (rows, columns) = operands[::-1], (right, left), (columns, rows)
    summed = "".join(label for label in right if label in left and label not in output)
    if facts.is_constant(operands[1]):
        # A weight is transposed here and now, the other operand at every run.
        summed = "".join(label for label in left if label in summed)
    a = _transposed(build, operands[0], left, batch + rows + summed)
    b = _transposed(build, operands[1], right, batch + summed + columns)
    sizes = dict(_sizes(operands[0], left)) | dict(_sizes(operands[1], right))
    if not batch and not columns and len(summed) == 1:
        vector = build.op("MatMul", a, b, shape=ir.Shape([sizes[label] for label in rows]))
        return _transposed(build, vector, rows, output, old)
    if len(rows) == 1 or (rows and not batch):
        a = _merged(build, a, [*batch, *rows, summed], sizes)
        flat_rows = list(rows)
    else:
        a = _merged(build, a, [*batch, rows, summed], sizes)
        flat_rows = [rows]
    b = _merged(build, b, [*batch, summed, columns], sizes)
    shape = ir.Shape([_product(label, sizes) for label in (*batch, *flat_rows, columns)])
    result = build.op("MatMul", a, b, shape=shape)
    ungrouped = batch + rows + columns
    if [*batch, *flat_rows, columns] != list(ungrouped):
        result = _split(build, result, [*batch, *flat_rows, columns], ungrouped, sizes)
    return _transposed(build, result, ungrouped, output, old)


def _sizes(value: ir.Value, term: str) -> list[tuple[str, int | None]]:
    dims = facts.dims(value) or (None,) * len(term)
    return list(zip(term, dims, strict=True))


def _product(labels: str, sizes: dict[str, int | None]) -> int | None:
    total = 1
    for label in labels:
        size = sizes[label]
        if size is None:
            return None
        total *= size
    return total


def _merged(build: Builder, value: ir.Value, groups: list[str], sizes: dict[str, int | None]) -> ir.Value:
    """``value`` with each group of labels as one dimension (an empty group is a dimension of 1)."""
    if all(len(group) == 1 for group in groups):
        return value
    target = [_product(group, sizes) for group in groups]
    flat = [group[0] if group else "" for group in groups]
    original = "".join(groups)
    for index, size in enumerate(target):
        if size is None and len(groups[index]) == 1 and original.index(flat[index]) == index:
            target[index] = 0
    if sum(size is None for size in target) > 1:
        raise Refuse("the sizes of labels to merge are not known")
    wanted = np.array([-1 if size is None else size for size in target], dtype=np.int64)
    array = facts.constant(value)
    if any(value is made for made in build.initializers):
        assert value.const_value is not None
        array = value.const_value.numpy()
        build.initializers.remove(value)
    if array is not None:
        return build.constant(array.reshape([_product(group, sizes) or 1 for group in groups]))
    shape = ir.Shape([_product(group, sizes) for group in groups])
    return build.op("Reshape", value, wanted, shape=shape)


def _split(
    build: Builder, value: ir.Value, groups: list[str], labels: str, sizes: dict[str, int | None]
) -> ir.Value:
    target: list[int] = []
    for index, label in enumerate(labels):
        size = sizes[label]
        if size is not None:
            target.append(size)
        else:
            target.append(0 if index < len(groups) and groups[index] == label else -1)
    if target.count(-1) > 1:
        raise Refuse("the sizes of labels to merge are not known")
    shape = ir.Shape([sizes[label] for label in labels])
    return build.op("Reshape", value, np.array(target, dtype=np.int64), shape=shape)
