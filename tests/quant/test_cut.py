"""The minimum cut against trying every assignment."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.quant.cut import Costs, conversions, fastest
from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.units import Unit, units_of
from graphopt.targets.ort.integers import kernels
from graphopt.testing import model_from_text

ORT = kernels(frozenset({"avx512_vnni"}))


def graph(shape: list[tuple[str, int, int]]) -> ir.Model:
    """A graph of small nodes on values [1, 2, 2, 2]; each entry is an operator and its operands among those before."""
    lines, names = [], ["x"]
    for index, (op, left, right) in enumerate(shape):
        first, second = names[left % len(names)], names[right % len(names)]
        call = {"Conv": f"Conv({first}, w)", "Add": f"Add({first}, {second})", "Exp": f"Exp({first})"}[op]
        lines.append(f"v{index} = {call}")
        names.append(f"v{index}")
    lines.append(f"y = Neg({names[-1]})")
    body = "\n".join(lines)
    weights = ",".join(["0.5"] * 4)
    return model_from_text(
        f"g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,2,1,1] w = {{{weights}}}> {{ {body} }}"
    )


def total(
    units: list[Unit], costs: Costs, chosen: frozenset[str], price: float, kernels: IntegerKernels
) -> float:
    """Time of an assignment, added up directly."""
    time = sum(
        costs.integers[unit.name] + price * costs.noise.get(unit.name, 0.0)
        if unit.name in chosen
        else costs.floats[unit.name]
        for unit in units
    )
    by_node = {node: unit.name for unit in units for node in unit.nodes}
    writes = {
        unit.output: unit.name
        for unit in units
        if unit.kind != "compute" or unit.node.op_type in kernels.writes_integers
    }
    for value in {value for unit in units for value in (*unit.inputs, unit.output)}:
        readers = {by_node.get(use.node) for use in value.uses()}
        producer = writes.get(value)
        made_as_integers = producer in chosen
        if not made_as_integers and any(reader in chosen for reader in readers):
            time += costs.convert[value.name]
        if made_as_integers and any(reader not in chosen for reader in readers):
            time += costs.convert[value.name]
    return time


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_assignment_is_faster(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    entry = st.tuples(st.sampled_from(["Conv", "Conv", "Add", "Exp"]), st.integers(0, 7), st.integers(0, 7))
    model = graph(data.draw(st.lists(entry, min_size=size, max_size=size)))
    units = units_of(model, ORT)[0]
    if not units:
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = {value.name for unit in units for value in (*unit.inputs, unit.output)}

    def times(names: set[str] | list[str]) -> dict[str, float]:
        return {name: round(float(rng.uniform(0.01, 1)), 3) for name in sorted(names)}

    names = [unit.name for unit in units]
    costs = Costs(times(names), times(names), times(values), times(names))
    price = data.draw(st.sampled_from([0.0, 0.3, 3.0]))
    chosen = fastest(units, costs, ORT, price)
    found = total(units, costs, chosen, price, ORT)
    alone = total(units, replace(costs, convert=dict.fromkeys(values, 0.0)), chosen, price, ORT)
    assert conversions(units, costs, ORT, chosen) == pytest.approx(found - alone, abs=1e-9)
    best = min(
        total(units, costs, frozenset(chosen), price, ORT)
        for count in range(len(names) + 1)
        for chosen in itertools.combinations(names, count)
    )
    assert found == pytest.approx(best, abs=1e-4)


def test_a_higher_price_of_noise_never_puts_more_noise_on_integers() -> None:
    model = graph([("Conv", 0, 0), ("Conv", 1, 0), ("Conv", 2, 0), ("Add", 3, 1), ("Conv", 4, 0)])
    units = units_of(model, ORT)[0]
    names = [unit.name for unit in units]
    costs = Costs(
        dict.fromkeys(names, 1.0),
        dict.fromkeys(names, 0.3),
        {value.name: 0.05 for unit in units for value in (*unit.inputs, unit.output)},
        {name: 10.0**-index for index, name in enumerate(names)},
    )
    noises = [
        sum(costs.noise[name] for name in fastest(units, costs, ORT, price))
        for price in np.geomspace(1e-3, 1e6, 30)
    ]
    assert noises == sorted(noises, reverse=True)
    assert noises[0] > 1 and noises[-1] == 0
