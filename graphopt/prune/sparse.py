"""Zeros inside a weight: which numbers become zero, what the others become, and how 2:4 is stored.

``N:M`` keeps at most N of each M consecutive numbers that one sum reads; ``unstructured`` takes zeros from anywhere.
Numbers are chosen by their magnitude, by Wanda (Sun et al., A Simple and Effective Pruning Approach for Large Language
Models, ICLR 2024), or by SparseGPT (Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned
in One-Shot, ICML 2023), which lets the numbers that are left make up for those that go: the Optimal Brain Surgeon
(Hassibi & Stork, NIPS 1992) column by column, with the Cholesky factor of the inverse second moments in place of an
inverse that is brought up to date after each.

Sparse Tensor Cores want zeros along what a product sums over; TensorRT asks of a convolution that they run along its
input channels, four by four, for each output channel and place of the kernel, and takes none with groups. In float16,
bfloat16 and int8 the pattern is 2:4, in TF32 it is 1:2 (PTX ISA, "Sparse matrix storage" of ``mma.sp``; cuSPARSELt,
``cusparseLtSparsity_t``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.errors import DataError, UsageError
from graphopt.ir.facts import Array
from graphopt.quant.blocks import inverse_factor

Zeros = npt.NDArray[np.bool_]
UNSTRUCTURED = "unstructured"
_COLUMNS = 128
"""Columns whose errors reach those behind them in one product; among these unstructured zeros are chosen together."""
_LARGEST_BLOCK = 64


@dataclass(frozen=True)
class Pattern:
    """Where zeros may be.

    Attributes:
        kept: Numbers of each block that stay; 0 where zeros may be anywhere.
        block: Consecutive numbers of one sum; 0 where zeros may be anywhere.
    """

    kept: int = 0
    block: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From "2:4", or "unstructured".

        Raises:
            UsageError: It is no pattern, or one without zeros.
        """
        hint = (
            "write pattern=2:4 (two of each four stay), another N:M with N below M, or pattern=unstructured"
        )
        if text == UNSTRUCTURED:
            return cls()
        found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text)
        if found is None:
            raise UsageError(f"{text!r} is no pattern of zeros", hint=hint)
        kept, block = int(found[1]), int(found[2])
        if not 0 < kept < block <= _LARGEST_BLOCK:
            raise UsageError(
                f"the pattern {text!r} keeps {kept} of {block} numbers",
                hint=f"{hint}; M is at most {_LARGEST_BLOCK}",
            )
        return cls(kept, block)

    def __str__(self) -> str:
        return f"{self.kept}:{self.block}" if self.block else UNSTRUCTURED

    @property
    def share(self) -> float:
        """Of the numbers that become zero; 0 where the pattern does not say."""
        return 1 - self.kept / self.block if self.block else 0.0

    def zeros(self, scores: Array, share: float = 0.0) -> Zeros:
        """The numbers of least score, as many as become zero.

        Args:
            scores: [..., K], K a multiple of the block; of a smaller one less is lost.
            share: Of all of them, where the pattern does not say.
        """
        if self.block:
            blocks = scores.reshape(*scores.shape[:-1], -1, self.block)
            least = np.argsort(blocks, axis=-1, kind="stable")[..., : self.block - self.kept]
            found = np.zeros(blocks.shape, bool)
            np.put_along_axis(found, least, True, axis=-1)
            return found.reshape(scores.shape)
        count = round(share * scores.size)
        flat = np.zeros(scores.size, bool)
        if count:
            flat[np.argpartition(scores.reshape(-1), min(count, scores.size) - 1)[:count]] = True
        return flat.reshape(scores.shape)

    def holds(self, weight: Array) -> bool:
        """Whether a weight [..., K] has its zeros so."""
        if not self.block:
            return True
        if weight.shape[-1] % self.block:
            return False
        blocks = weight.reshape(*weight.shape[:-1], -1, self.block)
        return bool((np.count_nonzero(blocks, axis=-1) <= self.kept).all())


def scores(weight: Array, mean_squares: Array | None = None) -> Array:
    """What is lost without each number of a weight [out, K], if the others stay as they are.

    Args:
        weight: The weight.
        mean_squares: Of what each number is multiplied with, [K] (Wanda); None for the magnitude alone.
    """
    squares = np.square(weight, dtype=np.float64)
    return squares if mean_squares is None else squares * mean_squares


def loss(change: Array, moments: Array) -> float:
    """Power that a change [out, K] of a weight adds to what it gives, by the second moments [K, K] of what it reads."""
    return max(float(np.sum((change @ moments) * change)), 0.0)


