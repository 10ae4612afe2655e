"""Datasets of both formats as they were first written: writer and reader are held to their bytes.

``phase4c/`` holds eight synthetic source rows: five that are accepted, one with a constant band, one
without all bands, one that occurs twice. Each other folder is what they became under one
normalisation; the three beside ``mad_stamp`` keep region 0 alone. ``format_2`` is a dataset of another
survey, of five rows of `SPARSE`. Nothing in the project makes these files: whoever has to change one
of them changes the format, and raises its version.

What is held to the byte is what the format promises: tars, and the digest over them. A sidecar is
parquet, whose bytes change with the library that writes them; its rows and types are compared.
"""

# ruff: noqa: E501  (a name and its digest on one line)

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset, Geometry
from lensprep.dataset.layout import CUTOUT_LABELS, LABEL_MAP
from lensprep.dataset.normalization import normalization_spec
from lensprep.dataset.writer import write_dataset
from lensprep.inspection.verify import verify

GOLDEN = Path(__file__).parent

FILES = {
    "asinh_survey/manifest.json": "cd5796490c6fb65f766b0a13b67bb8b32865bb9261d8e626229907fbadac58c3",
    "asinh_survey/rejects.parquet": "ec490f07e31583839ae904e1560ed4abe441dd56c775e5de9688bff02ccaaa5b",
    "asinh_survey/train/train-000000.parquet": "493d6a3386057ab286596588d328180991b8221ff70affef403408ccf1623615",
    "asinh_survey/train/train-000000.tar": "38d6efe47e90186988cb619851cdc042f7d0b73adab45a92e86b84b699994329",
    "format_2/manifest.json": "5f91928def47a293191787036a560b0feb77a053a65d2dd0d138ffe98b98af6b",
    "format_2/train/train-000000.parquet": "670ecba01450d7340c36b461d05e9b49f11a4b950e808d2152d8722fbe10a183",
    "format_2/train/train-000000.tar": "672fc52360eaa70acb49ea591c131f5fd41ac38b3c31c089e80c6e947c225d3a",
    "format_2/train/train-000001.parquet": "9214de0cae3d277491586c126d0d1d2aeeee3830d07aff96f9b637f21a4a8ff2",
    "format_2/train/train-000001.tar": "6219d6b3663db2167bc3c1bd0cd611eb3e3b005482284d14623e59a9110e9115",
    "format_2/val/val-000000.parquet": "79e47017c55fdbc0482fefef0e5ad425daa7752dec0f02d5474d41bda6b246ca",
    "format_2/val/val-000000.tar": "ab4329c8302fd1830cba905ed56647fde1f181f218fa5c1f98b5ff5ef723ab19",
    "mad_annulus/manifest.json": "958be8a24b7a9aaa7c70e7a6ae273bb492c7f78fffcdae4f690228de77b97ab1",
    "mad_annulus/rejects.parquet": "ec490f07e31583839ae904e1560ed4abe441dd56c775e5de9688bff02ccaaa5b",
    "mad_annulus/train/train-000000.parquet": "154f62954ef1c0dd513e6afcd24bd7d0d140fa66b8003f8b94cd5c813e3b326c",
    "mad_annulus/train/train-000000.tar": "85a749dfbbf24c5dacfc6261398d69f67d482eb410d26d12a2328cf6cb0fa9ff",
    "mad_stamp/manifest.json": "662dbbcd6c513c57342f26962384fa7bca37692dc490a24ad6be504a4dd365c3",
    "mad_stamp/rejects.parquet": "27cdf4fc61153d6ef9af69db5cc0fa569570db8b0dda2de53b12bc79f82ac6cd",
    "mad_stamp/test/test-000000.parquet": "81bb7a24aaea479e8cadaeb43e6809b086c07755bd520b4fde08013ab5063b84",
    "mad_stamp/test/test-000000.tar": "95a46b766d10bca1b22257657d36884f4efac792b8b309eb57cdb83a79880d5d",
    "mad_stamp/train/train-000000.parquet": "b65a20dc3cb3492ead83f65243261be52cb002f75f20ba649ea459fde38d1adf",
    "mad_stamp/train/train-000000.tar": "277ca633fbdef859ffe0b6e2be28e5e297fff282b520f76ef56bf352a90a589a",
    "mad_stamp/train/train-000001.parquet": "d28f6d3ec56cc6b24c04ed4dd59df7c2d303610817c84c021ecdd1caf78d208c",
    "mad_stamp/train/train-000001.tar": "f5ca1c6e9b8713ce41bdc709aab8e61ffc5c789d62bcd3e72c254ff37d77cb1d",
    "mad_stamp/val/val-000000.parquet": "3a259a97604b71777e190a4221e5e2d14ee55b2b7dfbaf1e9b0adf1385a20cc9",
    "mad_stamp/val/val-000000.tar": "d0078df0bd48ace9037f8cfdb785951616401f8610d33bcb8f628bd7b5b6964b",
    "phase4c/_SUCCESS": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "phase4c/part-00000.parquet": "3f471c2c3dade83181769fcbebbba5e670cc7384bebfd53e25fc317577bf6500",
    "sqrt/manifest.json": "fae4d437058108453010f494d571d3152e6dcb4d6051d79d7daaa6e2d71b64b7",
    "sqrt/rejects.parquet": "ec490f07e31583839ae904e1560ed4abe441dd56c775e5de9688bff02ccaaa5b",
    "sqrt/train/train-000000.parquet": "5f14e8fd4ff559ba369c1a0d0fa49f41de81645bd06dae4cf1b3b3ceea0bbd69",
    "sqrt/train/train-000000.tar": "8e9184b5bb93c86db28f1d3ce0f66eeb4b6d43e8d26238971ce97958cd9393c9",
}
"""SHA-256 of every stored file."""

