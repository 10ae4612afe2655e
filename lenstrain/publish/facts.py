"""What is published, in plain values: the cards and every metadata standard are written from this.

About         what the authors say: title, licence, names        (a TOML file, `--about`)
Party         a person or an institution, read from such a name
Item          a file of the folder, or something outside that it was made from
Column        of a table among them
Step          one command of the lineage, from items to items
Publication   all of it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

from lensprep.configfile import typed
from lensprep.dataset import Manifest
from lensprep.errors import ConfigError

FOLDER: Final = "./"
"""Stands for the folder itself among the outputs of a step."""
_PARTY: Final = re.compile(
    r"\s*(?P<name>[^<>]*[^<>\s])\s*"
    r"(?:<(?:(?:https://orcid\.org/)?(?P<orcid>(?:\d{4}-){3}\d{3}[\dX])|(?P<url>https?://\S+))>\s*)?"
)


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

    version: str = "1.0.0"
    """Of what is published, as MAJOR.MINOR.PATCH."""

    authors: tuple[str, ...] = ()
    """Each ``Family, Given <ORCID>``, of a group its name alone; the ORCID may be left out."""

    publisher: str = ""
    """Who keeps the folder, an archive, a journal or an institute: ``Name`` or ``Name <address>``,
    such as ``Zenodo <https://zenodo.org>``."""

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

    limits: tuple[str, ...] = ()
    """What else a user must know, for the model card: a sentence each."""

    keywords: tuple[str, ...] = ("strong gravitational lensing", "sky survey", "deep learning")
    """For catalogues."""

    @property
    def people(self) -> list[Party]:
        """The authors, each person under ``Given Family``; ConfigError if one cannot be read."""
        return [Party.parse(text, person=True) for text in self.authors]


class Party(NamedTuple):
    """A person or an institution."""

    name: str
    url: str
    """Address, of a person ``https://orcid.org/...``; empty if none is known."""
    family: str = ""
    """Family name of a person whose names are known apart."""
    given: str = ""

    @property
    def is_person(self) -> bool:
        """Whether it is known to be one: by its two names or by an ORCID."""
        return bool(self.family) or self.url.startswith("https://orcid.org/")

    @classmethod
    def parse(cls, text: str, *, person: bool = False) -> Self:
        """Read ``Name``, ``Name <ORCID>`` or ``Name <https://...>``.

        Parameters
        ----------
        text : str
        person : bool
            A name with a comma is ``Family, Given``.

        Raises
        ------
        ConfigError
            If it is none of these.
        """
        found = _PARTY.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"{text!r:.80} is neither Name nor Name <ORCID> nor Name <https://...>"
            )
        name, orcid = found["name"], found["orcid"]
        url = f"https://orcid.org/{orcid}" if orcid else found["url"] or ""
        family, comma, given = (part.strip() for part in name.partition(","))
        if person and comma and family and given:
            return cls(f"{given} {family}", url, family, given)
        return cls(name, url)


def license_url(spdx: str) -> str:
    """Page of a licence, by its SPDX identifier."""
    return f"https://spdx.org/licenses/{quote(spdx)}.html"


class Column(NamedTuple):
    """A column of a table."""

    name: str
    type: str
    """Of Arrow, as text: ``int8``, ``double``, ``string``, ..."""
    description: str = ""
    unit: str = ""
    """As VOTable writes it; empty if it has none."""


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
    columns: tuple[Column, ...] = ()
    """Of a Parquet table: those that its users need, as mlcroissant reads each value by itself."""

    @property
    def is_inside(self) -> bool:
        """Whether it is a file of the folder."""
        return not self.id.startswith("#") and not self.is_remote

    @property
    def digest(self) -> dict[str, str]:
        """What it is known by, as schema.org names it: what is no single file has no SHA-256."""
        name = "identifier" if self.bytes is None else "sha256"
        return {name: self.sha256} if self.sha256 else {}

    @property
    def is_remote(self) -> bool:
        """Whether the id is the address of a file elsewhere."""
        return "://" in self.id


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
    """Ids of items; nothing may come from itself by any number of steps."""
    outputs: tuple[str, ...]
    """Ids of items; `FOLDER` stands for all that is published."""
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

    @property
    def title(self) -> str:
        """Of the publication; a draft may have none of its own."""
        return self.about.title or "Finder of gravitational lenses, without a title"

    @property
    def description(self) -> str:
        """One paragraph; if the authors wrote none, what it was trained on."""
        rows = ", ".join(f"{name} {split.rows:,}" for name, split in self.manifest.splits.items())
        return self.about.description or (
            f"A finder of gravitational lenses with its scores, completeness and lineage; "
            f"stamps of the dataset that it was made with: {rows}."
        )

    @property
    def citation(self) -> str:
        """How to cite it, in one line."""
        names = ", ".join(person.name for person in self.about.people)
        publisher = self.about.publisher and Party.parse(self.about.publisher).name
        parts = (names, self.created[:4], self.title, f"version {self.about.version}", publisher)
        return ", ".join(part for part in (*parts, self.about.url) if part)

    def license_of(self, item: Item) -> str:
        """SPDX identifier of the licence of an item, empty if the authors gave none."""
        is_data = item.is_remote or item.id.startswith(("sample", "#dataset"))
        return (is_data and self.about.data_license) or self.about.license

    @property
    def shards(self) -> tuple[Item, ...]:
        """Files of the dataset; their ids are addresses, or ``#dataset/...`` if they have none."""
        root = self.about.data_url.rstrip("/") or "#dataset"
        return tuple(
            Item(id=f"{root}/{name}", title=title, sha256=sha256, bytes=size, media_type=media)
            for split in self.manifest.splits.values()
            for shard in split.shards
            for name, title, sha256, size, media in (
                (
                    shard.name,
                    f"{shard.rows:,} stamps",
                    shard.sha256,
                    shard.bytes,
                    "application/x-tar",
                ),
                (
                    shard.sidecar,
                    "Their catalogue",
                    shard.sidecar_sha256,
                    shard.sidecar_bytes,
                    "application/vnd.apache.parquet",
                ),
            )
        )
