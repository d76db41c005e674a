"""``tuner JOB``: measures tiles for the products of a model, and writes what it finds into the database.

Run by :mod:`graphopt.targets.tvm.tuning.session`, which ends it where it hangs, and starts it again where TVM crashes.
Tells what it does in JSON, one event a line of the standard output.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError, TargetError
from graphopt.processes import answers
from graphopt.targets.tvm.adapter import IRModule, Target, compile_module, te, topi
from graphopt.targets.tvm.executable import INSIDE, LIBRARY, WEIGHTS, reason_of
from graphopt.targets.tvm.lower.importer import import_packed, number_of
from graphopt.targets.tvm.lower.pipeline import Library, build_library, processor
from graphopt.targets.tvm.lower.products import Product
from graphopt.targets.tvm.lower.schedule import for_processor
from graphopt.targets.tvm.lower.tiles import Tile, Vectors
from graphopt.targets.tvm.tuning.arguments import Argument
from graphopt.targets.tvm.tuning.database import Database, Record
from graphopt.targets.tvm.tuning.runners import LocalRunner, RemoteRunner, Runner, RunnerLostError

_BATCH = 8
"""Tiles that are built into one library and measured side by side."""
_PATIENCE = 24
"""Tiles in a row that gain nothing, after which a product is done."""
_GAIN = 0.02


def main() -> None:
    """Tune; an error is the last event."""
    job = json.loads(sys.argv[1])
    events = answers()

    def tell(event: str, **about: Any) -> None:
        print(json.dumps({"event": event, **about}), file=events, flush=True)

    try:
        _tune(job, tell)
    except GraphoptError as error:
        tell("error", message=error.message, hint=error.hint)
    except Exception as error:  # TVM raises its own kinds, RuntimeError and others
        tell("error", message=f"TVM: {reason_of(error)}", hint="")


@dataclass
class _State:
    """What is known of one product.

    Attributes:
        share: Of the model's time, in the tiles with which tuning began.
        count: Times it is in the model.
        waiting: Tiles not yet measured, most promising first.
    """

    product: Product
    count: int
    default: Tile
    best: Tile
    waiting: list[Tile]
    share: float = 0.0
    before: float = 0.0
    seconds: float = 0.0
    began_with: float = 0.0
    trials: int = 0
    without_gain: int = 0

    @property
    def worth(self) -> float:
        """What the next tiles may bring: the share of time that is left, less with each that brought nothing."""
        left = self.share * self.seconds / self.began_with if self.began_with else self.share
        return left / (1 + self.without_gain / _BATCH) if self.waiting else 0.0

    def record(self) -> Record:
        return Record(self.product.key, self.best, self.seconds, self.before, self.trials, not self.waiting)


def _tune(job: Mapping[str, Any], tell: Any) -> None:
    import onnx

    cpu, vectors = processor(job["vectors"])
    database = Database(Path(job["database"]), job["tvm"], job["hardware"])
    known = database.best()
    proto = onnx.load(job["source"])
    module, products = import_packed(proto, vectors, database.tiles())
    runner: Runner
    runner = RemoteRunner(job["tracker"], job["key"]) if job["tracker"] else LocalRunner(job["threads"])
    bad = {(entry["product"], Tile(**entry["tile"])) for entry in job["bad"]}
    states = [
        _state(product, count, known.get(product.key), vectors, bad)
        for product, count in products.count.items()
    ]
    folder = Path(job["folder"])
    try:
        profile = _profiled(build_library(module, cpu, vectors, INSIDE), runner, job, folder)
        _share_out(states, profile)
        tell(
            "begun",
            seconds=None if profile is None else profile["total"],
            products=[
                {"key": state.product.key, "count": state.count, "share": state.share} for state in states
            ],
        )
        trials = _search(states, job, cpu, vectors, runner, folder, database, tell)
    finally:
        runner.close()
    tell("done", trials=trials)


def _profiled(
    library: Library, runner: Runner, job: Mapping[str, Any], folder: Path
) -> dict[str, Any] | None:
    """Where the time of the model goes; None where it does not run in the time there is."""
    config = {**job["config"], "weights": library.write(folder)}
    try:
        return runner.profile(folder / LIBRARY, config, Path(job["feeds"]))
    except RunnerLostError:
        raise
    except TargetError:
        return None
    finally:
        for name in (LIBRARY, WEIGHTS):
            (folder / name).unlink(missing_ok=True)


def _share_out(states: Sequence[_State], profile: Mapping[str, Any] | None) -> None:
    """Each product's share of the model's time, as measured; of all products' operations where that is not known."""
    if profile is None:
        weights = [float(state.product.operations * state.count) for state in states]
        total = sum(weights)
    else:
        weights = [0.0] * len(states)
        for kernel, seconds in profile["kernels"].items():
            number = number_of(kernel)
            if number is not None:
                weights[number] += seconds
        total = sum(profile["kernels"].values())
    for state, weight in zip(states, weights, strict=True):
        state.share = weight / total if total else 0.0


def _state(
    product: Product, count: int, record: Record | None, vectors: Vectors, bad: set[tuple[str, Tile]]
) -> _State:
    tiles = product.tiles(vectors)
    default = tiles[0]
    if product.is_open:
        # There is no one size to measure it with.
        return _State(product, count, default, default, [])
    best = default if record is None or record.tile not in tiles else record.tile
    waiting = [tile for tile in tiles if tile not in (default, best) and (product.key, tile) not in bad]
    if record is None or best != record.tile:
        return _State(product, count, default, best, waiting)
    # Those measured before were taken from the front; the best of them is not among these.
    left = [] if record.finished else waiting[max(record.trials - (best != default), 0) :]
    state = _State(product, count, default, best, left, trials=record.trials)
    state.before, state.seconds, state.began_with = record.before, record.seconds, record.seconds
    return state


