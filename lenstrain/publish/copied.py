"""Pages of a run in a published folder: links that hold there, and the word draft on each."""

from __future__ import annotations

import html
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from lenstrain.publish.digests import files_of

_LINK: Final = re.compile(
    r'<a href="(?!#|[a-z][a-z0-9+.-]*:)([^"#]*)(#[^"]*)?">(.*?)</a>', re.DOTALL
)
"""A link to another file of this machine: neither into the page nor to an address."""


def copy_folders(folders: Mapping[str, Path], out: Path, there: Mapping[str, Path]) -> None:
    """Copy folders of pages, each under a new name; links lead to where their targets are in `out`.

    A link to anything that is not there becomes plain text.

    Parameters
    ----------
    folders : mapping of str to Path
        Where each lies, by its name in `out`.
    out : Path
    there : mapping of str to Path
        Where other folders lay that `out` has something of, by their names there.
    """
    for name, old in folders.items():
        for file in files_of(old):
            (out / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old / file, out / name / file)
    places = {os.path.realpath(old): out / name for name, old in {**there, **folders}.items()}
    inner_first = sorted(places.items(), key=lambda place: -len(place[0]))
    for name, old in folders.items():
        for page in (out / name).rglob("*.html"):
            before = os.path.realpath(old / page.relative_to(out / name).parent)
            text = page.read_text(encoding="utf-8")
            page.write_text(_relinked(text, before, page.parent, inner_first), encoding="utf-8")


def _relinked(text: str, before: str, now: Path, places: Sequence[tuple[str, Path]]) -> str:
    """The text of a page that lay in `before`, and lies in `now`."""

    def link(found: re.Match[str]) -> str:
        target = os.path.realpath(os.path.join(before, unquote(html.unescape(found[1]))))
        for old, new in places:
            if (target + os.sep).startswith(old + os.sep):
                path = new / os.path.relpath(target, old)
                if path.exists():
                    where = quote(os.path.relpath(path, now))
                    return f'<a href="{where}{found[2] or ""}">{found[3]}</a>'
        return found[3]

    return _LINK.sub(link, text)


def mark_draft(folder: Path, names: Iterable[str], faults: Sequence[str]) -> None:
    """Say at the top of those of some files that are pages that this is a draft, and why."""
    why = " ".join(faults)
    banner = (
        '<p role="note" style="border: 3px solid; padding: .5rem .8rem; max-width: none"><strong>'
        f"DRAFT, not fit to be published.</strong> {html.escape(why)}</p>\n"
    )
    line = f"> **DRAFT, not fit to be published.** {html.escape(why, quote=False)}\n\n"
    for name in names:
        path = folder / name
        if path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            start = re.search(r"<body[^>]*>\n?", text)
            at = start.end() if start else 0
            path.write_text(text[:at] + banner + text[at:], encoding="utf-8")
        elif path.suffix == ".md":
            path.write_text(line + path.read_text(encoding="utf-8"), encoding="utf-8")
