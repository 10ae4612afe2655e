"""RO-Crate: a published folder as a research object, file by file and step by step.

The document follows RO-Crate 1.1 and the Process Run Crate profile 0.5, which says how commands,
their software, inputs and results are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

from lenstrain.publish.facts import FOLDER, Item, Party, Publication, Step, license_url

CRATE_NAME: Final = "ro-crate-metadata.json"
"""Name of the file in the folder."""
_CONTEXT: Final = (
    "https://w3id.org/ro/crate/1.1/context",
    {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"},
)
_PROFILE: Final = "https://w3id.org/ro/wfrun/process/0.5"
_NO_LICENSE: Final = "#no-licence"
_PROGRAMS: Final = ("lenstrain", "lensprep")

Node = dict[str, Any]


def crate(publication: Publication) -> Node:
    """Describe a published folder as an RO-Crate.

    Parameters
    ----------
    publication : Publication

    Returns
    -------
    dict
        JSON-LD, the same for the same publication.

    Raises
    ------
    ConfigError
        If the name of an author or the publisher cannot be read.
    """
    about = publication.about
    people = [_party(author) for author in about.people]
    publisher = [_party(Party.parse(about.publisher))] if about.publisher else []
    shards = publication.shards
    items = [item for item in (*publication.items, *shards) if item.id != CRATE_NAME]
    files = [_file(item, publication) for item in items if item.is_inside or item.is_remote]
    outside = [
        _outside(item, shards, publication)
        for item in items
        if not item.is_inside and not item.is_remote
    ]
    licenses = dict.fromkeys(map(publication.license_of, items))
    root = {
        "@id": FOLDER,
        "@type": "Dataset",
        "name": publication.title,
        "description": publication.description,
        "creativeWorkStatus": "Draft" if publication.is_draft else "Published",
        "license": _license(about.license),
        "datePublished": publication.created,
        "version": about.version,
        "identifier": about.url,
        "url": about.url,
        "citation": about.article,
        "keywords": list(about.keywords),
        "author": _refs(people),
        "publisher": _refs(publisher),
        "conformsTo": {"@id": _PROFILE},
        "hasPart": _refs(files),
        "mentions": [{"@id": f"#{step.id}"} for step in publication.steps],
    }
    return {
        "@context": list(_CONTEXT),
        "@graph": [
            {
                "@id": CRATE_NAME,
                "@type": "CreativeWork",
                "about": {"@id": FOLDER},
                "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            },
            _plain(root),
            {
                "@id": _PROFILE,
                "@type": "CreativeWork",
                "name": "Process Run Crate",
                "version": "0.5",
            },
            *files,
            *outside,
            *people,
            *publisher,
            *map(_license_entity, dict.fromkeys((about.license, *licenses))),
            *(node for step in publication.steps for node in _action(step, people)),
        ],
    }


def _plain(node: Node) -> Node:
    """Without what is empty; a list of one is its element, as RO-Crate recommends."""
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in node.items()
        if value
    }


def _refs(nodes: Iterable[Node]) -> list[Node]:
    return [{"@id": node["@id"]} for node in nodes]


def _party(party: Party) -> Node:
    kind = "Person" if party.is_person else "Organization"
    node = {"@id": party.url or f"#{quote(party.name)}", "@type": kind, "name": party.name}
    return node | ({"url": party.url} if party.url else {})


def _license(spdx: str) -> Node:
    return {"@id": license_url(spdx) if spdx else _NO_LICENSE}


def _license_entity(spdx: str) -> Node:
    name = spdx or "No licence has been given"
    return _license(spdx) | {"@type": "CreativeWork", "name": name}


def _file(item: Item, publication: Publication) -> Node:
    license = publication.license_of(item)
    return {
        "@id": item.id,
        "@type": "File",
        "name": item.title,
        "encodingFormat": item.media_type,
        **({} if item.bytes is None else {"contentSize": str(item.bytes)}),
        **item.digest,
        **({} if license == publication.about.license else {"license": _license(license)}),
        # The day that an address was known to lead to the file.
        **({"sdDatePublished": publication.created} if item.is_remote else {}),
    }


def _outside(item: Item, shards: Iterable[Item], publication: Publication) -> Node:
    """Something that the folder does not hold; the dataset has shards as its parts."""
    return {
        "@id": item.id,
        "@type": "CreativeWork",
        "name": item.title,
        **({} if item.bytes is None else {"size": f"{item.bytes} B"}),
        **item.digest,
        **({"hasPart": [{"@id": shard.id} for shard in shards]} if item.id == "#dataset" else {}),
        **({"license": _license(publication.license_of(item))} if item.id == "#dataset" else {}),
    }


def _action(step: Step, people: Iterable[Node]) -> Iterator[Node]:
    """A step, and the software that it ran on."""
    program = next((name for name in _PROGRAMS if name in step.software), step.id)
    others = [name for name in step.software if name not in (program, "commit")]
    software = {
        "@id": f"#{step.id}-software",
        "@type": "SoftwareApplication",
        "name": program,
        "softwareVersion": step.software.get(program, "unknown"),
        "identifier": step.software.get("commit", ""),
        "softwareRequirements": [f"{name} {step.software[name]}" for name in others],
    }
    action = {
        "@id": f"#{step.id}",
        "@type": "CreateAction",
        "name": step.id,
        "description": step.title,
        "instrument": {"@id": software["@id"]},
        "agent": _refs(people),
        "object": [{"@id": name} for name in step.inputs],
        "result": [{"@id": name} for name in step.outputs],
        "endTime": step.ended,
    }
    yield _plain(action)
    yield _plain(software)