def _search(
    states: Sequence[_State],
    job: Mapping[str, Any],
    cpu: Target,
    vectors: Vectors,
    runner: Runner,
    folder: Path,
    database: Database,
    tell: Any,
) -> int:
    """Measure until the effort is spent or nothing is worth it; returns how many tiles were measured."""
    started, trials = time.monotonic(), 0
    most_seconds, most_trials = job["seconds"], job["trials"]
    while True:
        elapsed = time.monotonic() - started
        state = max(states, key=lambda entry: entry.worth, default=None)
        if state is None or state.worth <= 0:
            break
        if (most_seconds and elapsed >= most_seconds) or (most_trials and trials >= most_trials):
            break
        room = _BATCH if not most_trials else min(_BATCH, most_trials - trials)
        batch = [state.waiting.pop(0) for _ in range(min(room, len(state.waiting)))]
        first = [state.default] if state.default not in (*batch, state.best) else []
        tried = [state.best, *first, *batch]
        tell("trying", product=state.product.key, tiles=[asdict(tile) for tile in batch])
        state.trials += len(batch)
        try:
            times = _times(state, tried, cpu, vectors, runner, folder)
        except RunnerLostError:
            # It may be these that the device does not survive: the next time goes on behind them.
            if state.seconds:
                database.add(state.record())
            raise
        trials += len(batch)
        _enter(state, tried, times)
        if state.without_gain >= _PATIENCE:
            state.waiting.clear()
        if state.best in times:
            database.add(state.record())
        tell(
            "round",
            product=state.product.key,
            trials=trials,
            elapsed=time.monotonic() - started,
            gained={
                entry.product.key: entry.seconds / entry.began_with for entry in states if entry.began_with
            },
        )
    return trials


def _enter(state: _State, tried: Sequence[Tile], times: Mapping[Tile, float]) -> None:
    """Take over what was measured side by side: all times are told in those of the best tile until now."""
    batch = [tile for tile in tried if tile in times]
    if state.best not in times:
        state.without_gain += len(tried)
        return
    now = times[state.best]
    state.before = times.get(state.default, state.before * now / state.seconds if state.seconds else now)
    if not state.began_with:
        state.began_with = now
    else:
        # The machine may be faster or slower than at the beginning; ratios hold.
        state.began_with *= now / state.seconds
    state.seconds = now
    fastest = min(batch, key=lambda tile: times[tile])
    if times[fastest] < now * (1 - _GAIN):
        state.best, state.seconds, state.without_gain = fastest, times[fastest], 0
    else:
        state.without_gain += len(tried) - 1


def _times(
    state: _State, tiles: Sequence[Tile], cpu: Target, vectors: Vectors, runner: Runner, folder: Path
) -> dict[Tile, float]:
    """Seconds of each tile; without those that cannot be built or run."""
    try:
        return dict(zip(tiles, _measured(state.product, tiles, cpu, vectors, runner, folder), strict=True))
    except RunnerLostError:
        raise
    except TargetError:
        # One of them is at fault: each by itself, beside the best.
        found: dict[Tile, float] = {}
        for tile in tiles[1:]:
            try:
                now, time_of = _measured(state.product, [tiles[0], tile], cpu, vectors, runner, folder)
            except RunnerLostError:
                raise
            except TargetError:
                continue
            found.setdefault(tiles[0], now)
            found[tile] = time_of * found[tiles[0]] / now
        return found


_numbers = itertools.count()


def _measured(
    product: Product, tiles: Sequence[Tile], cpu: Target, vectors: Vectors, runner: Runner, folder: Path
) -> list[float]:
    functions, kernels = {}, []
    for number, tile in enumerate(tiles):
        function, arguments = kernel_of(product, tile, vectors)
        name = f"kernel_{number}"
        functions[name] = function.with_attr("global_symbol", name)
        kernels.append({"name": name, "arguments": arguments})
    # A library that is loaded from a path that was loaded before is the old one.
    library = folder / f"{next(_numbers)}.so"
    try:
        try:
            compile_module(IRModule(functions), target=cpu).export_library(str(library))
        except Exception as error:  # TVM raises its own kinds, RuntimeError and others
            raise TargetError(f"TVM cannot build a kernel of {product.key}: {reason_of(error)}") from error
        return runner.measure(library, kernels)
    finally:
        library.unlink(missing_ok=True)


def kernel_of(product: Product, tile: Tile, vectors: Vectors) -> tuple[Any, list[Argument]]:
    """The function of a product as most are surrounded, and its arguments: with a bias and a Relu, and integers with
    scales before that and a quantization behind."""
    data_type, weight_type = ("uint8", "int8") if product.integer else ("float32", "float32")
    packed = product.pack(np.zeros(product.weight, weight_type), tile).shape
    data = te.placeholder(product.data, data_type, "data")
    weight = te.placeholder(packed, weight_type, "weight")
    made = product.expression(tile)(data, weight)
    behind = [te.placeholder((made.shape[-1],), "float32", name) for name in ("bias", "scale")]
    bias, scale = behind
    if product.integer:
        made = topi.multiply(topi.cast(made, "float32"), scale)
    out = topi.nn.relu(topi.add(made, bias))
    if product.integer:
        out = topi.cast(topi.clip(topi.round(out), 0, 255), "uint8")
    operands = [data, weight, *(behind if product.integer else behind[:1]), out]
    function = te.create_prim_func(operands, index_dtype_override="int64")
    arguments = [([int(size) for size in operand.shape], str(operand.dtype)) for operand in operands]
    return for_processor(function, vectors), arguments


if __name__ == "__main__":
    main()
