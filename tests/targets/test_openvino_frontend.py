"""What is written for OpenVINO computes what the graph does, in a smaller file."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import catalog
from graphopt.ir import model as ir_model
from graphopt.testing import assert_same_numbers, model_from_text, random_feeds, run

openvino = pytest.importorskip("openvino")

from graphopt.targets.openvino.frontend import for_frontend  # noqa: E402


def convolution(
    op: str, spatial: int, outputs: int, body: str = "y = Relu(c)", result: str = "y"
) -> ir.Model:
    """``c`` by a convolution with a bias, then ``body``."""
    size, kernel = ",".join(["7"] * spatial), ",".join(["3"] * spatial)
    weight = f"{outputs},4,{kernel}" if op == "Conv" else f"4,{outputs},{kernel}"
    made = ",".join("OPQ"[:spatial])
    model = model_from_text(
        f"g (float[N,4,{size}] x) => (float[N,{outputs},{made}] {result}) "
        f"<float[{weight}] w = {{0}}, float[{outputs}] b = {{0}}> {{ c = {op}(x, w, b) {body} }}"
    )
    rng = np.random.default_rng(0)
    for name in ("w", "b"):
        value = model.graph.initializers[name]
        assert value.shape is not None
        content = rng.standard_normal(value.shape.numpy()).astype(np.float32)
        value.const_value = ir.tensor(content, name=name)
    return model


@settings(derandomize=True, deadline=None, max_examples=12)
@given(op=st.sampled_from(["Conv", "ConvTranspose"]), spatial=st.integers(1, 3), outputs=st.integers(1, 5))
def test_a_bias_is_added_behind(op: str, spatial: int, outputs: int) -> None:
    before = convolution(op, spatial, outputs)
    after = for_frontend(before)
    assert [node.op_type for node in before.graph] == [op, "Relu"]
    assert [node.op_type for node in after.graph] == [op, "Add", "Relu"]
    assert [len(node.inputs) for node in after.graph] == [2, 2, 1]
    assert_same_numbers(before, after)


def test_an_output_keeps_its_name() -> None:
    before = convolution("Conv", 2, 3, body="", result="c")
    after = for_frontend(before)
    assert [value.name for value in after.graph.outputs] == ["c"]
    assert_same_numbers(before, after)


def test_a_bias_that_is_no_constant_stays() -> None:
    model = model_from_text(
        "g (float[1,4,7,7] x, float[8] b) => (float[1,8,5,5] y) <float[8,4,3,3] w = {0}> { y = Conv(x, w, b) }"
    )
    assert [len(node.inputs) for node in for_frontend(model).graph] == [3]


def test_the_file_says_no_more_than_it_must(tmp_path: Path) -> None:
    model = convolution("Conv", 2, 3)
    target = catalog.target("openvino")
    config = target.emit(model, tmp_path, target.variants(model, None)[0])
    text = (tmp_path / "model.xml").read_text(encoding="utf-8")
    assert "\n" not in text.strip()
    assert text.count("<layer ") == len(["x", "w", "b", "Conv", "Add", "Relu", "y"])
    feeds = random_feeds(model, {"N": 2})
    found = catalog.runtime("openvino").load(tmp_path, config, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, run(model, feeds)["y"], rtol=0, atol=1e-4)


def test_imports_of_other_domains_go() -> None:
    model = convolution("Conv", 2, 3)
    model.opset_imports["com.microsoft"] = 1
    assert set(for_frontend(model).opset_imports) == {""}
    assert set(model.opset_imports) == {"", "com.microsoft"}
    assert ir_model.op_counts(model) == {"Conv": 1, "Relu": 1}
