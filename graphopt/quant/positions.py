"""Which values of a graph have a row for each position, so that those of padding may be left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Array, Feeds
from graphopt.errors import TargetError
from graphopt.ir.model import leading_to
from graphopt.verify.padding import Padding
from graphopt.verify.session import Session


class Positions:
    """Leaves padding out of values, where that is seen to be nobody's business.

    Of a sample and the same with something else at its padding, a value has to be the same at real positions and
    another at padding: then it varied there, and nothing that counts did. What padding holds whatever is put in (a
    bias, say) may be read by somebody.

    Args:
        model: Whose values they are.
        names: Of values; others are left whole.
        padding: Of the samples; None where there is none.
        threads: Of an operator.
        whole: Names of values whose last axis belongs together, and is no axis of positions.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        padding: Padding | None,
        threads: int = 0,
        whole: Collection[str] = (),
    ) -> None:
        self._padding = padding
        self._flat: dict[str, bool] = {}
        made = {value.name for node in model.graph for value in node.outputs}
        wanted = [name for name in dict.fromkeys(names) if name in made]
        if padding is None or not wanted:
            return
        session = Session(leading_to(model, wanted), optimize="all", threads=threads)
        try:
            plain, altered = (session.run(feeds, wanted) for feeds in (padding.feeds, padding.altered))
        except TargetError:
            return
        dims = padding.real(padding.feeds).shape
        for name in wanted:
            array, other = plain[name], altered[name]
            flat = array.shape[: len(dims)] != dims
            if name in whole and not flat and array.ndim == len(dims):
                continue
            if padding.differs(array, other) and padding.is_same(array, other):
                self._flat[name] = flat

    def places(self, name: str, feeds: Feeds, shape: tuple[int, ...]) -> Array | None:
        """Which elements along the first axes of a value count: booleans that index it; None where all do.

        Args:
            feeds: The sample that it comes of, or several one behind the other.
        """
        flat = self._flat.get(name)
        return None if self._padding is None or flat is None else self._padding.places(feeds, shape, flat)

    def of(self, name: str, feeds: Feeds, array: Array) -> Array:
        """What a value holds at positions that count."""
        places = self.places(name, feeds, array.shape)
        return array if places is None else np.asarray(array[places])


__all__ = ["Positions"]
