"""The manifest: what a dataset is, written last and atomically, so that it is the commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from reprlib import repr as shortened
from typing import Any, Final

from lensprep.dataset import layout
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.strictjson import (
    check_number,
    check_object,
    check_whole,
    get_entry,
    parse_json,
)
from lensprep.errors import DatasetError

MANIFEST_BYTES: Final = 32 << 20
"""No manifest is longer: that of 500 million rows in shards of the default size is 28 MB."""

_NAME = re.compile(r"(train|val|test)/\1-[0-9]{6}\.(tar|parquet)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_ROWS: Final = 1 << 33
"""Of a split, 229 TB: readers may make an array of its rows before they have seen its files."""
_MOST_BYTES: Final = 1 << 46
"""Of one file: beyond what any store holds in one object, and far from where 64 bits end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard: its two files, their sizes and digests."""

    name: str
    """Path of the tar in the dataset: ``train/train-000000.tar``."""
    rows: int
    bytes: int
    sha256: str
    sidecar: str
    """Path of the sidecar in the dataset: ``train/train-000000.parquet``."""
    sidecar_bytes: int
    sidecar_sha256: str

    def __post_init__(self) -> None:
        for name in (self.name, self.sidecar):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                # A manifest may come from anywhere: no name of it may leave the dataset's folder.
                raise DatasetError(
                    f"{shortened(name)} is not a shard of this format (expected like "
                    "train/train-000000.tar)"
                )
        for what in ("rows", "bytes", "sidecar_bytes"):
            check_whole(getattr(self, what), f"{self.name}: {what}", _MOST_BYTES)
        for digest in (self.sha256, self.sidecar_sha256):
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise DatasetError(f"{self.name}: {shortened(digest)} is not a SHA-256")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split: its counts and its shards in order."""

    rows: int
    classes: dict[str, int]
    """Rows by label: ``{"0": non-lenses, "1": lenses}``."""
    regions: int
    """Number of distinct ``region_id``."""
    shards: tuple[ShardInfo, ...] = field(repr=False)
    counterfactuals: dict[str, int] = field(default_factory=dict)
    """Those of the rows that are counterfactuals, by kind; ``rows`` and ``classes`` count them too,
    ``lensed`` as lenses and all others as non-lenses."""

    def __post_init__(self) -> None:
        check_whole(self.rows, "rows", _MOST_ROWS)
        if sum(shard.rows for shard in self.shards) != self.rows:
            raise DatasetError(f"the shards do not add up to {self.rows} rows")
        for label, rows in check_object(self.classes, "classes").items():
            check_whole(rows, f"classes: {label!r:.60}")
        if not {*self.classes} <= {"0", "1"} or sum(self.classes.values()) != self.rows:
            raise DatasetError(
                f"the classes {shortened(self.classes)} are not {self.rows} rows of '0' and '1'"
            )
        for kind, rows in check_object(self.counterfactuals, "counterfactuals").items():
            check_whole(rows, f"counterfactuals: {kind!r:.60}")
        if min(self.ordinary_classes.values()) < 0:
            raise DatasetError(
                f"the counterfactuals {shortened(self.counterfactuals)} are more than the rows of "
                f"their classes, {shortened(self.classes)}"
            )
        if check_whole(self.regions, "regions") > self.rows:
            raise DatasetError(f"{self.rows} rows cannot lie in {self.regions} regions")

    @property
    def ordinary_classes(self) -> dict[str, int]:
        """Rows by label, as ``classes``, without the counterfactuals."""
        lensed = self.counterfactuals.get(layout.LENSED, 0)
        made = {"0": sum(self.counterfactuals.values()) - lensed, "1": lensed}
        return {label: self.classes.get(label, 0) - rows for label, rows in made.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything that a reader must know; one JSON file that a person can read too."""

    normalization: NormalizationSpec
    splits: dict[str, SplitInfo]
    account: dict[str, Any] = field(default_factory=dict)
    """Input rows = accepted + filtered by reason + rejected by reason; also by split and class."""
    source: dict[str, Any] = field(default_factory=dict)
    """URI and digest of the listing, files, rows and bytes."""
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """The full configuration of the conversion."""
    geometry: Geometry = DECALS
    """Bands, side and scale of the stamps, and where the bytes of a record lie."""
    label_map: dict[str, int] = field(default_factory=lambda: dict(layout.LABEL_MAP))

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalization", self.normalization.of_bands(self.geometry))
        for model, label in self.label_map.items():
            check_whole(label, f"label_map: {model!r:.60}", 1)
        if self.account:
            _check_account(self.account, "account")
            splits = check_object(self.account.get("splits", {}), "account: splits")
            for name, classes in splits.items():
                for which, rows in check_object(classes, f"account: {name!r:.60}").items():
                    _check_account(rows, f"account: {name!r:.60}: {which!r:.60}")
            for source, origins in check_object(
                self.account.get("sources", {}), "account: sources"
            ).items():
                for origin, kinds in check_object(origins, f"account: {source!r:.60}").items():
                    where = f"account: {source!r:.60}: {origin!r:.60}"
                    for kind, rows in check_object(kinds, where).items():
                        _check_account(rows, f"{where}: {kind!r:.60}")
        for name, split in self.splits.items():
            if name not in layout.SPLITS:
                raise DatasetError(
                    f"there is no split {name!r:.60}; known: {', '.join(layout.SPLITS)}"
                )
            for index, shard in enumerate(split.shards):
                # The position gives the names, so none comes twice or out of order.
                names = layout.shard_name(name, index), layout.sidecar_name(name, index)
                if (shard.name, shard.sidecar) != names:
                    raise DatasetError(
                        f"shard {index} of {name} is {shard.name} with {shard.sidecar}, not "
                        f"{' with '.join(names)}"
                    )
                if shard.bytes != self.geometry.shard_bytes(shard.rows):
                    raise DatasetError(
                        f"{shard.name} cannot hold {shard.rows} rows in {shard.bytes} bytes"
                    )

    @property
    def format_version(self) -> int:
        """Version of the bytes on disk: 1 for the stamps of DECaLS, 2 for all others."""
        return self.geometry.format_version

    @property
    def dataset_id(self) -> str:
        """Digest over all that a trainer sees: format, normalisation, labels and every tar.

        Sidecars and the source are left out: they name files, and the same rows in other files
        are the same dataset.
        """
        content = {
            "format_version": self.format_version,
            "geometry": self.geometry.record_dict(),
            "normalization": self.normalization.to_dict(),
            "bands": list(self.geometry.bands),
            "label_map": self.label_map,
            "shards": [
                [shard.name, shard.rows, shard.sha256]
                for split in sorted(self.splits)
                for shard in self.splits[split].shards
            ],
            **self._survey(),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _survey(self) -> dict[str, Any]:
        """What format 2 says beyond format 1."""
        if self.format_version == 1:
            return {}
        scale = self.geometry.pixel_scale_arcsec
        return {"survey": self.geometry.survey_dict(), "pixel_scale_arcsec": scale}

    def facts(self) -> dict[str, Any]:
        """Everything but the splits, in plain types."""
        return {
            "format_version": self.format_version,
            "dataset_id": self.dataset_id,
            "bands": list(self.geometry.bands),
            "pixel_scale_arcsec": self.geometry.pixel_scale_arcsec,
            **self._survey(),
            "label_map": self.label_map,
            "normalization": self.normalization.to_dict(),
            "geometry": self.geometry.record_dict(),
            "account": self.account,
            "source": self.source,
            "versions": self.versions,
            "config": self.config,
        }

    def to_json(self) -> str:
        """Indented JSON, with the shards, which take the most room, last."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        for split in splits.values():
            if not split["counterfactuals"]:  # as before there were any
                del split["counterfactuals"]
        return json.dumps({**self.facts(), "splits": splits}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Read and check a manifest.

        Parameters
        ----------
        text : str or bytes
        where : str
            Path or URI for messages.

        Raises
        ------
        DatasetError
            If it is no manifest, of another format version, or its digest does not fit.
        """
        try:
            if len(text) > MANIFEST_BYTES:
                raise DatasetError(f"more than {MANIFEST_BYTES >> 20} MiB")
            data = check_object(parse_json(text), "it")
            version = get_entry(data, "format_version", "it")
        except (ValueError, DatasetError) as error:
            raise DatasetError(
                f"{where} is not a manifest of lensprep ({error}). Convert again."
            ) from None
        if type(version) is not int or version not in layout.FORMAT_VERSIONS:
            raise DatasetError(
                f"{where} has dataset format {shortened(version)}; this version reads "
                f"{' and '.join(map(str, layout.FORMAT_VERSIONS))}. Upgrade lensprep, or convert "
                "again with this version."
            )
        try:
            manifest = cls._from_data(data)
        except DatasetError as error:
            raise DatasetError(
                f"{where}: {error}. Copy the dataset again, or convert again."
            ) from None
        if manifest.dataset_id != data.get("dataset_id"):
            raise DatasetError(
                f"{where} was altered: its dataset_id is not the digest of its contents. "
                "Copy the dataset again, or convert again."
            )
        return manifest

    @classmethod
    def _from_data(cls, data: Mapping[str, Any]) -> Manifest:
        parts: dict[str, Any] = {
            name: check_object(get_entry(data, name, "it"), name)
            for name in ("account", "source", "versions", "config", "label_map")
        }
        splits = check_object(get_entry(data, "splits", "it"), "splits")
        return cls(
            normalization=NormalizationSpec.from_dict(get_entry(data, "normalization", "it")),
            splits={n: _split_info(split, f"split {n!r:.60}") for n, split in splits.items()},
            geometry=_geometry(data),
            **parts,
        )


def _geometry(data: Mapping[str, Any]) -> Geometry:
    """Geometry of a manifest; DatasetError if its parts contradict each other."""
    version, bands = data["format_version"], get_entry(data, "bands", "it")
    record = check_object(get_entry(data, "geometry", "it"), "geometry")
    scale = float(check_number(get_entry(data, "pixel_scale_arcsec", "it"), "pixel_scale_arcsec"))
    if version == 1:
        found = replace(DECALS, pixel_scale_arcsec=scale)
        if bands != [*found.bands]:
            raise DatasetError(f"bands: {shortened(bands)} are not {', '.join(found.bands)}")
    else:
        survey, shape = get_entry(data, "survey", "it"), get_entry(record, "shape", "geometry")
        side = shape[-1] if isinstance(shape, list) and shape else shape
        found = Geometry.from_dict(
            {"survey": survey, "bands": bands, "side": side, "pixel_scale_arcsec": scale}, "it"
        )
    # As JSON, where 1, 1.0 and true are three things.
    same = json.dumps(record, sort_keys=True) == json.dumps(found.record_dict(), sort_keys=True)
    if not same or found.format_version != version:
        raise DatasetError(f"the record geometry is not that of format {version}")
    return found


def _split_info(data: Any, where: str) -> SplitInfo:
    """One split of the JSON; what else stands there is for later versions."""
    entry = check_object(data, where)
    shards = get_entry(entry, "shards", where)
    if not isinstance(shards, list):
        raise DatasetError(f"{where}: shards is {shortened(shards)}, not a list")
    infos = []
    for number, shard in enumerate(shards):
        which = f"{where}, shard {number}"
        values = check_object(shard, which)
        infos.append(
            ShardInfo(**{key.name: get_entry(values, key.name, which) for key in fields(ShardInfo)})
        )
    try:
        return SplitInfo(
            **{name: get_entry(entry, name, where) for name in ("rows", "classes", "regions")},
            shards=tuple(infos),
            counterfactuals=entry.get("counterfactuals", {}),
        )
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from None


def _check_account(account: Any, where: str) -> None:
    """Rows that came, got in and were left out, by reason; whether they balance `verify` says."""
    entry = check_object(account, where)
    for name in ("input_rows", "accepted"):
        check_whole(get_entry(entry, name, where), f"{where}: {name}")
    for name in ("filtered", "rejected"):
        for reason, rows in check_object(get_entry(entry, name, where), f"{where}: {name}").items():
            check_whole(rows, f"{where}: {name}: {reason!r:.60}")
