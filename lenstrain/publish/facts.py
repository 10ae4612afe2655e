"""What is published, in plain values: the cards and every metadata standard are written from this.

About         what the authors say: title, licence, names        (a TOML file, `--about`)
Item          a file of the folder, or something outside that it was made from
Step          one command of the lineage, from items to items
Publication   all of it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lensprep.configfile import typed
from lensprep.dataset import Manifest


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What only the authors can say."""

    title: str = ""
    """Of the publication."""

    description: str = ""
    """One paragraph."""

    license: str = ""
    """SPDX identifier of the licence of weights, scores and tables, such as ``CC-BY-4.0``."""

    authors: tuple[str, ...] = ()
    """Each ``Name`` or ``Name <ORCID>``."""

    publisher: str = ""
    """Who keeps the folder: an archive, a journal or an institute."""

    url: str = ""
    """Where the folder will be found: a DOI as https://doi.org/..., or another address."""

    data_url: str = ""
    """Where the shards are, as a folder: ``<data_url>/train/train-000000.tar``."""

    data_license: str = ""
    """SPDX identifier of the licence of the stamps; that of the rest if empty."""

    article: str = ""
    """DOI or address of the article that these belong to."""

    contact: str = ""
    """For questions: an address of mail or of a page."""

    keywords: tuple[str, ...] = ("strong gravitational lensing", "sky survey", "deep learning")
    """For catalogues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file of the folder, or something outside of it that its content was made from."""

    id: str
    """Path in the folder; of something outside, a name that begins with ``#``."""
    title: str
    sha256: str | None = None
    """In hexadecimal digits; of a listing or a dataset, the digest that it is known by."""
    bytes: int | None = None
    media_type: str = "application/octet-stream"

    @property
    def is_inside(self) -> bool:
        """Whether it is a file of the folder."""
        return not self.id.startswith("#")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of the lineage."""

    id: str
    """Its name, such as ``convert``."""
    title: str
    """What it does, in a few words."""
    software: Mapping[str, str]
    """Versions by name; ``commit`` is that of the code, if it is known."""
    inputs: tuple[str, ...]
    """Ids of items."""
    outputs: tuple[str, ...]
    ended: str | None = None
    """ISO 8601; None if that was not recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """All that is published."""

    about: About
    created: str
    """ISO 8601, UTC."""
    version: str
    """Of lenstrain, which wrote the folder."""
    faults: tuple[str, ...]
    """Why it is only a draft; empty if it is fit to be published."""
    items: tuple[Item, ...]
    steps: tuple[Step, ...]
    manifest: Manifest
    """Of the dataset."""
    metrics: Mapping[str, Any]
    """Content of the report's metrics.json."""

    @property
    def is_draft(self) -> bool:
        """Whether anything stands in the way of publishing it."""
        return bool(self.faults)
