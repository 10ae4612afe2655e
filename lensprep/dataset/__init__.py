"""The contract between lensprep and lenstrain: what a dataset is on disk, its writer and reader."""

from lensprep.dataset.dataset import Dataset, open_dataset
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import (
    BANDS,
    FORMAT_VERSION,
    JSON_FIELDS,
    LABEL_MAP,
    MANIFEST_NAME,
    PAYLOAD_BYTES,
    PAYLOAD_OFFSET,
    PIXEL_SCALE_ARCSEC,
    RECORD_STRIDE,
    REJECTS_NAME,
    SPLITS,
    STAMP_DTYPE,
    STAMP_SHAPE,
    STAMP_SIZE,
)
from lensprep.dataset.local import LocalDataset
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.remote import RemoteDataset
from lensprep.dataset.rows import Split
from lensprep.dataset.stamps import Stamp, Stamps

__all__ = [
    "BANDS",
    "DECALS",
    "FORMAT_VERSION",
    "JSON_FIELDS",
    "LABEL_MAP",
    "MANIFEST_NAME",
    "PAYLOAD_BYTES",
    "PAYLOAD_OFFSET",
    "PIXEL_SCALE_ARCSEC",
    "RECORD_STRIDE",
    "REJECTS_NAME",
    "SPLITS",
    "STAMP_DTYPE",
    "STAMP_SHAPE",
    "STAMP_SIZE",
    "Dataset",
    "Geometry",
    "LocalDataset",
    "Manifest",
    "NormalizationSpec",
    "RemoteDataset",
    "ShardInfo",
    "Split",
    "SplitInfo",
    "Stamp",
    "Stamps",
    "open_dataset",
]
