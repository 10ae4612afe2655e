"""Links from a page to the others of the same run, wherever the folder is opened or moved to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from lensprep.errors import ProjectError
from lensprep.store import Uri, exists, is_remote, join_uri, local_path, read_file
from lenstrain.pages.page import (
    AUDIT_NAME,
    AUDIT_PAGE,
    METRICS_NAME,
    PROBE_NAME,
    PROBE_PAGE,
    REPORT_NAME,
)

_PAGES: Final = {
    "report": (REPORT_NAME, METRICS_NAME),
    "probe": (PROBE_PAGE, PROBE_NAME),
    "audit": (AUDIT_PAGE, AUDIT_NAME),
}
"""Page of each folder, and the file there that names the checkpoint."""


def pages_of(run: Uri, checkpoint_sha256: str) -> dict[str, str]:
    """Report, probes and audit of a checkpoint, by these names, in the run folder or next to it.

    A page in a folder of another name, and one of another checkpoint, is not found.
    """
    found: dict[str, str] = {}
    for name, (page, facts) in _PAGES.items():
        for place in (_path(run), _parent(run)):
            folder = join_uri(place, name)
            with suppress(ProjectError):
                if checkpoint_sha256.encode() in read_file(join_uri(folder, facts)):
                    found.setdefault(name, join_uri(folder, page))
    return found


def run_of(checkpoint: Uri) -> str:
    """Folder of the run that a checkpoint lies in; its own folder if it is a loose file."""
    folder = _parent(checkpoint)
    return _parent(folder) if folder.endswith("/checkpoints") else folder


def name_of(folder: Uri) -> str:
    """Last part of where a run lies, for titles."""
    return _path(folder).rpartition("/")[2]


def _parent(folder: Uri) -> str:
    return _path(folder).rpartition("/")[0]


def links_to(pages: Mapping[str, Uri], folder: Uri) -> dict[str, str]:
    """Links from a page in `folder` to other pages, and to whatever has an id in them.

    Parameters
    ----------
    pages : mapping of str to str or path
        Pages on a disk or in a store, by the name they are linked by. One that is not there is left
        out, and so is one in a store of a page on a disk, or vice versa.
    folder : str or path

    Returns
    -------
    dict of str to str
        Relative links: ``report`` to a page, ``report#roc`` to a part of it.
    """
    links = {}
    for name, page in pages.items():
        if is_remote(page) != is_remote(folder) or not exists(page):
            continue
        links[name] = link = quote(os.path.relpath(*(_path(place) for place in (page, folder))))
        parts = re.findall(r'\bid="([\w-]+)"', read_file(page).decode(errors="replace"))
        links |= {f"{name}#{part}": f"{link}#{part}" for part in parts}
    return links


def _path(place: Uri) -> str:
    return str(place).rstrip("/") if is_remote(place) else os.path.abspath(local_path(place))
