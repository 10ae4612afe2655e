"""A shard is an ordinary tar of samples: the readers that people have read every one of them."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset as wds

from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.layout import NPY_HEADER_BYTES
from tests.datasets import PAIR, tiny_dataset

ROWS, SHARD_ROWS = 20, 8


@pytest.fixture(scope="module", params=[DECALS, PAIR], ids=["format 1", "format 2"])
def geometry(request):
    return request.param


@pytest.fixture(scope="module")
def root(tmp_path_factory, geometry):
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset(folder, ROWS, SHARD_ROWS, geometry=geometry)


@pytest.fixture(scope="module")
def shards(root):
    return sorted((root / "train").glob("*.tar"))


@pytest.fixture(scope="module")
def stored(root):
    """Keys, pixels and what each record's JSON says, in order."""
    dataset = Dataset.open(root)
    columns = ["label", "task_id", "region_id", "lens_model", "theta_e_arcsec"]
    table = dataset.read_sidecar("train", ["key", *columns])
    keys = table["key"].to_pylist()
    return keys, dataset.read_pixels("train", np.arange(ROWS)), table.select(columns).to_pylist()


# Stock webdataset leaves the last shard to the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_stock_webdataset_reads_every_sample(shards, stored):
    keys, pixels, fields = stored
    samples = list(wds.WebDataset([str(path) for path in shards], shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == keys
    assert [s["json"] for s in samples] == fields
    assert {s["stamp.npy"].dtype for s in samples} == {np.dtype("<f2")}
    np.testing.assert_array_equal(np.stack([s["stamp.npy"] for s in samples]), pixels)


def test_pythons_tarfile_reads_every_member(shards, stored):
    keys, pixels, fields = stored
    row = 0
    for path in shards:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
            assert all(m.isreg() for m in members)
            for stamp, text in zip(members[::2], members[1::2], strict=True):
                assert (stamp.name, text.name) == (f"{keys[row]}.stamp.npy", f"{keys[row]}.json")
                found = np.load(io.BytesIO(tar.extractfile(stamp).read()))
                np.testing.assert_array_equal(found, pixels[row])
                assert json.load(tar.extractfile(text)) == fields[row]
                row += 1
    assert row == ROWS


def gnu_tar(*arguments):
    """GNU tar, in the C locale; what it complains about is part of the answer."""
    done = subprocess.run(
        ["tar", *map(str, arguments)], capture_output=True, text=True, env={"LC_ALL": "C"}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def needs_gnu_tar():
    if "GNU tar" not in gnu_tar("--version")[1]:
        pytest.skip("the system's tar is not GNU tar")


@pytest.mark.usefixtures("needs_gnu_tar")
def test_gnu_tar_lists_every_member(shards, stored, geometry):
    keys = stored[0]
    assert shards[0].stat().st_size == geometry.shard_bytes(SHARD_ROWS)
    code, listed, complaints = gnu_tar("-tvf", shards[0], "--utc", "--numeric-owner")
    assert (code, complaints) == (0, "")
    lines = [line.split() for line in listed.splitlines()]
    assert [line[-1] for line in lines] == [
        f"{key}.{suffix}" for key in keys[:SHARD_ROWS] for suffix in ("stamp.npy", "json")
    ]
    assert {tuple(line[:2]) for line in lines} == {("-rw-r--r--", "0/0")}
    assert [int(line[2]) for line in lines[::2]] == [geometry.npy_bytes] * SHARD_ROWS
    assert {line[3] for line in lines} == {"1970-01-01"}


@pytest.mark.usefixtures("needs_gnu_tar")
def test_gnu_tar_extracts_what_was_written_and_finds_it_equal(shards, stored, tmp_path):
    keys, pixels, fields = stored
    for number, path in enumerate(shards):
        out = tmp_path / str(number)
        out.mkdir()
        assert gnu_tar("-xf", path, "-C", out, "--no-same-owner") == (0, "", "")
        row = number * SHARD_ROWS
        np.testing.assert_array_equal(np.load(out / f"{keys[row]}.stamp.npy"), pixels[row])
        assert json.loads((out / f"{keys[row]}.json").read_text()) == fields[row]


@pytest.mark.usefixtures("needs_gnu_tar")
def test_gnu_tar_compares_a_shard_with_its_files_and_sees_a_changed_byte(shards, stored, tmp_path):
    assert gnu_tar("-xpf", shards[1], "-C", tmp_path, "--no-same-owner") == (0, "", "")
    ours = [line for line in gnu_tar("--compare", "-f", shards[1], "-C", tmp_path)[1].splitlines()
            if not line.endswith(("Uid differs", "Gid differs"))]  # fmt: skip
    assert ours == []
    name = f"{stored[0][SHARD_ROWS]}.stamp.npy"
    data = bytearray((tmp_path / name).read_bytes())
    data[NPY_HEADER_BYTES] ^= 1
    (tmp_path / name).write_bytes(data)
    code, differences, _ = gnu_tar("--compare", "-f", shards[1], "-C", tmp_path)
    assert code == 1
    assert f"{name}: Contents differ" in differences


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """The package, offline and with all that it writes in a folder of the tests."""
    folder = tmp_path_factory.mktemp("hugging-face")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(folder))
        import datasets

        datasets.disable_progress_bars()
        yield datasets, folder


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_reads_every_sample(hugging_face, shards, stored, streaming):
    keys, pixels, fields = stored
    datasets, folder = hugging_face
    files = {"train": [str(path) for path in shards]}
    found = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(folder)
    )
    rows = list(found)
    assert [row["__key__"] for row in rows] == keys
    assert [row["json"] for row in rows] == fields
    assert str(found.features["stamp.npy"]) == "List(List(List(Value('float16'))))"
    stamps = np.array([row["stamp.npy"] for row in rows]).astype(np.float16)
    np.testing.assert_array_equal(stamps, pixels)


def test_daft_reads_every_sample(shards, stored):
    """It wants an older pyarrow than constraints.txt names: `make test-readers` installs it.

    Of several shards in one call Daft 0.7.26 waits forever on a machine with two processors.
    """
    daft = pytest.importorskip("daft", minversion="0.7.20")
    keys, pixels, fields = stored
    row = 0
    for path in shards:
        found = daft.read_webdataset(str(path)).to_pydict()
        for key, said, file in zip(
            found["__key__"], found["json"], found["stamp.npy"], strict=True
        ):
            assert (key, said) == (keys[row], fields[row])
            with file.open() as member:
                stamp = np.load(io.BytesIO(member.read()))
            np.testing.assert_array_equal(stamp, pixels[row])
            row += 1
    assert row == ROWS
