"""``satstore tui``: the terminal app, in a terminal or in a browser."""

import shlex
import sys
from pathlib import Path

from satstore.cli.console import say
from satstore.errors import ConfigError, NotFoundError, UnknownNameError
from satstore.registry import suggest
from satstore.runs.logs_folder import find_logs_dir


def open_app(logs_dir: Path | None, read_only: bool, theme: str | None) -> None:
    """Open the terminal app.

    Raises
    ------
    ConfigError
        If there is no terminal, or no such theme.
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # it draws on stderr
        raise ConfigError("the terminal app needs a terminal; without one, see: satstore status")
    from textual.theme import BUILTIN_THEMES

    from tui.app import SatstoreApp

    if theme is not None and theme not in BUILTIN_THEMES:
        near = suggest(theme, BUILTIN_THEMES, len(BUILTIN_THEMES))
        raise UnknownNameError(f"no theme {theme!r}{near}")
    SatstoreApp(find_logs_dir(logs_dir), read_only=read_only, theme=theme).run()


def serve_app(logs_dir: Path | None, read_only: bool, theme: str | None, port: int) -> None:
    """Serve the terminal app to browsers on this machine.

    Raises
    ------
    NotFoundError
        If textual-serve isn't installed.
    """
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
        say(
            "satstore: warning: whoever is logged in on this machine can start jobs through it, as you; "
            "--read-only forbids that",
            is_error=True,
        )
    # On loopback alone: there is no password, and it starts processes.
    Server(shlex.join(words), host="127.0.0.1", port=port, title="satstore").serve()
