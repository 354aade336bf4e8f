"""``satstore tui``: the terminal app, in a terminal or in a browser."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from satstore.cli.console import print_line
from satstore.cli.options import LogsDir
from satstore.errors import ConfigError, NotFoundError, UnknownNameError
from satstore.registry import suggest
from satstore.runs.logs_folder import find_logs_dir


def open_terminal_app(
    *,
    read_only: Annotated[bool, Parameter(negative="", help="start, end and write nothing")] = False,
    theme: Annotated[str | None, Parameter(help="such as textual-light, nord or gruvbox")] = None,
    serve: Annotated[
        bool, Parameter(negative="", help="in a browser, on this machine only; needs textual-serve")
    ] = False,
    port: Annotated[int, Parameter(help="with --serve")] = 8000,
    logs_dir: LogsDir = None,
) -> None:
    """Open the terminal app, in this terminal or in a browser."""
    if serve:
        serve_app(logs_dir, read_only, theme, port)
    else:
        open_app(logs_dir, read_only, theme)


def open_app(logs_dir: Path | None, read_only: bool, theme: str | None) -> None:
    """Open the terminal app in this terminal."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # the app draws on stderr
        raise ConfigError("the terminal app needs a terminal; without one, see: satstore status")
    from textual.theme import BUILTIN_THEMES

    from tui.app import SatstoreApp

    if theme is not None and theme not in BUILTIN_THEMES:
        suggestion = suggest(theme, BUILTIN_THEMES, len(BUILTIN_THEMES))
        raise UnknownNameError(f"no theme {theme!r}{suggestion}")
    SatstoreApp(find_logs_dir(logs_dir), read_only=read_only, theme=theme).run()


def serve_app(logs_dir: Path | None, read_only: bool, theme: str | None, port: int) -> None:
    """Serve the terminal app to browsers on this machine."""
    try:
        from textual_serve.server import Server
    except ImportError:
        raise NotFoundError(
            "--serve needs textual-serve; install it with: pip install textual-serve"
        ) from None
    words = [sys.executable, "-m", "satstore", "tui", "--logs-dir", str(find_logs_dir(logs_dir).absolute())]
    words += ["--read-only"] if read_only else []
    words += ["--theme", theme] if theme else []
    if not read_only:
        print_line(
            "satstore: warning: whoever is logged in on this machine can start jobs through it, as you; "
            "--read-only forbids that",
            is_error=True,
        )
    # Only on loopback: there is no password, and the app starts processes.
    Server(shlex.join(words), host="127.0.0.1", port=port, title="satstore").serve()
