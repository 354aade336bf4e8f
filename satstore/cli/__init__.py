"""The command line: a command per stage, its flags made from the stage's parameters, and those that look."""

import atexit
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from satstore.cli import command
from satstore.cli.app import add_stages, app
from satstore.cli.console import say, take_any_encoding
from satstore.errors import SatstoreError
from satstore.system.signals import STOPPED

if TYPE_CHECKING:
    from cyclopts import CycloptsError
    from pydantic import ValidationError

    from satstore.runs.run import Run


def main(tokens: list[str] | None = None) -> None:
    """Run a command line and exit.

    With 0 if all went well, 1 on an error, 2 on a wrong usage, 130 on Ctrl-C, 143 where it was terminated.
    """
    words = sys.argv[1:] if tokens is None else tokens
    debug = "--debug" in words
    command.words = tuple(words)
    take_any_encoding()
    _announce_plugins()
    code = _run([word for word in words if word != "--debug"], debug)
    if tokens is None and code in STOPPED:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End this process without taking the interpreter down, which libraries' threads may still be busy in.

    After Ctrl-C they are stopped in the midst of their work, and some abort where they find it gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one has nothing left to stop
    atexit._run_exitfuncs()  # ends what works for this process, and removes temporary files
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


class _Announcer(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        say(f"satstore: {record.getMessage()}", is_error=True)


def _announce_plugins() -> None:
    """Say on stderr which modules a config has imported."""
    log = logging.getLogger("satstore.plugins")
    if not log.handlers:
        log.addHandler(_Announcer())
        log.setLevel(logging.INFO)
        log.propagate = False  # the progress bar shows what else is logged


def _run(words: list[str], debug: bool) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError
    from pydantic import ValidationError

    from satstore.config.validation import describe_invalid

    try:
        words = _with_stages(words)
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except UnusedCliTokensError as error:
        name, unused = " ".join(error.command_chain or ()), " ".join(error.unused_tokens or ())
        return _say(f"{name} takes nothing more, but found: {unused}; see satstore {name} --help", 2, debug)
    except CycloptsError as error:
        cause = error.__cause__
        text = _describe_flags(cause, error) if isinstance(cause, ValidationError) else str(error)
        return _say(text, 2, debug)
    except ValidationError as error:
        return _say(describe_invalid(error), 2, debug)
    except SatstoreError as error:
        return _say(str(error), 1, debug)
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, command.Terminated) else 130
        return _say("stopped; the same command goes on where this one was", code, debug)
    except BrokenPipeError:
        # Who read our output has had enough; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _with_stages(words: list[str]) -> list[str]:
    """Make commands of the stages that plugins of the named config or run bring; return the words, spelt so.

    What is wrong with the config or the run, the command says itself.
    """
    from satstore.config.grid import read_config
    from satstore.registry import STAGES
    from satstore.runs.logs_folder import find_runs

    if not words or words[0].startswith("-") or (words[0] in app and words[0] != "run"):
        return words
    given = {flag: _value(words, flag) for flag in ("--config", "--run", "--logs-dir")}
    runs: list[Run] = []
    with contextlib.suppress(SatstoreError, ImportError, OSError):
        if given["--config"] is not None:
            read_config(given["--config"])  # which imports its plugins
        runs = find_runs(given["--run"], given["--logs-dir"], unreadable=[]) if given["--run"] else []
    for run in runs:
        run.load_plugins()
    add_stages()
    return [STAGES.entry(words[0]).name, *words[1:]] if words[0] in STAGES else words


def _value(words: list[str], flag: str) -> str | None:
    """Return what follows a flag, after a blank or ``=``; None where it isn't there."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _describe_flags(cause: "ValidationError", error: "CycloptsError") -> str:
    """Return what pydantic found wrong, by the flags that were typed."""
    from satstore.config.validation import describe_invalid_item

    argument = error.argument
    flags = {} if argument is None else {child.keys[-1]: child.name for child in argument.children}
    own = "" if argument is None or flags else argument.name
    items = cause.errors()
    return "; ".join(
        describe_invalid_item(item, flags.get(str((*item["loc"], "")[0]), own)) for item in items
    )


def _say(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    say(f"satstore: {' '.join(text.split())}", is_error=True)
    return code
