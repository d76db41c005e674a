"""What single rewrites gain in ONNX Runtime: a small graph before and after.

    python benchmarks/rewrites.py [NAME ...] [--pairs N] [--seconds S] [--threads N] [--output FILE] [--quote]

For each rewrite named (default: all that have a graph in ``_micro.py``), the graph as it is and as the one rewrite
leaves it, both with ONNX Runtime's default optimisations, on the same inputs; interleaved, each in a process of its
own. Small graphs run at another speed in another process (where memory comes to lie), so there are several pairs of
processes; their median ratio counts, and the lowest and highest show how sure it is. Prints a table and writes JSON, in
which the rows of other graphs stay where the machine is the same. A rewrite that does not apply to its graph is an
error. ``--quote`` writes the ratios into the docstrings that quote them (``make docs`` then brings docs/ up to date).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import inspect
import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _micro import CASES, Case
from _results import FOLDER, machine, processor, undisturbed, write
from rich.console import Console
from rich.table import Table

from graphopt import catalog
from graphopt.ir import model as ir_model
from graphopt.machine import Form
from graphopt.pipeline.base import as_pass
from graphopt.pipelines import PASSES
from graphopt.rewrite import RewriteLog
from graphopt.targets.ort.legalize import REWRITES
from graphopt.testing import random_feeds
from graphopt.tune.paired import time_forms

_RATIO = r"\b\d+\.\d\d\b"


def rewrite_class(name: str) -> Any:
    """A built-in pass or rewrite, or one of the legalisation for ONNX Runtime."""
    legalizing = {rewrite.name: rewrite for rewrite in REWRITES}
    return legalizing[name] if name in legalizing else catalog.pass_class(name)


def measure(case: Case, pairs: int, seconds: float, threads: int) -> dict[str, Any]:
    """Both forms of one graph, in several pairs of processes."""
    before, after, log = case.model(), case.model(), RewriteLog()
    as_pass(rewrite_class(case.rewrite)()).run(after, log)
    if not log.applied:
        raise SystemExit(f"{case.rewrite} does not apply to {case.label!r}: {log.refused or log.failed}")
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as temporary:
        folder = Path(temporary)
        for label, model in (("before", before), ("after", after)):
            ir_model.save(model, folder / f"{label}.onnx")
        forms = [Form(label, "ort-cpu", folder, {"file": f"{label}.onnx"}) for label in ("before", "after")]
        feeds = random_feeds(before)
        timings = [time_forms(forms, feeds, threads=threads, seconds=seconds) for _ in range(pairs)]
    ratios = sorted(pair[1].speedup for pair in timings)
    return {
        "rewrite": case.rewrite,
        "graph": case.label,
        "date": datetime.date.today().isoformat(),
        "milliseconds": {
            form.label: statistics.median(pair[index].milliseconds for pair in timings)
            for index, form in enumerate(forms)
        },
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def table(rows: list[dict[str, Any]], threads: int) -> Table:
    """For people."""
    view = Table(title=f"Time before over time after, {threads} threads, {processor()}")
    for heading in ("rewrite", "graph"):
        view.add_column(heading)
    for heading in ("before, us", "after, us", "ratio", "of pairs"):
        view.add_column(heading, justify="right")
    for row in rows:
        times = [f"{row['milliseconds'][label] * 1000:.1f}" for label in ("before", "after")]
        spread = (
            f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}{', disturbed' if row['disturbed'] else ''}"
        )
        view.add_row(row["rewrite"], row["graph"], *times, f"{row['ratio']:.2f}", spread)
    return view


def merge(rows: list[dict[str, Any]], path: Path, threads: int) -> list[dict[str, Any]]:
    """The new rows, and those of other graphs that the file holds for this machine, in the order of ``CASES``."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = before["rewrites"] if before.get("machine") == machine(threads) else []
    found = {(row["rewrite"], row["graph"]): row for row in [*kept, *rows]}
    keys = [(case.rewrite, case.label) for case in CASES]
    return [found[key] for key in keys if key in found]


def quote(name: str, ratios: list[float]) -> None:
    """Put the ratios, in the order of ``CASES``, in the place of those that the rewrite's docstring quotes."""
    path = Path(inspect.getfile(rewrite_class(name)))
    text = path.read_text(encoding="utf-8")
    sentence = re.search(r"Times\s+as\s+fast\s+\(``benchmarks/rewrites\.py``.*?\.(?=\s)", text, re.DOTALL)
    quoted = [] if sentence is None else re.findall(_RATIO, sentence[0])
    if sentence is None or len(quoted) != len(ratios):
        raise SystemExit(f"{path.name} quotes {len(quoted)} ratios, but there are {len(ratios)} of {name}")
    new = iter(ratios)
    updated = re.sub(_RATIO, lambda _: f"{next(new):.2f}", sentence[0])
    path.write_text(text.replace(sentence[0], updated), encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rewrites (default: all that have a graph)")
    parser.add_argument("--pairs", type=int, default=5, help="of processes for each graph")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quote", action="store_true", help="write the ratios into docstrings")
    parser.add_argument("--output", type=Path, default=FOLDER / "rewrites.json")
    options = parser.parse_args()
    known = dict.fromkeys(case.rewrite for case in CASES)
    missing = [name for name in options.names if name not in known]
    if missing:
        legalizing = {rewrite.name for rewrite in REWRITES}
        exists = missing[0] in PASSES or missing[0] in legalizing
        raise SystemExit(
            f"{missing[0]}: {'no graph in benchmarks/_micro.py' if exists else 'no such rewrite'}; "
            f"there are {', '.join(sorted(known))}"
        )
    chosen = [case for case in CASES if not options.names or case.rewrite in options.names]
    rows = [
        undisturbed(functools.partial(measure, case, options.pairs, options.seconds, options.threads))
        for case in chosen
    ]
    Console(width=140).print(table(rows, options.threads))
    merged = merge(rows, options.output, options.threads)
    write(options.output, {"rewrites": merged}, threads=options.threads, packages=("onnxruntime",))
    if options.quote:
        for name in dict.fromkeys(row["rewrite"] for row in rows):
            quote(name, [row["ratio"] for row in merged if row["rewrite"] == name])


if __name__ == "__main__":
    main()
