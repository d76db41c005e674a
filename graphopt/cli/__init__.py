"""The command line: ``graphopt``. One command a file; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from graphopt import interrupt
from graphopt.cli._options import Settings, debug_option
from graphopt.errors import GraphoptError, UnknownNameError

COMMANDS = {
    "compile": "graphopt.cli.compile:command",
    "simplify": "graphopt.cli.simplify:command",
    "tune": "graphopt.cli.tune:command",
    "run": "graphopt.cli.run:command",
    "verify": "graphopt.cli.verify:command",
    "bench": "graphopt.cli.bench:command",
    "inspect": "graphopt.cli.inspect:command",
    "explain": "graphopt.cli.explain:command",
    "passes": "graphopt.cli.passes:command",
    "targets": "graphopt.cli.targets:command",
    "doctor": "graphopt.cli.doctor:command",
    "zoo": "graphopt.cli.zoo:command",
}
"""The commands in the order of ``--help``."""

USAGE, INTERRUPTED, TERMINATED, PIPE_CLOSED = 2, 130, 143, 141


class Group(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of :data:`COMMANDS`."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command is answered with the nearest one."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UnknownNameError("command", args[0], COMMANDS, hint="graphopt --help lists them")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        from graphopt._version import __version__

        click.echo(f"graphopt {__version__}")
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@debug_option
def app() -> None:
    """A compiler for trained models that proves what it does.

    What comes out computes what the model did, is never slower than what you put in, and every decision in between
    is written down.

    \b
      graphopt zoo fetch ppocrv4-rec -o rec.onnx   a real model to try
      graphopt compile rec.onnx                    optimise, verify, measure, write rec.gopt
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    _open_closed_streams()
    args = list(sys.argv[1:] if arguments is None else arguments)
    # Read here as well: a command line that cannot be parsed never comes to its options.
    settings = Settings(debug="--debug" in args, json="--json" in args)
    try:
        with interrupt.handling(signal.SIGTERM, _terminate), interrupt.noted(), _quiet_warnings():
            try:
                code = app.main(args, prog_name="graphopt", standalone_mode=False, obj=settings)
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except BaseException as error:
                return _fail(error, settings)
    except BrokenPipeError:
        # The reader of stdout has gone (graphopt passes | head); Python must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code if isinstance(code, int) else 0


def _open_closed_streams() -> None:
    """Open /dev/null in place of streams that the caller closed (``>&-``): the next file would take their number, and
    what a child process prints would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def _terminate(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM unwind the stack, so that nothing half-written is left behind."""
    del number, frame
    raise SystemExit(TERMINATED)


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """What libraries warn of is for developers; what a user must know is in the report. ``python -W`` shows them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _fail(error: BaseException, settings: Settings) -> int:
    """Say what went wrong, in one message, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if settings.debug:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return USAGE
    message, hint, code = _explain(error, settings)
    print(f"{click.style('error:', fg='red') if _colour() else 'error:'} {message}", file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    if settings.json:
        import json

        failure: dict[str, Any] = {"kind": type(error).__name__, "message": message, "hint": hint}
        print(json.dumps({"error": failure}), flush=True)
    return code


def _explain(error: BaseException, settings: Settings) -> tuple[str, str, int]:
    """Message, hint and exit code."""
    if isinstance(error, GraphoptError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, click.NoSuchOption):
        path = error.ctx.command_path if error.ctx is not None else "graphopt"
        known = [
            name
            for parameter in (error.ctx.command.get_params(error.ctx) if error.ctx is not None else ())
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        ]
        hint = f"{path} --help lists them"
        return UnknownNameError(f"option of {path!r}", error.option_name, known).message, hint, USAGE
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "graphopt"
        message = error.format_message().rstrip(".")
        return message, _where_it_belongs(message, error.ctx) or f"see {path} --help", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), "", error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", "use a machine with more, or fix large dynamic sizes with --input-shape", 1
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return what, "" if settings.debug else "--debug shows where", 1
    summary = " ".join(str(error).split())[:300]
    hint = (
        "please report this"
        if settings.debug
        else "a bug: run it again with --debug and report what it prints"
    )
    return f"{type(error).__name__}: {summary}", hint, 1


def _where_it_belongs(message: str, context: click.Context | None) -> str:
    """For an argument too many: the option that takes it; "" where none does."""
    extra = re.search(r"unexpected extra arguments? \((\S+?)[ )]", message)
    if extra is None or context is None:
        return ""
    name = extra.group(1)
    options = {option for parameter in context.command.params for option in parameter.opts}
    if name.endswith((".npz", ".npy")) and "--data" in options:
        return f"data are given with --data: {context.command_path} ... --data {name}"
    if context.command.name == "compile":
        output = os.path.splitext(name)[0] + ".gopt"
        return f"the output is given with -o: {context.command_path} MODEL -o {output}"
    return ""


def _colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


__all__ = ["COMMANDS", "Group", "Settings", "app", "main"]
