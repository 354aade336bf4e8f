"""The words of the command line that this process runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


@contextmanager
def set_words(words: Sequence[str]) -> Iterator[None]:
    """Set the words of the command line, without ``satstore``, while the block runs."""
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def get_words() -> tuple[str, ...]:
    """Return the words of the command line, without ``satstore``."""
    return _words.get()


def words_without(*flags: str) -> list[str]:
    """Return the words of the command line, without some flags and their values.

    Parameters
    ----------
    *flags
        Such as ``--detach``, which also removes ``--detach=true``; or, for a flag that takes a value,
        ``--logs-dir=``, which also removes the value.
    """
    kept, skips_value = [], False
    for word in get_words():
        if skips_value:
            skips_value = False
        elif word.partition("=")[0] in flags or any(word.startswith(f) for f in flags if f.endswith("=")):
            continue
        elif f"{word}=" in flags:
            skips_value = True
        else:
            kept.append(word)
    return kept
