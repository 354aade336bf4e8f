"""A process in which every connection is refused, as where there is no network."""

import socket
from typing import Any

import pytest


def refuse_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no name be found, and no connection be made."""

    def find_no_name(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", find_no_name)
    monkeypatch.setattr(socket.socket, "connect", refuse)
