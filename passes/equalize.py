"""x -> Conv  ==>  x * s -> Conv with weight / s, where channels of x differ in range

Cross-layer equalization (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, section 4.1): one scale for the whole tensor then fits all its channels. Factors are powers of two, so the float
graph computes the same to the bit; they go into the weights of what makes the tensor where that is linear. It stays
where it is measured to lower the noise of int8 in all products.

Refuses: a tensor that several kinds of readers share gets a Mul of its own instead; one whose channels are alike, or
whose expected noise falls by less than 30 %, is left alone.
"""

from __future__ import annotations

from graphopt.passes._preparation import StepPass


class Equalize(StepPass):
    """Equal ranges for the channels that convolutions read; LOSSY only with what follows."""

    name = "equalize"
    step = "equalize"
    label = "equalized"
