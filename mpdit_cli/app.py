"""The `mpdit` command: its subcommands and the one place where errors become exit codes.

To add a command: a module in `mpdit_cli/commands/` with a function `command`, and a line in `COMMANDS`. Modules there
import torch only inside the function, so that `mpdit --help` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mpdit_cli import console
from mpdit_cli.fields import Command, Group
from mpdit_cli.plugin_commands import add_plugin_commands
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.runtime.signals import handle_stop_signals, interrupt

# command: module (without the package), in the order of `--help`
COMMANDS = {
    "encode-latents": "encode_latents",
    "train": "train",
    "sample": "sample",
    "eval-fid": "eval_fid",
    "profile-flops": "profile_flops",
    "ls": "ls",
    "demo": "demo",
    "import": "import_checkpoint",
    "export": "export",
    "plugins": "plugins",
    "doctor": "doctor",
    "report": "report",
}

# What the system refuses to do with a path that the user gave, or with a file below it.
REFUSED_BY_SYSTEM = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EIO}

EXIT_USER_ERROR = 2
EXIT_DEFECT = 1


def build_app(called: str = "") -> typer.Typer:
    """The app with all commands, or with `called` alone if it is one of ours. Of plugins, only `called` is imported."""
    app = typer.Typer(
        name="mpdit",
        cls=Group,
        help="Train, sample and evaluate MPDiT, a diffusion transformer that generates images.",
        epilog="To begin: `mpdit demo`, or `mpdit encode-latents DIR` with your own images.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=True,
    )

    @app.callback()
    def main(
        version: Annotated[
            bool,
            typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
        ] = False,
    ) -> None:
        pass

    wanted = {called: COMMANDS[called]} if called in COMMANDS else COMMANDS
    for name, module in wanted.items():
        imported = importlib.import_module(f"mpdit_cli.commands.{module}")
        if hasattr(imported, "app"):  # a command with subcommands
            app.add_typer(imported.app, name=name)
        else:
            app.command(name, cls=Command)(imported.command)
    add_plugin_commands(app, taken=COMMANDS, called=called)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from mpdit_core.version import __version__

        typer.echo(f"mpdit {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code (see README, "Exit codes")."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    before = handle_stop_signals(interrupt)
    console.configure(json="--json" in arguments, quiet="--quiet" in arguments)
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # torch advises it; our float32 is exact
    try:
        called = next((argument for argument in arguments if not argument.startswith("-")), "")
        command = typer.main.get_command(build_app(called))
        if "_MPDIT_COMPLETE" in os.environ:  # the shell asks what may be typed next
            command.main(prog_name="mpdit")
        code: Any = command.main(args=arguments, prog_name="mpdit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UserError as error:
        console.user_error(error)
        return EXIT_USER_ERROR
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal may be gone
            console.stopped(interrupted, remedy=interrupted.remedy or shlex.join(["mpdit", *arguments]))
        return 128 + interrupted.signum
    except BrokenPipeError:  # `mpdit … | head`: the reader has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until the interpreter ends
        return 0
    except MemoryError:
        remedy = "use a smaller batch, a smaller model or fewer images"
        console.user_error(UserError("the memory of this machine is full", code="out-of-memory", remedy=remedy))
        return EXIT_USER_ERROR
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "show"):  # click's, for a command line it cannot read
            console.usage_error(error)
            return EXIT_USER_ERROR
        if isinstance(error, OSError) and error.errno in REFUSED_BY_SYSTEM:
            what = f"{error.filename}: {error.strerror}"
            expected = "a path that the system accepts and that this user may use"
            console.user_error(UserError(what, code="refused-by-system", expected=expected))
            return EXIT_USER_ERROR
        console.defect(error)
        return EXIT_DEFECT
    except BaseException as error:  # our own code raises no others
        if "_MPDIT_COMPLETE" in os.environ:
            return 0
        if isinstance(error.__context__, BrokenPipeError):  # how Typer passes it on
            return 0
        what = f"a plugin or a library ended the command with {type(error).__name__}: {error}"
        console.user_error(UserError(what, code="broken-plugin", remedy="report it to the author of the plugin"))
        return EXIT_USER_ERROR
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def entry_point() -> None:
    sys.exit(main())
