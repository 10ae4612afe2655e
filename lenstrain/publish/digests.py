"""SHA256SUMS: the digest of every file of a folder, as `sha256sum -c` reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lensprep.errors import StorageError, names_text
from lensprep.store import file_sha256

SUMS: Final = "SHA256SUMS"
_LINE: Final = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\\]+)")


def files_of(folder: Path) -> list[str]:
    """Names of all files in a folder, in order.

    Raises
    ------
    StorageError
        If it holds a link, which may lead anywhere, or something that is no file.
    """
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StorageError(f"{path} is a link or no plain file, which is not published.")
        if path.is_file():
            found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def write_sums(folder: Path) -> None:
    """Write the digests of all files."""
    (folder / SUMS).write_text(_sums(folder, files_of(folder)), encoding="utf-8")


def check_sums(folder: Path) -> int:
    """Compare every file with its digest; returns how many there are.

    Any other byte is found, in the list of digests too: it must be the very text that the files
    give.

    Raises
    ------
    StorageError
        With the names of files that differ, are missing, or are not listed.
    """
    try:
        text = (folder / SUMS).read_bytes().decode("utf-8")
    except (OSError, ValueError):
        raise StorageError(
            f"{folder} has no readable {SUMS}: it is not a whole publication."
        ) from None
    names = [name for name in files_of(folder) if name != SUMS]
    if text == (now := _sums(folder, names)):
        return len(names)
    stated, found = _read(text), _read(now)
    faults = [
        (stated.keys() - found.keys(), "missing"),
        (found.keys() - stated.keys(), f"not listed in {SUMS}"),
        ({name for name in stated.keys() & found.keys() if stated[name] != found[name]}, "altered"),
    ]
    words = [f"{what}: {names_text(sorted(names))}" for names, what in faults if names]
    raise StorageError(
        f"{folder} is not as it was published; {'; '.join(words) or f'altered: {SUMS}'}. Fetch it "
        "again."
    )


def _sums(folder: Path, names: Iterable[str]) -> str:
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)


def _read(text: str) -> dict[str, str]:
    lines = filter(None, map(_LINE.fullmatch, text.splitlines()))
    return {line[2]: line[1] for line in lines}
