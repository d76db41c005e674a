"""weights rounded to nearest  ==>  weights rounded so that what a layer makes of its inputs changes least

Layer-wise reconstruction by second moments of the inputs on calibration data (GPTQ: Frantar et al., 2022): what
rounding one row of a weight loses is made up for by the rows after it. The float graph stays as it is; ``quantize``
takes the integers. It stays where it is measured to lower the noise of int8 in all products.

Refuses: a transposed convolution; a convolution whose padding follows the input's size; a weight with more than 1536
numbers in each sum (the matrix of moments grows with its square).
"""

from __future__ import annotations

from graphopt.passes._preparation import StepPass


class RoundWeights(StepPass):
    """Integer weights by layer-wise reconstruction; LOSSY."""

    name = "round-weights"
    step = "round-weights"
    label = "weights rounded by reconstruction"
