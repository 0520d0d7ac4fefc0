"""Error messages in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Unwritable(OSError):
    """The disk is full or not writable."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk error into Unwritable, which names the path: the error of a full disk names none.

    An OSError without an errno is this project's own, or comes from reading, and passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise Unwritable(f"cannot write {path}: {error.strerror}") from None


def one_line(error: BaseException) -> str:
    """The whole message on one line, or the type of an error without a message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the message, up to 100 characters: a library's message may have many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
