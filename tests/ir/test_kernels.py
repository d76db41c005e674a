"""What is known of the kernels of the installed ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from graphopt.ir import kernels, opset
from graphopt.testing import OPSET, model_from_text, run


@pytest.mark.onnxruntime("1.25", "has a kernel for LpNormalization of opset 22")
def test_the_fallback_is_what_the_newest_says() -> None:
    assert kernels.newest_opsets() == kernels._ENDED_IN_1_31


@pytest.mark.parametrize("version", range(21, opset.limits().newest_opset + 1))
@pytest.mark.parametrize("op_type", ["QuantizeLinear", "RandomNormal", "Relu"])
def test_an_operator_runs_up_to_the_opset_that_is_named(op_type: str, version: int) -> None:
    call = {"QuantizeLinear": "QuantizeLinear(x, s, z)", "RandomNormal": "RandomNormal<shape=[2]>()"}
    kind = "uint8" if op_type == "QuantizeLinear" else "float"
    model = model_from_text(
        f'<ir_version: 10, opset_import: ["" : {version}]> g (float[2] x) => ({kind}[2] y) '
        f"<float s={{0.5}}, uint8 z={{3}}> {{ y = {call.get(op_type, f'{op_type}(x)')} }}"
    )
    feeds = {"x": np.ones(2, np.float32)}
    if version <= kernels.newest_opsets().get(op_type, version):
        assert run(model, feeds)["y"].shape == (2,)
    else:
        with pytest.raises(Exception, match="Could not find an implementation"):
            run(model, feeds)


@pytest.mark.onnxruntime("1.28", "has none of the differences")
def test_the_newest_differs_in_nothing() -> None:
    assert kernels.preferred_opsets() == kernels.newest_opsets()
    assert kernels.attention_zeroes_closed_rows() and kernels.average_pool_counts_all_padding()


def test_attention_over_a_closed_row() -> None:
    model = model_from_text(
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <float[2,2] m={-inf,-inf,-inf,-inf}> { y = Attention(x, x, x, m) }"
    )
    y = run(model, {"x": np.ones((1, 1, 2, 2), np.float32)})["y"]
    assert np.all(y == 0) if kernels.attention_zeroes_closed_rows() else np.all(np.isnan(y))


def test_average_pool_with_padding_at_the_end() -> None:
    text = (
        "g (float[1,1,3,3] x) => (float[1,1,A,B] y) "
        "{ y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,2], count_include_pad=1>(x) }"
    )
    y = run(model_from_text(text), {"x": np.ones((1, 1, 3, 3), np.float32)})["y"]
    wanted = np.array([[6, 4, 2], [9, 6, 3], [6, 4, 2]]) / 9
    assert np.allclose(y, wanted) == kernels.average_pool_counts_all_padding()


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are those of the newest, so that passes can run."""
    import sys

    probes = (
        kernels.newest_opsets,
        kernels.preferred_opsets,
        kernels.attention_zeroes_closed_rows,
        kernels.average_pool_counts_all_padding,
    )
    for name in ("onnxruntime", "onnxruntime.capi"):
        monkeypatch.setitem(sys.modules, name, None)
    found = [probe.__wrapped__() for probe in probes[:1] + probes[2:]]
    assert found == [kernels._ENDED_IN_1_31, True, True]
    assert kernels._fuses_convolutions(OPSET)


def test_types_decide_as_well() -> None:
    """The kernel for QuantizeLinear of opset 23 in ONNX Runtime 1.23 names types that the schema does not allow."""

    from onnx import defs

    schema = defs.get_schema("QuantizeLinear", 23, "")
    ends = 2**31 - 1

    def kernel(**constraints: list[str]) -> SimpleNamespace:
        return SimpleNamespace(version_range=(23, ends), type_constraints=constraints)

    assert not kernels._runs(kernel(T2=["tensor(uint8)"]), schema)
    assert kernels._runs(kernel(T3=["tensor(uint8)"]), schema)
    assert not kernels._runs(kernel(T3=["tensor(uint8)"]), defs.get_schema("QuantizeLinear", 21, ""))
