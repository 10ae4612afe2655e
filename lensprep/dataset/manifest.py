"""The manifest: what a dataset is, written last and atomically, so that it is the commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lensprep.dataset.layout import (
    BANDS,
    FORMAT_VERSION,
    JSON_BYTES,
    JSON_OFFSET,
    LABEL_MAP,
    PAYLOAD_BYTES,
    PAYLOAD_OFFSET,
    PIXEL_SCALE_ARCSEC,
    RECORD_STRIDE,
    SPLITS,
    STAMP_DTYPE,
    STAMP_SHAPE,
    shard_bytes,
)
from lensprep.errors import DatasetError

_NAME = re.compile(r"(train|val|test)/\1-\d{6}\.(tar|parquet)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationSpec:
    """How raw pixels became the stored ones; it travels in manifest, checkpoint and scores."""

    mode: str
    """``mad_stamp``, ``mad_annulus``, ``asinh_survey`` or ``sqrt``."""
    clip: float
    """Stored values lie in [-clip, clip]."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further numbers of the mode (the annulus in pixels, softenings in nanomaggies, ...)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"mode": self.mode, "clip": self.clip, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormalizationSpec:
        """Inverse of `to_dict`."""
        return cls(
            mode=str(data["mode"]),
            clip=float(data["clip"]),
            parameters=dict(data.get("parameters", {})),
        )


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
            if not _NAME.fullmatch(name):
                # A manifest may come from anywhere: no name of it may leave the dataset's folder.
                raise DatasetError(
                    f"manifest.json names {name!r}, which is not a shard of this format "
                    "(expected like train/train-000000.tar)."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split: its counts and its shards in order."""

    rows: int
    classes: dict[str, int]
    """Rows by label: ``{"0": non-lenses, "1": lenses}``."""
    regions: int
    """Number of distinct ``region_id``."""
    shards: tuple[ShardInfo, ...]


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
    format_version: int = FORMAT_VERSION
    bands: tuple[str, ...] = BANDS
    pixel_scale_arcsec: float = PIXEL_SCALE_ARCSEC
    label_map: dict[str, int] = field(default_factory=lambda: dict(LABEL_MAP))
    geometry: dict[str, Any] = field(default_factory=lambda: geometry())

    @property
    def dataset_id(self) -> str:
        """Digest over all that a trainer sees: format, normalisation, labels and every tar.

        Sidecars and the source are left out: they name files, and the same rows in other files
        are the same dataset.
        """
        content = {
            "format_version": self.format_version,
            "geometry": self.geometry,
            "normalization": self.normalization.to_dict(),
            "bands": list(self.bands),
            "label_map": self.label_map,
            "shards": [
                [shard.name, shard.rows, shard.sha256]
                for split in sorted(self.splits)
                for shard in self.splits[split].shards
            ],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Indented JSON, the widest part (the shards) last."""
        head = {
            "format_version": self.format_version,
            "dataset_id": self.dataset_id,
            "bands": list(self.bands),
            "pixel_scale_arcsec": self.pixel_scale_arcsec,
            "label_map": self.label_map,
            "normalization": self.normalization.to_dict(),
            "geometry": self.geometry,
            "account": self.account,
            "source": self.source,
            "versions": self.versions,
            "config": self.config,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }
        return json.dumps(head, indent=2, allow_nan=False) + "\n"

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
            data = json.loads(text)
            version = data["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{where} is not a manifest of lensprep ({error}). Convert again."
            ) from None
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{where} has dataset format {version}; this version reads {FORMAT_VERSION}. "
                "Upgrade lensprep, or convert again with this version."
            )
        try:
            manifest = cls._from_data(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{where} lacks or garbles an entry ({error!r}). Convert again."
            ) from None
        if manifest.dataset_id != data.get("dataset_id"):
            raise DatasetError(
                f"{where} was altered: its dataset_id is not the digest of its contents. "
                "Copy the dataset again, or convert again."
            )
        manifest._check(where)
        return manifest

    @classmethod
    def _from_data(cls, data: Mapping[str, Any]) -> Manifest:
        splits = {
            name: SplitInfo(
                rows=int(split["rows"]),
                classes={str(label): int(n) for label, n in split["classes"].items()},
                regions=int(split["regions"]),
                shards=tuple(ShardInfo(**shard) for shard in split["shards"]),
            )
            for name, split in data["splits"].items()
        }
        return cls(
            normalization=NormalizationSpec.from_dict(data["normalization"]),
            splits=splits,
            account=data["account"],
            source=data["source"],
            versions=data["versions"],
            config=data["config"],
            format_version=data["format_version"],
            bands=tuple(data["bands"]),
            pixel_scale_arcsec=float(data["pixel_scale_arcsec"]),
            label_map=dict(data["label_map"]),
            geometry=dict(data["geometry"]),
        )

    def _check(self, where: str) -> None:
        """Counts and sizes must agree with each other and with the geometry this version reads."""
        if self.geometry != geometry():
            raise DatasetError(
                f"{where} states another record geometry than format {FORMAT_VERSION} has. "
                "Convert again."
            )
        for name, split in self.splits.items():
            if name not in SPLITS:
                raise DatasetError(f"{where} has an unknown split {name!r}; known: {SPLITS}.")
            if sum(shard.rows for shard in split.shards) != split.rows:
                raise DatasetError(f"{where}: the shards of {name} do not add up to its rows.")
            for shard in split.shards:
                if shard.bytes != shard_bytes(shard.rows):
                    raise DatasetError(
                        f"{where}: {shard.name} cannot hold {shard.rows} rows in "
                        f"{shard.bytes} bytes."
                    )


def geometry() -> dict[str, Any]:
    """Geometry of the records in plain numbers, for readers that know nothing of this package."""
    return {
        "stride": RECORD_STRIDE,
        "payload_offset": PAYLOAD_OFFSET,
        "payload_bytes": PAYLOAD_BYTES,
        "json_offset": JSON_OFFSET,
        "json_bytes": JSON_BYTES,
        "dtype": STAMP_DTYPE.str,
        "shape": list(STAMP_SHAPE),
    }