DATASET_IDS = {
    "mad_stamp": "5a0f44191bac8967c2b8f66418b7855a73853c1d60e09152e5aa0278a6b6c686",
    "mad_annulus": "ab7b159fe122b0148ccb8eeee4831b44d1bb65d9414e957860b1811c4594590c",
    "asinh_survey": "47e9d3273c29432db2ca5e2a58e31596024f9500c63fa50e89db908f034231d3",
    "sqrt": "3a1f06c33620ba6ea606745382e203039d4fad0186b098144848c1f011eb17f1",
}

ROW_0 = "df2ea6df25e2a3fdfc680adeef023701"
ROW_1 = "51118fef51786ceba393a86f1656ed0d"

# Per split: keys in order; SHA-256 of all pixels; the first stamp's pixel (31, 31) in g, r, z; its
# median in g and scale in z as measured.
READ = {
    ("mad_stamp", "train"): (
        ["31203f002d092ea7ae98d976a9e781ab", ROW_0, ROW_1],
        "fbe7a73f02394ce2e65d48f902d9928757f65c1c6eb732a54153d341b9d50bba",
        [4.3203125, 10.0, 10.0],
        (0.003173828125, 0.015745384618639946),
    ),
    ("mad_stamp", "val"): (
        ["35671b88d0743d7f40b3e3b430d8c090"],
        "969e54948a48442a270d24b1be47cd69cc13b2cfd029bf48e19c958d9c603239",
        [3.2421875, 4.30859375, 7.55859375],
        (0.00244140625, 0.012306737713515759),
    ),
    ("mad_stamp", "test"): (
        ["d0d3809ebf87f74078fce01ba96c57ad"],
        "db18a27d43ca1150f0e0db47bd6154ba8d37166d63ae34dd4d9cb0ec18d89162",
        [3.373046875, 7.3359375, 10.0],
        (0.002685546875, 0.013754589483141899),
    ),
    ("mad_annulus", "train"): (
        [ROW_0, ROW_1],
        "cd7ddc870b7d5f0ec0f49afcf861554ee15300a42437709bdaefd93cb1e961ae",
        [10.0, 10.0, 10.0],
        (0.002685546875, 0.011582812294363976),
    ),
    ("asinh_survey", "train"): (
        [ROW_0, ROW_1],
        "cfacfea9d91c793ebb89e4abd305001f226d4963a6c547d0298150bfbb251346",
        [4.8359375, 5.21484375, 4.69140625],
        (0.0048828125, 0.02081286534667015),
    ),
    ("sqrt", "train"): (
        [ROW_0, ROW_1],
        "64117f9f6f34d70360cb43c2f80d64d84a05f75bd2b375ebc809294365285028",
        [3.052734375, 3.919921875, 4.6953125],
        (0.0048828125, 0.02081286534667015),
    ),
}

