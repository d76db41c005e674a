"""x -> MatMul, Gemm  ==>  x * s -> MatMul, Gemm with weight / s, where channels of x hold outliers

SmoothQuant (Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models,
ICML 2023): activations and weights share the difficulty of quantizing a channel, in the proportion (a quarter, half,
three quarters, all) that is expected to make least noise for each tensor. Factors are powers of two and go into the
normalization before where they can. It stays where it is measured to lower the noise of int8 in all products.

Refuses: a tensor whose expected noise falls by less than 30 % is left alone.
"""

from __future__ import annotations

from graphopt.passes._preparation import StepPass


class Smooth(StepPass):
    """Outlier channels of what products read are moved into their weights; LOSSY only with what follows."""

    name = "smooth"
    step = "smooth"
    label = "smoothed"
