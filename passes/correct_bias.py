"""bias  ==>  bias minus what quantization adds to the mean of each output channel

Bias correction (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
section 4.2), with the means of calibration data. The float graph stays as it is; ``quantize`` takes the correction for
the layers that it puts on integers. It stays where it is measured to lower the noise of int8 in all products.

Refuses: MatMul, which has no bias; weights of grouped convolutions that are not depthwise.
"""

from __future__ import annotations

from graphopt.passes._preparation import StepPass


class CorrectBias(StepPass):
    """Biases that make up for the mean error of int8; LOSSY."""

    name = "correct-bias"
    step = "correct-bias"
    label = "biases corrected"