def sparse_gpt(
    weight: Array, moments: Array, pattern: Pattern, share: float = 0.0, damping: float = 0.01
) -> Array | None:
    """A weight with zeros whose other numbers make up for them.

    Column by column: the numbers that go are those of least w^2 / [H^-1]_qq, H^-1 of the columns that are not done yet;
    what each takes away is made up for by the columns behind it. With a pattern the numbers of a block are chosen where
    it begins, without one those of 128 columns together.

    Args:
        weight: [out, K], finite.
        moments: Second moments of what it reads, [K, K].
        pattern: K is a multiple of its block.
        share: Of the numbers that become zero, where the pattern does not say.
        damping: Share of the mean of the diagonal that is added to it.

    Returns:
        float64 [out, K], zero where numbers went; None where the moments are too close to singular.
    """
    hessian = moments.astype(np.float64)
    if not np.diag(hessian).any():
        hessian = np.eye(len(hessian))
    upper = inverse_factor(hessian, (damping,))
    if upper is None:
        return None
    # Columns are rows here, so that each lies together in memory.
    work = np.array(weight.T, dtype=np.float64, order="C")
    squares = np.square(np.diag(upper))[:, None]
    zeros = np.zeros(work.shape, bool)
    step = _COLUMNS if not pattern.block else max(_COLUMNS // pattern.block, 1) * pattern.block
    for begin in range(0, len(work), step):
        end = min(begin + step, len(work))
        if not pattern.block:
            zeros[begin:end] = pattern.zeros(np.square(work[begin:end]) / squares[begin:end], share)
        errors = np.zeros((end - begin, work.shape[1]))
        for column in range(begin, end):
            if pattern.block and column % pattern.block == 0:
                ahead = slice(column, column + pattern.block)
                zeros[ahead] = pattern.zeros((np.square(work[ahead]) / squares[ahead]).T).T
            gone = zeros[column]
            error = np.where(gone, work[column], 0.0) / upper[column, column]
            work[column, gone] = 0.0
            work[column + 1 : end] -= np.outer(upper[column, column + 1 : end], error)
            errors[column - begin] = error
        work[end:] -= upper[begin:end, end:].T @ errors
    return np.ascontiguousarray(work.T)


_PAIRS = {
    0b0000: (2, 3), 0b0001: (0, 2), 0b0010: (1, 2), 0b0100: (2, 3), 0b1000: (2, 3), 0b0011: (0, 1),
    0b0101: (0, 2), 0b0110: (1, 2), 0b1001: (0, 3), 0b1010: (1, 3), 0b1100: (2, 3),
}  # fmt: skip
"""From which of four numbers are not zero (the first is bit 0) to the two that are stored, in order."""
_GROUPS_OF_WORD = 4


def compressed_2_4(weight: Array) -> tuple[Array, Array]:
    """A weight that has its zeros as 2:4, without them: what the sparse Tensor Core instructions read.

    The operand A of PTX's ``mma.sp`` and its metadata, row by row (PTX ISA, "Sparse matrix storage"): two numbers of
    each four, and for each of the two its place among the four in two bits, the first one's, which is smaller, in the
    lower bits. A kernel distributes these rows over the threads of a warp as its shape asks; CUTLASS wants the words
    reordered besides, and cuSPARSELt makes a form of its own from the dense weight, which need only hold the pattern.

    Args:
        weight: [out, K], K a multiple of 4, at most two of each four numbers other than zero.

    Returns:
        The numbers, [out, K / 2], of the weight's dtype; the places, uint16 [out, ceil(K / 16)], four bits for each
        four numbers, the first four in the lowest bits. Words that K does not fill end in valid places (0 and 1).

    Raises:
        DataError: The weight is none such.
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        raise DataError(
            f"a weight of shape {list(weight.shape)} has no 2:4 form",
            hint="it needs two dimensions, the second a multiple of 4: turn it so that sums run along it",
        )
    if not Pattern(2, 4).holds(weight):
        raise DataError(
            "the weight has more than two of four numbers in a row that are not zero",
            hint="give it its zeros first: --passes 'sparsify{pattern=2:4}'",
        )
    rows, columns = weight.shape
    fours = weight.reshape(rows, columns // 4, 4)
    masks = ((fours != 0) << np.arange(4)).sum(axis=-1)
    table = np.zeros((16, 2), np.int64)
    for mask, pair in _PAIRS.items():
        table[mask] = pair
    places = table[masks]
    values = np.take_along_axis(fours, places, axis=-1).reshape(rows, columns // 2)
    nibbles = places[..., 0] | places[..., 1] << 2
    padding = -nibbles.shape[1] % _GROUPS_OF_WORD
    nibbles = np.pad(nibbles, ((0, 0), (0, padding)), constant_values=1 << 2)
    words = (nibbles.reshape(rows, -1, _GROUPS_OF_WORD) << (4 * np.arange(_GROUPS_OF_WORD))).sum(axis=-1)
    return values, words.astype(np.uint16)


def expanded_2_4(values: Array, metadata: Array) -> Array:
    """The weight [out, K] that :func:`compressed_2_4` made this of."""
    rows, half = values.shape
    nibbles = metadata[..., None] >> (4 * np.arange(_GROUPS_OF_WORD)) & 0xF
    nibbles = nibbles.reshape(rows, -1)[:, : half // 2]
    places = np.stack([nibbles & 3, nibbles >> 2], axis=-1).astype(np.int64)
    fours = np.zeros((rows, half // 2, 4), values.dtype)
    np.put_along_axis(fours, places, values.reshape(rows, -1, 2), axis=-1)
    return fours.reshape(rows, -1)


__all__ = ["Pattern", "compressed_2_4", "expanded_2_4", "loss", "scores", "sparse_gpt"]
