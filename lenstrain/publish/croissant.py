"""Croissant: a published folder as a data set whose tables and stamps can be loaded by name.

The document follows the Croissant Format Specification 1.1 of MLCommons: files with digests, record
sets of the tables and of the sample's stamps, and the lineage in PROV-O. Plain dictionaries do for
that; the classes of `mlcroissant` give random identifiers to what has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from lenstrain.publish.facts import Item, Party, Publication, Step, license_url

CROISSANT_NAME: Final = "croissant.json"
"""Name of the file in the folder."""
CONFORMS_TO: Final = (
    "http://mlcommons.org/croissant/1.1",
    "http://mlcommons.org/croissant/RAI/1.0",
)
_TERMS: Final = (
    "annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field "
    "fileObject fileProperty fileSet format includes isArray isLiveDataset jsonPath key md5 "
    "parentField path readLines recordSet references regex repeated replace samplingRate sdVersion "
    "separator source subField transform unArchive"
)
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
_PARQUET: Final = "application/x-parquet"
"""What readers of Croissant know the format by, beside its registered media type."""
_TYPES: Final = {
    "bool": "sc:Boolean",
    "float": "cr:Float32",
    "double": "cr:Float64",
    "halffloat": "cr:Float16",
    "string": "sc:Text",
    "large_string": "sc:Text",
    **{f"{u}int{n}": f"cr:{u.upper()}Int{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}
"""Data types by those of Arrow; columns of others are not described: nothing would read them."""
_ELEMENT: Final = re.compile(r"list<\w+: (\w+)")

Node = dict[str, Any]


def croissant(publication: Publication) -> Node:
    """Describe a published folder in Croissant 1.1.

    Parameters
    ----------
    publication : Publication
        Items without a SHA-256 are left out, as the standard wants one of every file.

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
    files = [
        item
        for item in publication.items
        if item.is_inside and item.sha256 and item.id != CROISSANT_NAME
    ]
    outside = [item for item in publication.items if not item.is_inside]
    shards = publication.shards
    tars = [item for item in files if item.media_type == "application/x-tar"]
    licenses = (about.license, about.data_license or about.license)
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": publication.title,
        "description": publication.description,
        "conformsTo": list(CONFORMS_TO),
        "creativeWorkStatus": "Draft" if publication.is_draft else "Published",
        "license": [_license(spdx) for spdx in dict.fromkeys(licenses)],
        "url": about.url,
        "version": about.version,
        "datePublished": publication.created,
        "creator": [_party(author) for author in about.people],
        "publisher": about.publisher and _party(Party.parse(about.publisher)),
        "citeAs": publication.citation,
        "citation": about.article,
        "keywords": list(about.keywords),
        **_responsibility(publication),
        "prov:wasDerivedFrom": [
            *(_entity(item, publication.steps, shards) for item in outside),
            *(_entity(item, publication.steps) for item in shards if not item.is_remote),
        ],
        "prov:wasGeneratedBy": [_activity(step) for step in publication.steps],
        "distribution": [
            *(_file(item, publication) for item in files),
            *(_file(item, publication) for item in shards if item.is_remote),
            *(_stamps(tar) for tar in tars),
        ],
        "recordSet": [
            *(_table(item) for item in files if item.columns),
            *(_stamp_records(tar) for tar in tars),
            _lens_models(publication),
        ],
    }
    return {name: value for name, value in document.items() if value}


def _license(spdx: str) -> str | Node:
    if spdx:
        return license_url(spdx)
    return {"@type": "sc:CreativeWork", "name": "No licence has been given"}


def _party(party: Party) -> Node:
    kind = "sc:Person" if party.is_person else "sc:Organization"
    node = {"@type": kind, "name": party.name}
    return node | {"@id": party.url, "url": party.url} if party.url else node


def _responsibility(publication: Publication) -> Node:
    """What the manifest and the report say of the vocabulary for responsible use."""
    manifest = publication.manifest
    geometry, source = manifest.geometry, manifest.source
    labels = ", ".join(f"{model} {label}" for model, label in manifest.label_map.items())
    where = manifest.config.get("where")
    notes = publication.metrics.get("notes", ())
    return {
        "rai:dataCollection": (
            f"Stamps of {geometry.side} x {geometry.side} pixels in the bands "
            f"{', '.join(geometry.bands)} at {geometry.pixel_scale_arcsec:g} arcsec a pixel"
            + (f", from {source['files']:,} files with {source['rows']:,} rows." if source else ".")
        ),
        "rai:dataAnnotationProtocol": f"The label follows from the lens model: {labels}.",
        "rai:dataPreprocessingProtocol": [
            f"Normalised by {manifest.normalization.mode}, clipped to "
            f"{manifest.normalization.clip:g} on either side, stored as float16.",
            *([f"Only rows where {where}."] if where else []),
        ],
        "rai:dataBiases": [
            f"{name}: {split.classes.get('1', 0):,} lenses to {split.classes.get('0', 0):,} "
            f"non-lenses in {split.regions:,} regions; on the sky lenses are far rarer."
            for name, split in manifest.splits.items()
        ],
        "rai:dataLimitations": [note["text"] for note in notes if note["severity"] != "info"],
        "rai:personalSensitiveInformation": "None: images of the sky.",
    }


