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
└── BudgetError         a limit on rejects, memory or disk

`size_text` writes sizes in them, and wherever else a person reads one; `names_text` what there is
where a name is missing. `passing_fault` tells what kept a file from being read from what is wrong
with the file, `plain_text` is what may be shown of a text that others wrote, and `error_line` of
an error of theirs.
"""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# In the address of a server a password may have slashes; in that of an object a name may have "@".
_LOGIN: Final = re.compile(r"(?<=http://)\S*@|(?<=https://)\S*@|(?<=://)[^/@\s]*@")


def size_text(count: float) -> str:
    """Bytes for people, in decimal units as disks are sold: "673 B", "40.0 MB", "2.3 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def names_text(names: Iterable[str], wanted: str = "", most: int = 40) -> str:
    """Names that were found, those most like the one that is missing first: "RA_DEG, dec, key"."""
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
        Names, columns, messages of others.
    most : int, optional
        Characters to keep.
    """
    line = without_control(_LOGIN.sub("", " ".join(text.split())))
    return line if most is None or len(line) <= most else f"{line[:most]}..."


def error_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error says, without a full stop, or its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most].rstrip(".")


def without_control(text: str) -> str:
    """Lines of text without what a terminal would take for an order, such as a change of colour."""
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


def passing_fault(where: object, error: BaseException) -> StorageError | None:
    """The error of a file that could not be read for a reason outside of it, if that is what it is.

    Permission, a disk or a network that fails, too many open files, memory: nothing is known of the
    content then, so it must not be called damaged, left out, or replaced by something older.

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
            "more of it."
        )
    if isinstance(error, OSError) and error.errno is not None:
        # pyarrow's text has the path and a "Detail" of its own.
        return StorageError(f"{where} cannot be read: {os.strerror(error.errno)}.")
    return None
