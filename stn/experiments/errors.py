"""What an error says, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Unwritable(OSError):
    """This machine's disk is full, or not ours to write to."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise Unwritable, which names the path, for an error of the disk: that of a full one names none.

    An error without a number is one of ours, or of what is read meanwhile.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise Unwritable(f"cannot write {path}: {error.strerror}") from None


def one_line(error: BaseException) -> str:
    """All that it says, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what it says, up to 100 characters: a library's message may go on over many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
