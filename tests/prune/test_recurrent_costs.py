"""What recurrent layers multiply counts as that of any layer."""

import numpy as np
import pytest

from graphopt.prune import choose, costs
from graphopt.prune.structure import analyse
from graphopt.testing import model_from_text


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_multiplications_of_recurrent_layers(kind: str, gates: int) -> None:
    """Six steps of two samples, five numbers each, to eight hidden units, which a product of three reads."""
    constants = {"w": (1, gates * 8, 5), "r": (1, gates * 8, 8), "o": (8, 3)}
    text = ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = {{{','.join(['0.5'] * int(np.prod(shape)))}}}"
        for name, shape in constants.items()
    )
    model = model_from_text(
        f"""g (float[6,2,5] x) => (float[6,2,3] y) <{text}, int64[1] axis = {{1}}> {{
        h = {kind}<hidden_size=8>(x, w, r) s = Squeeze(h, axis) y = MatMul(s, o) }}"""
    )
    structure = analyse(model)
    sample = {"x": np.ones((6, 2, 5), np.float32)}
    places = costs.places(model, structure.layers, sample, recurrent=structure.recurrent)
    assert set(places.values()) == {12}
    recurrent, product = (12 * gates * 8 * (5 + 8), 12 * 8 * 3)
    assert sorted(choose.macs(structure, places).values()) == sorted([recurrent, product])
    (group,) = structure.groups
    half = group.classes[:4]
    left = (12 * gates * 4 * (5 + 4), 12 * 4 * 3)
    assert sorted(choose.macs(structure, places, half).values()) == sorted(left)
