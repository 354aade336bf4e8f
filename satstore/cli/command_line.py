"""The words of the command line that this process runs."""

from collections.abc import Sequence
from contextvars import ContextVar

_words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def set_words(words: Sequence[str]) -> None:
    """Set the words of the command line, without ``satstore``."""
    _words.set(tuple(words))


def get_words() -> tuple[str, ...]:
    """Return the words of the command line, without ``satstore``."""
    return _words.get()


def words_without(*flags: str) -> list[str]:
    """Return the words of the command line, without some flags and their values.

    A flag is given as ``--detach``, which also removes ``--detach=true``, or, if it takes a value, as
    ``--logs-dir=``, which also removes the value.
    """
    names = {flag.rstrip("=") for flag in flags}
    kept, words = [], iter(get_words())
    for word in words:
        if f"{word}=" in flags:
            next(words, None)
        elif word.partition("=")[0] not in names:
            kept.append(word)
    return kept
