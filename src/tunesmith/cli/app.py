"""The `tunesmith` command: its table of commands, the one table of exit codes, and the edge where errors end.

A command's module is imported when the command runs, so that `tunesmith --help` answers in under 0.3 s. No traceback
reaches a user: a fault of ours is written to a log, and its place is named.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tunesmith import __version__
from tunesmith.cli.chosen import forget_project, with_project
from tunesmith.cli.output import Output, silence
from tunesmith.errors import (
    REFERENCE,
    Conflict,
    InputRefused,
    JobFailed,
    MachineCannot,
    NotPermitted,
    TunesmithError,
    Unknown,
    UsageFault,
)

EXIT_CODES: dict[type[TunesmithError], int] = {
    TunesmithError: 1,
    UsageFault: 2,
    Unknown: 2,
    InputRefused: 3,
    Conflict: 3,
    MachineCannot: 4,
    JobFailed: 5,
    NotPermitted: 6,
}
EXIT_INTERRUPTED = 130

# name -> what it does; the module is tunesmith.cli.<name> (`_` for `-`), with a Typer named `app`
COMMANDS = {
    "demo": "Fine-tune the bundled model on the bundled data, on any machine.",
    "finetune": "Fine-tune a model on a dataset, the whole way in the foreground.",
    "plan": "Show what a fine-tuning run would do and cost; start nothing.",
    "model": "Search, show, register and download base models.",
    "download": "Downloads of base models: list, show, cancel, resume.",
    "dataset": "Check a file; list, show and upload datasets.",
    "job": "Submit, watch, list, show, resume, pause, cancel, clone and delete jobs.",
    "version": "List, show, compare, alias and export model versions.",
    "chat": "Talk to a base model or a model version.",
    "version-set": "List and show sets of model versions.",
    "location": "Declare, change, check and browse places of datasets and results.",
    "log": "List and make named logs.",
    "network": "List and declare networks.",
    "shape": "Show the machines that jobs may run on.",
    "project": "List, make and delete projects.",
    "policy": "Say who may do what in which projects.",
    "quota": "Show and change what a principal may take up.",
    "token": "List, make and revoke tokens of the service.",
    "audit": "List who changed what.",
    "state": "Show, back up, restore and clean the state folder.",
    "system": "Show the server: release, disk, devices, queue.",
    "serve": "Serve the REST API, and run the jobs submitted to it.",
    "bench": "Measure how fast this machine trains, beside what it can do.",
    "doctor": "Show what this machine has, and the one command that mends what is wrong.",
}


OF_NO_PROJECT = frozenset({"state", "serve", "bench", "doctor"})  # of this machine, whatever the project


def exit_code_of(error: TunesmithError) -> int:
    return EXIT_CODES[type(error)]


class Interrupted(BaseException):
    """Somebody asked to stop before a job was started. No KeyboardInterrupt, which typer ends without a word."""


class LazyCommands(TyperGroup):
    """The group of all commands; each one's module is imported when it is asked for by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tunesmith.cli.{cmd_name.replace('-', '_')}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command if cmd_name in OF_NO_PROJECT else with_project(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """From the table alone: the help of all commands imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=LazyCommands,
    rich_markup_mode=None,  # rich's help costs 0.4 s
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Fine-tune open LLMs with LoRA, with the evidence that the result is better.",
)


@app.callback(invoke_without_command=True)
def tunesmith(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"tunesmith {__version__}\n")
        raise typer.Exit()


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own_words = words[: words.index("--")] if "--" in words else words
    output = Output(json_wanted="--json" in own_words)
    forget_project()
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = app(words, prog_name="tunesmith", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except TunesmithError as error:
        if error.hint == REFERENCE:
            error.hint = f"See `{_command_of(words)} --help`."
        output.error(error.form())
        return exit_code_of(error)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer does not export it
            output.warn(error.format_message())
        else:
            output.error(_usage_form(error, words))
        return EXIT_CODES[UsageFault]
    except (Interrupted, typer.Abort):
        output.error(
            {"code": "INTERRUPTED", "message": "Interrupted; no job was started.", "field": None, "hint": None}
        )
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)
        return 0
    except Exception as error:  # noqa: BLE001  # the edge of the process
        told = _disk_full(error) or _name_too_long(error) or _fault_of_ours(error)
        output.error(told.form())
        return exit_code_of(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _flush()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            silence(stream)


def _command_of(words: Sequence[str]) -> str:
    """`tunesmith job submit`: what was run, without its arguments."""
    if not words or words[0] not in COMMANDS:
        return "tunesmith"
    command = LazyCommands().get_command(None, words[0])
    is_verb = isinstance(command, TyperGroup) and len(words) > 1 and words[1] in command.commands
    return " ".join(["tunesmith", *words[: 2 if is_verb else 1]])


def _usage_form(error: typer.TyperException, words: Sequence[str]) -> Any:
    context = getattr(error, "ctx", None)
    named = f"tunesmith {words[0]}" if words and words[0] in COMMANDS else "tunesmith"
    command = context.command_path if context is not None else named
    message = error.format_message()
    return UsageFault(
        "USAGE", message if message.endswith((".", ")", "?")) else message + ".", hint=f"See `{command} --help`."
    ).form()


def _disk_full(error: Exception) -> TunesmithError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return MachineCannot(
        "DISK_FULL",
        f"The disk is full: {error.filename or 'a file of TUNESMITH_HOME'} could not be written.",
        field="TUNESMITH_HOME",
        hint="Free some space, then start again, or go on with a job by `tunesmith job resume`.",
    )


def _name_too_long(error: Exception) -> TunesmithError | None:
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    named = f"{str(error.filename)[:60]!r}..." if error.filename else "A name"
    return InputRefused(
        "BAD_LOCATION",
        f"{named} is too long for the file system (often 255 bytes a name).",
        hint="Write a shorter one.",
    )


def _fault_of_ours(error: Exception) -> TunesmithError:
    """Write the traceback where it can be found, and say where."""
    from datetime import UTC, datetime
    from pathlib import Path
    from tempfile import gettempdir

    from tunesmith.jobs.home import home_path

    text = "".join(traceback.format_exception(error))
    name = f"fault-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    for folder in (home_path(os.environ) / "logs", Path(gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            where = f"The details are in {folder / name}; please report them."
            break
        except OSError:
            continue
    else:
        where = "No folder could be written to keep the details."
    return TunesmithError("INTERNAL", f"A fault of ours: {type(error).__name__}: {error}", hint=where)
