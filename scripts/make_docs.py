"""Write the parts of docs/ that come from the code: docs/passes.md and docs/cli.md.

python scripts/make_docs.py            write them
python scripts/make_docs.py --check    exit with 1 where they are out of date
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from graphopt import catalog, cli  # noqa: E402
from graphopt.pipeline.base import RewritePass  # noqa: E402
from graphopt.pipeline.options import options_of  # noqa: E402
from graphopt.pipeline.spec import written  # noqa: E402
from graphopt.pipelines import GROUPS, PASSES, PIPELINES  # noqa: E402
from graphopt.target import Target  # noqa: E402
from graphopt.targets.tvm.executable import LLVM  # noqa: E402
from graphopt.targets.tvm.legalize import INTEGERS  # noqa: E402

NOTE = "<!-- Written by scripts/make_docs.py (make docs) from the code. Do not edit. -->\n"

PASSES_HEAD = """# Passes

A pass is named on the command line (`graphopt compile --passes fold,gelu`), in Python (`passes=("fold", "gelu")`), or
comes with a group or pipeline. Its numerics class says what it may do to the numbers, and the pass manager holds it to
that: *exact* passes must stay within twice the model's noise floor, passes that *reassociate* within eight times.
What breaks this is undone, down to the single rewrite, and reported with a repro.

*Times as fast* is time before over time after on a small graph in ONNX Runtime with its own optimisations, as
`python benchmarks/rewrites.py` printed it ([benchmarks/results/rewrites.json](../benchmarks/results/rewrites.json)).

A group takes the option `disable`, as `fuse{disable=[gelu,silu]}`, and a pass those of its table, as
`quantize{ops=[Conv],smooth=false}`. `graphopt passes` shows the same list, with the passes of installed plugins, and
`graphopt passes NAME` one of them. A pass of your own is named by its file or module, as `my_passes.py:MyPass`.
"""

LEGALIZATION_HEAD = """
## Legalisation

What a target does to the graph after the passes: what its backend lacks, computes otherwise or runs slowly is written
in other operators. For `ort-cpu` and `ort-cuda` the result may hold operators of the domain `com.microsoft`; the other
targets keep to ONNX's own. It is one of the forms that are measured; so is the graph without it, but where all that
changed is exact, or the model is large, and the fastest wins.

"""

CLI_HEAD = """# Command line

Results go to stdout, progress and errors to stderr. Progress is shown only on a terminal, and only for what takes
longer than a second. Every command, `zoo list` and `zoo fetch` among them, takes `--json`, which prints exactly one
object on stdout (on failure `{"error": {"kind", "message", "hint"}}`), and `--debug`, which adds the traceback to an
error.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed; nothing half-written is left, what was there before is untouched |
| 2 | wrong usage: an unknown name, option or value |
| 130, 143 | interrupted, terminated; nothing is left either |

`NO_COLOR` turns colours off. `GRAPHOPT_CACHE` names the folder for what is kept for the next time: fetched models, what
calibration, preparation and the search for a mix of precisions found, checkpoints of distillation, and the kernels
that TVM was tuned to.

A configuration file for `compile --config` holds the same options in a table; paths in it are relative to the file:

