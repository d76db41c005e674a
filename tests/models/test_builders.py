"""The small graphs that tests and benchmarks use are valid and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir import model as ir_model
from graphopt.models import builders
from graphopt.testing import run


@pytest.mark.parametrize(
    ("build", "feeds", "shape"),
    [
        (builders.conv_net, {"x": np.ones((2, 3, 16, 16), np.float32)}, (2, 10)),
        (builders.mlp, {"x": np.ones((2, 16), np.float32)}, (2, 4)),
        (builders.transformer_block, {"x": np.ones((2, 5, 32), np.float32)}, (2, 5, 32)),
        (builders.dynamic_net, {"x": np.ones((2, 4, 3, 5), np.float32)}, (2, 3)),
        (
            builders.branch_and_loop,
            {"x": np.ones(3, np.float32), "c": np.array(True), "k": np.array(3)},
            (3,),
        ),
        (lambda: builders.long_chain(500), {"x": np.ones((4, 8), np.float32)}, (4, 8)),
    ],
)
def test_small_graphs_are_valid_and_run(
    build: Callable[[], onnx.ModelProto], feeds: dict[str, np.ndarray], shape: tuple[int, ...]
) -> None:
    proto = build()
    if len(proto.graph.node) < 100:
        onnx.checker.check_model(proto, full_check=True)
    assert proto.SerializeToString() == build().SerializeToString()
    (output,) = run(ir.from_proto(proto), feeds).values()
    assert output.shape == shape and np.isfinite(output).all()


def test_the_long_chain_has_the_nodes_asked_for() -> None:
    assert len(builders.long_chain(1234).graph.node) == 1234


def test_large_weights_are_written_beside_the_model(tmp_path: Path) -> None:
    path = builders.write_large(tmp_path / "m.onnx", gigabytes=0.002, width=256)
    model = ir_model.load(path)
    assert ir_model.nbytes(model) == len(model.graph.initializers) * 256 * 256 * 4
    assert abs(ir_model.nbytes(model) - 2e6) < 256 * 256 * 4
    assert path.stat().st_size < 10_000


def test_the_folder_is_not_imported_by_its_bare_name() -> None:
    with pytest.raises(ImportError, match=r"import graphopt\.models, not models"):
        import models  # noqa: F401
