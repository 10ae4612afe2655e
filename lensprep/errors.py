"""The project's own exceptions: every one is a message that a user can act on.

ProjectError
├── InputError          the source data
│   └── SchemaError     ... its columns and types
├── DatasetError        a converted dataset
│   └── ShardError      ... one shard of it
├── ConfigError         a configuration file or override
├── CheckpointError     a training checkpoint
├── ScoresError         a table of scores
├── StorageError        a disk or an object store
│   ├── NotFoundError   ... has no such file or object
│   └── ChangedError    ... holds something else than it should, or than it did a moment ago
├── BudgetError         a limit on rejects, memory or disk
└── OutOfMemoryError    the memory of the machine or of a GPU

Helpers for messages: `size_text` writes sizes, `time_text` durations, `count_text` numbers of
things, and `names_text` the names that were found where one is missing. `passing_fault` separates
failures to read a file from faults of the file itself. `plain_text` makes foreign text safe to
show, and `error_line` a foreign error.
"""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# A password in an http URL may have slashes; a name in the URI of an object may have "@".
_LOGIN: Final = re.compile(r"(?<=http://)\S*@|(?<=https://)\S*@|(?<=://)[^/@\s]*@")


def size_text(count: float) -> str:
    """Bytes in decimal units, as disks are sold: "673 B", "40.0 MB", "2.3 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: int, noun: str) -> str:
    """A number of things: "1 row", "2,000 lenses", "3 families"."""
    if count == 1:
        return f"1 {noun}"
    stem = re.sub(r"(?<=[^aeiou])y$", "ie", noun)
    return f"{count:,} {stem}{'es' if stem.endswith('s') else 's'}"


def time_text(seconds: float) -> str:
    """A duration for people: "45 s", "3.2 h"."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def names_text(names: Iterable[str], wanted: str = "", most: int = 40) -> str:
    """Names that were found, those closest to the missing one first: "RA_DEG, dec, key"."""
    found = list(dict.fromkeys(names))
    folded = {name.casefold(): name for name in found}
    near = [folded[name] for name in get_close_matches(wanted.casefold(), folded)]
    ordered = [*near, *(name for name in found if name not in near)]
    more = f" and {len(ordered) - most:,} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "none") + more


def plain_text(text: str, most: int | None = None) -> str:
    """One line for a terminal, without control characters or the passwords of URLs.

    Parameters
    ----------
    text : str
        Names, columns or messages from outside.
    most : int, optional
        Characters to keep.
    """
    line = without_control(_LOGIN.sub("", " ".join(text.split())))
    return line if most is None or len(line) <= most else f"{line[:most]}..."


def error_line(error: BaseException, most: int = 300) -> str:
    """First line of an error's message, without a full stop, or its class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most].rstrip(".")


def without_control(text: str) -> str:
    """Lines of text without the control characters that a terminal would obey."""
    return _CONTROL.sub("?", text)


class ProjectError(Exception):
    """Base of all errors that the command line shows as one line and exit status 1."""


class InputError(ProjectError):
    """The source data cannot be found or read."""


class SchemaError(InputError):
    """A column of the source is missing or has another type than the contract asks for."""


class DatasetError(ProjectError):
    """A dataset is missing, not committed, or disagrees with its own manifest."""


class ShardError(DatasetError):
    """A shard is cut, altered or missing; the message names the shard and the offset."""


class ConfigError(ProjectError):
    """A configuration has an unknown key or a value out of range."""


class CheckpointError(ProjectError):
    """A checkpoint is damaged or belongs to something else."""


class ScoresError(ProjectError):
    """A table (scores, catalogue, ...) lacks a column or a class, or holds unusable values."""


class StorageError(ProjectError):
    """A file or object could not be read or written."""


class NotFoundError(StorageError):
    """There is no such file or object."""


class ChangedError(StorageError):
    """A file or object is not what it should be, or was replaced while it was read."""


class BudgetError(ProjectError):
    """A limit set by the user (rejected rows, memory, disk) would be passed."""


class OutOfMemoryError(ProjectError):
    """The machine or its GPU has less memory than the work takes; the message says what to set."""


def passing_fault(where: object, error: BaseException) -> StorageError | None:
    """The error to raise if a file could not be read for a reason outside the file.

    After a failure of permissions, disk, network, memory or open files nothing is known about the
    content, so the file must not be called damaged, left out, or replaced by an older one.

    Parameters
    ----------
    where : object
        The file, as the message is to name it.
    error : exception
        What the system, or a parser such as pyarrow's, raised.

    Returns
    -------
    StorageError or None
        NotFoundError if there is no such file; None if the fault lies in what was read.
    """
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: no such file.")
    if isinstance(error, MemoryError):
        return StorageError(
            f"There is not enough memory to read {where}. Use fewer processes, or a machine with "
            "more memory."
        )
    if isinstance(error, OSError) and error.errno is not None:
        # pyarrow's own text repeats the path and adds a "Detail".
        return StorageError(f"{where} cannot be read: {os.strerror(error.errno)}.")
    return None