def _entity(item: Item, steps: Iterable[Step], shards: Iterable[Item] = ()) -> Node:
    """Something outside of the folder; the dataset is a collection of its shards."""
    members = [_ref(shard.id) for shard in shards] if item.id == "#dataset" else []
    return {
        "@type": "prov:Collection" if members else "prov:Entity",
        "@id": item.id,
        "prov:label": item.title,
        **item.digest,
        **({} if item.bytes is None else {"contentSize": f"{item.bytes} B"}),
        **({"prov:hadMember": members} if members else {}),
        **_lineage(item, steps),
    }


def _lineage(item: Item, steps: Iterable[Step]) -> Node:
    """What an item was made from and by which steps; shards are made as their dataset is."""
    made = "#dataset" if item.is_remote or item.id.startswith("#dataset/") else item.id
    by = [step for step in steps if made in step.outputs]
    if not by:
        return {}
    inputs = dict.fromkeys(name for step in by for name in step.inputs)
    return {
        "prov:wasDerivedFrom": [_ref(name) for name in inputs],
        "prov:wasGeneratedBy": [_ref(f"#{step.id}") for step in by],
    }


def _activity(step: Step) -> Node:
    software = ", ".join(f"{name} {version}" for name, version in step.software.items())
    node = {
        "@type": "prov:Activity",
        "@id": f"#{step.id}",
        "prov:label": step.title,
        "prov:used": [_ref(name) for name in step.inputs],
        "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "prov:label": software},
        "prov:endedAtTime": step.ended,
    }
    return {name: value for name, value in node.items() if value}


def _ref(name: str) -> Node:
    return {"@id": name}


def _file(item: Item, publication: Publication) -> Node:
    formats = dict.fromkeys((item.media_type, _PARQUET if item.columns else item.media_type))
    return {
        "@type": "cr:FileObject",
        "@id": item.id,
        "name": PurePosixPath(item.id).name,
        "description": item.title,
        "contentUrl": item.id,
        "contentSize": f"{item.bytes} B",
        "encodingFormat": list(formats),
        "sha256": item.sha256,
        "license": _license(publication.license_of(item)),
        **_lineage(item, publication.steps),
    }


def _stamps(tar: Item) -> Node:
    return {
        "@type": "cr:FileSet",
        "@id": f"{tar.id}/stamps",
        "name": "Stamps",
        "description": f"Pixels of {tar.title}: a NumPy array each.",
        "containedIn": _ref(tar.id),
        "encodingFormat": "application/x-npy",
        "includes": "*.stamp.npy",
    }


def _stamp_records(tar: Item) -> Node:
    name = _record_set(tar) + "/stamps"
    source = {"fileSet": _ref(f"{tar.id}/stamps")}
    of_name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"(.+)\.stamp\.npy"}}
    fields = {
        "key": ("Key of the stamp, as in the tables.", of_name),
        "stamp": (
            "Bytes of the .npy file: float16 of the shape (band, y, x), normalised.",
            {"extract": {"fileProperty": "content"}},
        ),
    }
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": tar.title,
        "key": _ref(f"{name}/key"),
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{field}",
                "name": field,
                "description": description,
                "dataType": "sc:Text",
                "source": source | how,
            }
            for field, (description, how) in fields.items()
        ],
    }


def _record_set(item: Item) -> str:
    return str(PurePosixPath(item.id).with_suffix(""))


def _table(item: Item) -> Node:
    name = _record_set(item)
    node = {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": item.title,
        "field": list(_columns(item, name)),
    }
    has_key = any(column.name == "key" for column in item.columns)
    return node | ({"key": _ref(f"{name}/key")} if has_key else {})


def _columns(item: Item, record_set: str) -> Iterator[Node]:
    for column in item.columns:
        element = _ELEMENT.search(column.type)
        kind = _TYPES.get(element[1] if element else column.type)
        if kind is not None:
            yield {
                "@type": "cr:Field",
                "@id": f"{record_set}/{quote(column.name, safe='')}",
                "name": column.name,
                **({"description": column.description} if column.description else {}),
                **({"unitText": column.unit} if column.unit else {}),
                "dataType": [kind, "cr:Label"] if column.name == "label" else kind,
                **({"isArray": True} if element else {}),
                "source": {"fileObject": _ref(item.id), "extract": {"column": column.name}},
            }


def _lens_models(publication: Publication) -> Node:
    fields = {"name": "sc:Text", "label": "sc:Integer"}
    return {
        "@type": "cr:RecordSet",
        "@id": "lens_models",
        "name": "lens_models",
        "description": "Label of each lens model: 1 for a lens, 0 for a non-lens.",
        "dataType": "sc:Enumeration",
        "key": _ref("lens_models/name"),
        "field": [
            {"@type": "cr:Field", "@id": f"lens_models/{name}", "name": name, "dataType": kind}
            for name, kind in fields.items()
        ],
        "data": [
            {"lens_models/name": model, "lens_models/label": label}
            for model, label in publication.manifest.label_map.items()
        ],
    }
