"""The entry point of the command ``satstore``: run a command line, report its errors, and exit."""

import atexit
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from satstore.cli.app import add_stages, app
from satstore.cli.command_line import ARGUMENTS
from satstore.cli.console import PrintingHandler, print_line, replace_unencodable
from satstore.cli.interrupts import Terminated
from satstore.errors import SatstoreError
from satstore.system.signals import STOPPED

if TYPE_CHECKING:
    from cyclopts import CycloptsError
    from pydantic import ValidationError

    from satstore.runs.run import Run


def main(tokens: list[str] | None = None) -> None:
    """Run a command line and exit.

    The exit code is 0 on success, 1 on an error, 2 on wrong usage, 130 on Ctrl-C and 143 on SIGTERM.
    """
    words = sys.argv[1:] if tokens is None else tokens
    replace_unencodable()
    _print_plugin_messages()
    ARGUMENTS.set(tuple(words))
    code = _run([word for word in words if word != "--debug"], debug="--debug" in words)
    if tokens is None and code in STOPPED:
        _exit_at_once(code)
    sys.exit(code)


def _exit_at_once(code: int) -> None:
    """End this process without finalizing the interpreter.

    After an interrupt, threads of libraries may still run; some abort while the interpreter is torn down.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second interrupt has nothing left to stop
    atexit._run_exitfuncs()  # ends child processes, and removes temporary files
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _print_plugin_messages() -> None:
    """Print on stderr which plugins are imported."""
    log = logging.getLogger("satstore.plugins")
    if not log.handlers:
        log.addHandler(PrintingHandler(lambda text: print_line(f"satstore: {text}", is_error=True)))
        log.setLevel(logging.INFO)
        log.propagate = False  # the progress bar prints the other records


def _run(words: list[str], *, debug: bool) -> int:
    """Run a command line and report its error; return the exit code."""
    from cyclopts import CycloptsError, UnusedCliTokensError
    from pydantic import ValidationError

    from satstore.config.validation import describe_invalid

    try:
        words = _add_plugin_stages(words)
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except UnusedCliTokensError as error:
        name, unused = " ".join(error.command_chain or ()), " ".join(error.unused_tokens or ())
        return _fail(f"{name} takes nothing more, but found: {unused}; see satstore {name} --help", 2, debug)
    except CycloptsError as error:
        cause = error.__cause__
        text = _describe_flags(cause, error) if isinstance(cause, ValidationError) else str(error)
        return _fail(text, 2, debug)
    except ValidationError as error:
        return _fail(describe_invalid(error), 2, debug)
    except SatstoreError as error:
        return _fail(str(error), 1, debug)
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        return _fail(str(stop) or "stopped; the same command goes on where this one was", code, debug)
    except BrokenPipeError:
        # The reader of stdout is gone; without this, Python reports that again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _fail(text: str, code: int, debug: bool) -> int:
    """Print an error as one line on stderr, after its traceback if wanted; return the exit code."""
    if debug:
        import traceback

        traceback.print_exc()
    print_line(f"satstore: {' '.join(text.split())}", is_error=True)
    return code


def _add_plugin_stages(words: list[str]) -> list[str]:
    """Make commands of the stages that plugins of the named config or run add.

    Return the command line with a stage's name as it is registered. Errors in the config or run are left to
    the command, which reports them.
    """
    from satstore.config.grid import read_config
    from satstore.registry import STAGES
    from satstore.runs.logs_folder import find_runs

    if not words or words[0].startswith("-") or (words[0] in app and words[0] != "run"):
        return words
    given = {flag: _find_value(words, flag) for flag in ("--config", "--run", "--logs-dir")}
    runs: list[Run] = []
    with contextlib.suppress(SatstoreError, ImportError, OSError):
        if given["--config"] is not None:
            read_config(given["--config"])  # imports the config's plugins
        runs = find_runs(given["--run"], given["--logs-dir"], unreadable=[]) if given["--run"] else []
    for run in runs:
        run.load_plugins()
    add_stages()
    return [STAGES.entry(words[0]).name, *words[1:]] if words[0] in STAGES else words


def _find_value(words: list[str], flag: str) -> str | None:
    """Return a flag's value, given as ``--flag value`` or ``--flag=value``; None if the flag is missing."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _describe_flags(cause: "ValidationError", error: "CycloptsError") -> str:
    """Describe a pydantic error by the flags that were typed."""
    from satstore.config.validation import describe_invalid_item

    argument = error.argument
    flags = {} if argument is None else {child.keys[-1]: child.name for child in argument.children}
    own = "" if argument is None or flags else argument.name
    items = cause.errors()
    return "; ".join(
        describe_invalid_item(item, flags.get(str((*item["loc"], "")[0]), own)) for item in items
    )