DEPENDS_ON_THE_LIBRARIES = ("sidecar_bytes", "sidecar_sha256")
"""Keys of a shard in the manifest that another pyarrow may give another value."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contractual(manifest: Path) -> dict:
    """A manifest without the versions, the address of the source and the bytes of sidecars."""
    content = json.loads(manifest.read_text())
    del content["versions"]
    content["source"].pop("uri", None)
    for split in content["splits"].values():
        for shard in split["shards"]:
            for key in DEPENDS_ON_THE_LIBRARIES:
                del shard[key]
    return content


def test_the_stored_files_are_the_ones_first_written():
    stored = {p for p in GOLDEN.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}}
    found = {path.relative_to(GOLDEN).as_posix(): sha256(path.read_bytes()) for path in stored}
    assert found == FILES


@pytest.mark.parametrize("mode", DATASET_IDS)
def test_the_writer_makes_these_bytes(mode, tmp_path):
    config = ConvertConfig(
        seed=20,
        shard_rows=2 if mode == "mad_stamp" else 8,
        normalize=mode,
        max_reject_rate=1.0,
        where=None if mode == "mad_stamp" else "region_id == 0",
    )
    made = tmp_path / mode
    result = convert(str(GOLDEN / "phase4c"), str(made), config, workers=1)
    assert result["dataset_id"] == DATASET_IDS[mode]
    names = sorted(name.removeprefix(f"{mode}/") for name in FILES if name.startswith(f"{mode}/"))
    assert sorted(p.relative_to(made).as_posix() for p in made.rglob("*.*")) == names
    for name in names:
        if name.endswith(".tar"):
            assert sha256((made / name).read_bytes()) == FILES[f"{mode}/{name}"], name
        elif name.endswith(".parquet"):
            stored = pq.read_table(GOLDEN / mode / name)
            assert pq.read_table(made / name).equals(stored, check_metadata=True), name
    assert contractual(made / "manifest.json") == contractual(GOLDEN / mode / "manifest.json")
    shards = [s for split in Dataset.open(made).manifest.splits.values() for s in split.shards]
    assert all(sha256((made / s.sidecar).read_bytes()) == s.sidecar_sha256 for s in shards)


@pytest.mark.parametrize(("mode", "split"), READ)
def test_the_reader_reads_these_pixels_and_columns(mode, split):
    keys, pixel_digest, middle, measured = READ[mode, split]
    dataset = Dataset.open(GOLDEN / mode)
    assert dataset.dataset_id == DATASET_IDS[mode]
    side = dataset.read_sidecar(split)
    assert side["key"].to_pylist() == keys
    assert (side["median_g"][0].as_py(), side["scale_z"][0].as_py()) == measured
    pixels = dataset.read_pixels(split, np.arange(len(keys)))
    assert pixels.dtype == "<f2"
    assert pixels[0, :, 31, 31].tolist() == middle
    assert sha256(pixels.tobytes()) == pixel_digest


@pytest.mark.parametrize(("mode", "split"), READ)
def test_a_stock_tar_reader_finds_the_same(mode, split):
    keys, pixel_digest, *_ = READ[mode, split]
    members = {}
    for path in sorted((GOLDEN / mode / split).glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                members[member.name] = archive.extractfile(member).read()
    assert list(members) == [f"{key}{end}" for key in keys for end in (".stamp.npy", ".json")]
    pixels = [np.load(io.BytesIO(members[f"{key}.stamp.npy"]), allow_pickle=False) for key in keys]
    assert sha256(np.stack(pixels).tobytes()) == pixel_digest
    sidecar = Dataset.open(GOLDEN / mode).read_sidecar(split).to_pylist()
    for key, row in zip(keys, sidecar, strict=True):
        text = json.loads(members[f"{key}.json"])
        assert text["label"] == row["label"]
        assert text["task_id"] == row["task_id"]


SPARSE = Geometry(
    survey="sparse",
    bands=("VIS", "y"),
    side=32,
    pixel_scale_arcsec=0.1,
    reference_band="VIS",
    zero_point=24.5,
    sky_noise=(0.25, 0.5),
)
SPARSE_ID = "585fbca844906968095943032a72ccdc75237aa53e85b6a1f4d3872a52b1a892"
KEYS = [f"{17 * row:032x}" for row in range(4)]
SPARSE_KEYS = {"train": KEYS, "val": KEYS[2:3]}


def sparse_pixels(rows: int) -> np.ndarray:
    """Stored values that no library makes: powers of two, exact in float16."""
    cells = np.arange(rows * np.prod(SPARSE.shape)).reshape(rows, *SPARSE.shape)
    return np.ldexp(1 - 2.0 * (cells % 3 == 0), cells % 11 - 8).astype("<f2")


def sparse_table(split: str) -> pa.Table:
    """Rows of an injection, its control, and of real objects; of val a real one."""
    columns = {
        "key": KEYS,
        "label": pa.array([1, 0, 1, 0], pa.int8()),
        "task_id": ["sie", "control", "real lens", "spiral \u03b1"],
        "region_id": pa.array([5, 5, 6, 7], pa.int64()),
        "lens_model": ["SIE", "CONTROL", "LENS", "NONLENS"],
        "theta_e_arcsec": [1.25, 0.0, None, None],
        "ra": [150.0, 150.5, 10.25, 359.75],
        "dec": [2.0, 2.5, -1.0, -0.25],
        "origin": ["simulated", None, "real", "real"],
        "kind": [None, None, "lens", "spiral"],
        "grade": [None, None, "A", None],
        **{
            f"median_{band}": pa.array([0.5, 0.25, 0.0, -1.0], pa.float32())
            for band in SPARSE.bands
        },
        **{f"scale_{band}": pa.array([1.0, 2.0, 0.5, 0.25], pa.float32()) for band in SPARSE.bands},
    }
    table = pa.table(columns)
    return table if split == "train" else table.slice(2, 1)


def test_the_writer_makes_these_bytes_of_format_2(tmp_path):
    splits = {
        name: (sparse_pixels(len(keys)), sparse_table(name)) for name, keys in SPARSE_KEYS.items()
    }
    spec = normalization_spec("asinh_survey", 64.0, SPARSE)
    labels = LABEL_MAP | CUTOUT_LABELS
    write_dataset(tmp_path, splits, spec, shard_rows=3, geometry=SPARSE, label_map=labels)
    stored = GOLDEN / "format_2"
    for path in sorted(stored.rglob("*.*")):
        name = path.relative_to(stored).as_posix()
        if name.endswith(".tar"):
            assert sha256((tmp_path / name).read_bytes()) == FILES[f"format_2/{name}"], name
        elif name.endswith(".parquet"):
            assert pq.read_table(tmp_path / name).equals(pq.read_table(path)), name
    assert contractual(tmp_path / "manifest.json") == contractual(stored / "manifest.json")


def test_the_reader_reads_format_2():
    dataset = Dataset.open(GOLDEN / "format_2")
    assert (dataset.dataset_id, dataset.geometry) == (SPARSE_ID, SPARSE)
    for split, keys in SPARSE_KEYS.items():
        pixels = sparse_pixels(len(keys))
        np.testing.assert_array_equal(dataset.read_pixels(split, range(len(keys))), pixels)
        side = dataset.read_sidecar(split)
        assert side.drop_columns(["payload_crc32"]).equals(sparse_table(split))
        members = {}
        for path in sorted((GOLDEN / "format_2" / split).glob("*.tar")):
            with tarfile.open(path) as archive:
                members |= {m.name: archive.extractfile(m).read() for m in archive}
        assert list(members) == [f"{key}{end}" for key in keys for end in (".stamp.npy", ".json")]
        for key, stamp, row in zip(keys, pixels, side.to_pylist(), strict=True):
            np.testing.assert_array_equal(np.load(io.BytesIO(members[f"{key}.stamp.npy"])), stamp)
            text = json.loads(members[f"{key}.json"])
            assert text.items() <= row.items()
            assert {"origin", "kind"} & {*text} == {n for n in ("origin", "kind") if row[n]}
            assert "grade" not in text
    assert verify(str(GOLDEN / "format_2"), workers=1)["faults"] == []
