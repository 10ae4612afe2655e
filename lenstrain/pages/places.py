"""What the evaluated run is called, and links to its pages, where they lie on this machine."""

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lensprep.errors import ProjectError
from lensprep.store import Uri, is_remote, local_path, write_atomic
from lenstrain.pages.links import pages_of, run_of
from lenstrain.pages.page import render

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Link:
    """A link from the report to what lies near it."""

    title: str
    href: str
    """Relative to the folder of the report."""


def run_name(metadata: Mapping[str, Any], scores: str) -> str:
    """Name of the run that scored; of several members all, of foreign scores that of their file.

    Parameters
    ----------
    metadata : mapping
        What the scores say of themselves.
    scores : str
        Where they lie.
    """
    names = [_folder_name(str(member["checkpoint"])) for member in _members(metadata)]
    return ", ".join(dict.fromkeys(names)) or scores.rstrip("/").split("/")[-1].split(".")[0]


def _members(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each checkpoint with its digest."""
    listed = metadata.get("members") or [metadata]
    return [member for member in listed if isinstance(member, Mapping) and "checkpoint" in member]


def _folder_name(checkpoint: str) -> str:
    """``RUN`` of ``.../RUN/checkpoints/best.pt``, or the name of the file itself."""
    parts = checkpoint.split("/")
    return parts[-3] if len(parts) > 2 and parts[-2] == _CHECKPOINTS else parts[-1]


def links(metadata: Mapping[str, Any], out: Uri) -> list[Link]:
    """Links to the run, its audit and probe, and the dataset: to those alone that are there.

    A page is linked if it is of a checkpoint that was scored. Nothing is linked from, or to, an
    object store.
    """
    return [] if is_remote(out) else list(_links(metadata, local_path(out).resolve()))


def _links(metadata: Mapping[str, Any], out: Path) -> Iterator[Link]:
    runs: dict[Path, None] = {}
    pages: dict[str, str] = {}
    for member in _members(metadata):
        checkpoint, digest = str(member["checkpoint"]), str(member.get("checkpoint_sha256") or "")
        with suppress(ProjectError):  # a place of a kind that is not known here
            if not is_remote(checkpoint):
                run = local_path(run_of(checkpoint))
                runs |= {run: None} if (run / _CHECKPOINTS).is_dir() else {}
                for folder in (run, out) if digest else ():
                    pages = pages_of(folder, digest) | pages
    for run in runs:
        yield _link("Run" if len(runs) == 1 else f"Run {run.name}", run, out)
    for name in ("audit", "probe"):
        if name in pages and Path(pages[name]).is_file():
            yield _link(name.capitalize(), Path(pages[name]), out)
    dataset = metadata.get("dataset")
    if isinstance(dataset, str) and not is_remote(dataset) and Path(dataset).is_dir():
        yield _link("Dataset", Path(dataset).resolve(), out)


def _link(title: str, target: Path, out: Path) -> Link:
    return Link(title, quote(relpath(target, out)) + ("/" if target.is_dir() else ""))


def add_link(report: Uri | None, title: str, page: Uri) -> None:
    """Link a page from a report that was written before it, instead of any link of this title.

    Parameters
    ----------
    report : str, path or None
        A page that `evaluate` wrote. Nothing is done without one, if it cannot be written, or if
        it or `page` lies in an object store.
    title : str
    page : str or path
    """
    if report is None or is_remote(report) or is_remote(page):
        return
    path = local_path(report).resolve()
    with suppress(OSError, ProjectError):
        text = path.read_text(encoding="utf-8")
        line = re.search(r'<p class="links">(.*?)</p>', text, re.DOTALL)
        if line is None:
            return
        there = re.findall(r'<a href="([^"]*)">([^<]*)</a>', line[1])
        known = {html.unescape(name): html.unescape(href) for href, name in there}
        known[title] = _link(title, local_path(page).resolve(), path.parent).href
        made = render("links.html", {"links": [Link(*item) for item in known.items()]})
        text = text[: line.start()] + made.strip() + text[line.end() :]
        write_atomic(path, text.encode())