```toml
[compile]
target = "cpu"
passes = "fold,fuse{disable=[gelu]}"
input-shape = { x = [1, 3, 48, 320] }
data = "samples.npz"
threads = 2
```
"""


def passes_page() -> str:
    """docs/passes.md"""
    parts = [NOTE, PASSES_HEAD, "\n## Pipelines and groups\n"]
    parts += [
        f"- `{name}`: {', '.join(groups) or 'no pass of the graph; what the target itself needs still runs'}\n"
        for name, groups in PIPELINES.items()
    ]
    listed: set[str] = set()
    for name, group in GROUPS.items():
        after = (
            f" (runs after {', '.join(f'`{needed}`' for needed in group.requires)})" if group.requires else ""
        )
        parts.append(f"\n### `{name}`{after}\n\n")
        for number, stage in enumerate(group.stages, 1):
            members = ", ".join(f"[`{member}`]({_link(member, PASSES)})" for member in stage.members)
            together = ", together until none applies any more" if len(stage.members) > 1 else ""
            again = ", in rounds with its neighbours" if group.is_repeated(stage) else ""
            parts.append(f"{number}. {stage.name}: {members}{together}{again}\n")
            listed |= set(stage.members)
    parts.append("\n## Every pass\n")
    parts += _entries(PASSES)
    parts.append(LEGALIZATION_HEAD)
    parts += _legalization()
    return "".join(parts)


def _legalization() -> Iterator[str]:
    """What each target does, in its order, and then every rewrite and pass of theirs."""
    of_targets = {name: _legalizing(catalog.target(name)) for name in catalog.TARGETS}
    table = {
        cls.name: f"{cls.__module__}:{cls.__name__}"
        for cls in dict.fromkeys((*itertools.chain(*of_targets.values()), *INTEGERS))
    }

    def links(classes: Iterable[Any]) -> str:
        return ", ".join(f"[`{cls.name}`]({_link(cls.name, table)})" for cls in classes)

    for name, classes in of_targets.items():
        # Which of these a processor has is no matter of the documentation.
        always = links(cls for cls in classes if cls not in INTEGERS)
        bytes_too = f"; where the processor multiplies bytes: {links(INTEGERS)}" if name == LLVM else ""
        yield f"- `{name}`: {always}{bytes_too}\n"
    yield from _entries(table)


def _legalizing(target: Target) -> list[Any]:
    """The classes of a target's rewrites and passes, in order."""
    return [
        type(each)
        for stage in target.legalization()
        for each in (stage.rewrites if isinstance(stage, RewritePass) else (stage,))
    ]


def _link(name: str, table: Mapping[str, str]) -> str:
    """Where an entry of a table stands: those of one file share a heading."""
    module = table[name].partition(":")[0]
    heading = " ".join(other for other, path in table.items() if path.partition(":")[0] == module)
    return f"#{heading.lower().replace(' ', '-')}"


def _entries(table: Any) -> Iterator[str]:
    by_module: dict[str, list[str]] = {}
    for name, path in table.items():
        by_module.setdefault(path.partition(":")[0], []).append(name)
    for module_name, names in sorted(by_module.items(), key=lambda pair: pair[1][0]):
        module = importlib.import_module(module_name)
        found = [getattr(module, table[name].partition(":")[2]) for name in names]
        numerics = ", ".join(dict.fromkeys(cls.numerics.value for cls in found))
        yield f"\n### {', '.join(names)}\n\n{_docstring(module)}\n"
        yield from _options(names, found)
        yield f"\n*{numerics}* · [{_source(module_name)}](../{_source(module_name)})\n"


def _options(names: list[str], classes: list[Any]) -> Iterator[str]:
    """A table of each pass's options, as ``graphopt passes NAME`` shows it."""
    for name, cls in zip(names, classes, strict=True):
        options = options_of(cls.Options) if hasattr(cls, "Options") else ()
        if options:
            of = f" of {name}" if len(names) > 1 else ""
            yield f"\n| option{of} | type | default | what it is |\n| --- | --- | --- | --- |\n"
        for option in options:
            cells = (f"`{option.name}`", option.type, f"`{written(option.default)}`", option.meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _source(module: str) -> str:
    return module.removeprefix("graphopt.").replace(".", "/") + ".py"


def _docstring(module: Any) -> str:
    """The algebra as code, then the paragraphs with their labels in bold."""
    first, *rest = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    parts = [f"```text\n{first}\n```"]
    for paragraph in rest:
        for label in ("Forms:", "Refuses:", "Not matched:", "Source:"):
            if paragraph.startswith(label):
                paragraph = f"**{label}**{paragraph[len(label) :]}"
        parts.append(paragraph)
    return "\n\n".join(parts)


def cli_page() -> str:
    """docs/cli.md"""
    parts = [NOTE, CLI_HEAD]
    root = click.Context(cli.app, info_name="graphopt", terminal_width=96)
    for name in cli.app.list_commands(root):
        command = cli.app.get_command(root, name)
        assert command is not None
        parts += _command(command, click.Context(command, info_name=name, parent=root, terminal_width=96))
    return "".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    text = command.get_help(context)
    yield f"\n## {context.command_path}\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(
                inner, click.Context(inner, info_name=name, parent=context, terminal_width=96)
            )


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {ROOT / "docs" / "passes.md": passes_page(), ROOT / "docs" / "cli.md": cli_page()}


def main() -> int:
    """Write or check the pages; returns the exit code."""
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date: make docs", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
