"""exp, sigmoid, tanh and erf of float32 in arithmetic that vectors have: LLVM calls the C library element by element.

Registered with TVM as how these intrinsics are lowered for processors, so every kernel that holds one has it. The
polynomials are those of Cephes (S. Moshier, single precision: expf, tanhf), exact to two units in the last place or so;
erf is the rational function that TVM has (4.5e-7 of 1). NaN stays NaN, and what is too large or too small becomes what
it becomes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from graphopt.targets.tvm.adapter import register_lowering, tirx

_LOWEST, _HIGHEST = -104.0, 89.0
"""Below, exp is zero, and above it is infinite."""
_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_TANH_FROM = 0.625
_ERF_MOST = 4.0
_ERF_ABOVE = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_BITS = 23
_BIAS = 127


@cache
def register() -> None:
    """Have TVM lower these functions so, from now on, in this process."""
    for name, function in (("exp", exp), ("sigmoid", sigmoid), ("tanh", tanh), ("erf", erf)):
        register_lowering(f"tirx.{name}", _of_float32(function))


def exp(x: Any) -> Any:
    """2 ** n * polynomial(x - n * ln 2), the power in two halves, so that neither over- nor underflows alone."""
    inside = _clamped(x, _LOWEST, _HIGHEST)
    n = tirx.floor(inside * _as(x, _LOG2_E) + _as(x, 0.5))
    rest = inside - n * _as(x, _LN2_HIGH) - n * _as(x, _LN2_LOW)
    power = _polynomial(rest, _EXP) * rest * rest + rest + _as(x, 1.0)
    whole = tirx.Cast(_integers(x), n)
    half = tirx.shift_right(whole, _whole(x, 1))
    return _unless_nan(x, power * _power_of_two(x, half) * _power_of_two(x, whole - half))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _as(x, 1.0) / (_as(x, 1.0) + exp(_as(x, 0.0) - x))


def tanh(x: Any) -> Any:
    """A polynomial near zero, else 1 - 2 / (exp(2 |x|) + 1) with the sign of x."""
    size = tirx.Select(x < _as(x, 0.0), _as(x, 0.0) - x, x)
    far = _as(x, 1.0) - _as(x, 2.0) / (exp(size + size) + _as(x, 1.0))
    far = tirx.Select(x < _as(x, 0.0), _as(x, 0.0) - far, far)
    square = x * x
    near = _polynomial(square, _TANH) * square * x + x
    return tirx.Select(size < _as(x, _TANH_FROM), near, far)


def erf(x: Any) -> Any:
    """x times a rational function of its square."""
    inside = _clamped(x, -_ERF_MOST, _ERF_MOST)
    square = inside * inside
    found = inside * _polynomial(square, _ERF_ABOVE) / _polynomial(square, _ERF_BELOW)
    return _unless_nan(x, found)


def _of_float32(function: Any) -> Any:
    def lower(call: Any) -> Any:
        x = call.args[0]
        if _element(x) == "float32":
            return function(x)
        if _element(x) == "float16":
            wide = tirx.Cast(str(x.ty.dtype).replace("float16", "float32"), x)
            return tirx.Cast(str(x.ty.dtype), function(wide))
        return _of_float64(function, x)

    return lower


def _of_float64(function: Any, x: Any) -> Any:
    """LLVM's own exp, and what can be made of it; exact to a few units in the last place of 1."""
    if function is exp:
        return tirx.call_llvm_pure_intrin(_type(x), "llvm.exp", x)
    if function is sigmoid:
        return _as(x, 1.0) / (_as(x, 1.0) + _of_float64(exp, _as(x, 0.0) - x))
    if function is tanh:
        return _as(x, 1.0) - _as(x, 2.0) / (_of_float64(exp, x + x) + _as(x, 1.0))
    raise TypeError(f"{function.__name__} of {x.ty} is not computed here")


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    found = _as(x, coefficients[0])
    for coefficient in coefficients[1:]:
        found = found * x + _as(x, coefficient)
    return found


def _clamped(x: Any, least: float, most: float) -> Any:
    return tirx.max(tirx.min(x, _as(x, most)), _as(x, least))


def _unless_nan(x: Any, found: Any) -> Any:
    return tirx.Select(x == x, found, x)


def _power_of_two(x: Any, exponent: Any) -> Any:
    return tirx.reinterpret(_type(x), tirx.shift_left(exponent + _whole(x, _BIAS), _whole(x, _BITS)))


def _type(x: Any) -> Any:
    return x.ty


def _element(x: Any) -> str:
    return str(x.ty.dtype).partition("x")[0]


def _integers(x: Any) -> str:
    return str(x.ty.dtype).replace("float32", "int32")


def _as(x: Any, number: float) -> Any:
    """A number in each lane that ``x`` has."""
    return tirx.const(number, str(x.ty.dtype))


def _whole(x: Any, number: int) -> Any:
    return tirx.const(number, _integers(x))
