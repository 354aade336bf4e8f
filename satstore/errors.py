"""The errors that satstore raises on purpose.

Each says in one line what was found, what was expected and what to do, and is also the built-in
exception that a caller would expect, so that ``except FileNotFoundError`` works as it should.
"""


def printable(text: str, kept: str = "\n\t") -> str:
    """Replace characters that could command a terminal by ``�``.

    These are control characters, those that change the direction of a text, and broken UTF-8; ends of lines
    and tabs are kept.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else "�" for c in text)


class SatstoreError(Exception):
    """The base of every error that satstore raises on purpose."""

    def __str__(self) -> str:
        # KeyError and OSError format their arguments in their own ways; here it is one line of text, and what
        # it quotes from a file must not command a terminal.
        return printable(str(self.args[0])) if self.args else type(self).__name__


class ConfigError(SatstoreError, ValueError):
    """A config, a parameter or a name that can't be used."""


class UnknownNameError(ConfigError, KeyError):
    """A name that no registry entry, layer, split, run or experiment has."""


class NotFoundError(SatstoreError, FileNotFoundError):
    """A run, a dataset, a store or a table that isn't there."""


class MissingStageError(SatstoreError, RuntimeError):
    """A stage that needs the missing results of another stage."""


class StageError(SatstoreError, RuntimeError):
    """A stage that failed unexpectedly; the cause is the error that was raised."""


class LockedError(SatstoreError, BlockingIOError):
    """An experiment that another process is writing."""


class CorruptError(SatstoreError, OSError):
    """Stored data that is not what was committed."""


class UnreachableError(SatstoreError, ConnectionError):
    """Object storage that does not answer, or refuses."""


class DeviceError(SatstoreError, RuntimeError):
    """A device that isn't there or can't be used."""


class ClusterError(SatstoreError, ConnectionError):
    """A Dask cluster that does not answer, or that lost what it was computing."""


class NumericsError(SatstoreError, ArithmeticError):
    """NaN, infinities or overflow where finite numbers are needed."""


class DiskSpaceError(SatstoreError, OSError):
    """A disk that has no room for what is to be written."""


class MemoryLimitError(SatstoreError, MemoryError):
    """Work that needs more memory than its limit, or the machine, allows."""


def reason_of(error: BaseException, *, with_type: bool = False) -> str:
    """Return an exception's message in one line, with its type on request; the type alone if it is empty."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {text}" if with_type else text) if text else name
