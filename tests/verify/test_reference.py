"""What the reference makes of a form that is lost, and what it tells of the original."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data.interface import Feeds
from graphopt.errors import ProcessLostError, TargetError
from graphopt.testing import model_from_text
from graphopt.verify.reference import MadeUpSizesError, build_reference


def test_a_process_that_is_lost_is_no_size_that_is_refused() -> None:
    model = model_from_text("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    reference = build_reference(model, data=[{"x": np.ones((4, 4), np.float32)}])

    def refuses(feeds: Feeds, error: type[TargetError] = TargetError) -> Feeds:
        if len(feeds["x"]) != 4:
            raise error("not this size")
        return {"y": feeds["x"]}

    comparison = reference.compare(refuses, 8)
    assert comparison.ok and "not this size" in comparison.not_taken
    with pytest.raises(MadeUpSizesError, match="not this size"):
        reference.compare(lambda feeds: refuses(feeds, ProcessLostError), 8)


@pytest.mark.parametrize("above", ["1.0", "0.1"])
def test_a_model_that_makes_nothing_of_noise_is_shown_patches(above: str) -> None:
    """A detector of what is larger than a pixel: the mean over eight by eight of them, where it is above a threshold."""
    text = f"""g (float[1,1,64,64] x) => (float[1,1,8,8] y) {{
        m = AveragePool<kernel_shape=[8,8], strides=[8,8]>(x) t = Constant<value_float={above}>() d = Sub(m, t)
        y = Relu(d) }}"""
    reference = build_reference(model_from_text(text))
    assert reference.grain == (8 if above == "1.0" else 1)
    assert all(np.any(trial.outputs["y"]) for trial in reference.trials)
    assert not reference.warnings and not reference.doubtful


def test_outputs_of_zeros_are_told() -> None:
    text = """g (float[2,4] x) => (float[2,4] y, float[2,4] z, int64[2] i) {
        p = Abs(x) n = Neg(p) z = Relu(n) y = Relu(x) k = ArgMax<axis=1, keepdims=0>(z) i = Identity(k) }"""
    (warning,) = build_reference(model_from_text(text)).warnings
    assert (
        "nothing but zeros" in warning and "'z'" in warning and "'y'" not in warning and "'i'" not in warning
    )
    assert not build_reference(model_from_text(text.replace("z = Relu(n)", "z = Sigmoid(n)"))).warnings


def test_real_inputs_get_sizes_of_their_own() -> None:
    """Where two dimensions have one size in all the data, what holds only then would not be seen."""
    model = model_from_text(
        "g (float[s] x, float[t] z) => (float[s] y, float[t] w) { y = Relu(x) w = Abs(z) }"
    )
    data = [{"x": np.ones(size, np.float32), "z": np.ones(size, np.float32)} for size in (4, 6)]
    reference = build_reference(model, data=data)
    assert any(len(trial.feeds["x"]) != len(trial.feeds["z"]) for trial in reference.trials)
