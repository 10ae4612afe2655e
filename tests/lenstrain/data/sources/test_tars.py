"""Tars that are not ours: read by stock stages with a warning, and with the same guarantees."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
import torch
import webdataset as wds

from lensprep.errors import ConfigError, DatasetError, ShardError
from lenstrain.data import StampLoader
from lenstrain.data.sources.tars import tar_paths
from tests.datasets import tiny_dataset, tiny_pixels

ROWS = 23


def stock_tar(path, pixels, start=0, label="json"):
    """A tar as webdataset's own writer makes it: members of any order of size, PAX headers."""
    with wds.TarWriter(str(path), encoder=True) as sink:
        for i, stamp in enumerate(pixels, start):
            fields = {"__key__": f"s{i:04d}", "stamp.npy": stamp}
            fields |= (
                {"json": {"label": i % 2, "note": "x" * i}} if label == "json" else {"cls": i % 2}
            )
            sink.write(fields)
    return path


@pytest.fixture
def tars(tmp_path):
    """Two shards of float32 stamps, and their pixels as float16."""
    pixels = tiny_pixels(ROWS).astype(np.float32)
    stock_tar(tmp_path / "a-000000.tar", pixels[:10])
    stock_tar(tmp_path / "a-000001.tar", pixels[10:], 10, label="cls")
    return str(tmp_path / "a-{000000..000001}.tar"), pixels.astype(np.float16)


def warned():
    return pytest.warns(UserWarning, match="one by one by the stock WebDataset stages, many times")


def open_tars(uri, *args, **options):
    with warned():
        return StampLoader(uri, *args, **options)


def rows(batches):
    return [i for b in batches for i in b.index[b.weight > 0].tolist()]


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_a_stock_tar_is_read_exactly_with_a_warning(tars, shuffle):
    uri, pixels = tars
    batches = list(open_tars(uri, batch_size=4, shuffle=shuffle))
    assert sorted(rows(batches)) == list(range(ROWS))
    for batch in batches:
        index = batch.index.numpy()
        np.testing.assert_array_equal(batch.pixels.numpy(), pixels[index])
        np.testing.assert_array_equal(batch.labels.numpy(), index % 2)


def test_a_wildcard_names_the_same_tars_in_order(tars):
    uri, _ = tars
    wild = uri.replace("{000000..000001}", "*")
    assert [b.index.tolist() for b in open_tars(wild)] == [b.index.tolist() for b in open_tars(uri)]


def test_stock_tars_are_divided_and_resumed_like_ours(tars):
    uri, _ = tars
    whole = [b.index for b in open_tars(uri, batch_size=6, seed=3)]
    parts = [
        [b.index for b in open_tars(uri, batch_size=2, seed=3, rank=rank, world_size=3)]
        for rank in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))
    loader = open_tars(uri, batch_size=6, seed=3)
    next(iter(loader))
    resumed = open_tars(uri, batch_size=6, seed=3)
    resumed.load_state_dict(loader.state_dict())
    assert [b.index.tolist() for b in resumed] == [i.tolist() for i in whole[1:]]


def test_one_of_our_shards_alone_is_a_stock_tar_too(tmp_path):
    root = tiny_dataset(tmp_path, 20, shard_rows=10)
    fast = next(iter(StampLoader(root, batch_size=10, shuffle=None)))
    slow = next(iter(open_tars(root / "train" / "train-000000.tar", batch_size=10, shuffle=None)))
    assert torch.equal(fast.pixels, slow.pixels)
    assert torch.equal(fast.labels, slow.labels)


def test_balance_works_and_what_needs_sidecars_is_refused(tars):
    uri, _ = tars
    loader = open_tars(uri, batch_size=4, sampling="balanced")
    labels = torch.cat([b.labels[b.weight > 0] for b in loader])
    assert abs(int(labels.sum()) - ROWS / 2) <= 1
    with warned(), pytest.raises(ConfigError, match="has no sidecar tables"):
        StampLoader(uri, where="label == 1")
    with pytest.raises(ConfigError, match="has no checksums"):
        StampLoader(uri, verify="crc")


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_members(path, *members):
    path.write_bytes(tar_of(*members))
    return path


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


STAMP = npy(np.zeros((3, 64, 64), np.float32))
LABEL = json.dumps({"label": 1}).encode()

TAR = tar_of(("a.npy", STAMP), ("a.cls", b"1"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.json", LABEL)], "sample 'a' has 0 .npy members"),
        ([("a.g.npy", STAMP), ("a.r.npy", STAMP)], "sample 'a' has 2 .npy members"),
        ([("a.npy", STAMP)], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.json", b"{}")], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.cls", b"7")], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.json", b'{"label": true}')], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.json", b"[" * 50_000)], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.json", b'{"label": 0, "label": 1}')], "sample 'a' has no label"),
        ([("a.npy", STAMP), ("a.npy", STAMP), ("a.cls", b"1")], "'a.npy' occurs twice"),
        ([("a.npy", bytes(9 << 20)), ("a.cls", b"1")], "has a .npy member of 9437184 bytes"),
        ([("a.npy", STAMP), ("a.cls", b"1"), ("b.npy", STAMP), ("b.cls", b"1"),
          ("a.npy", STAMP), ("a.cls", b"1")], "2 samples of key 'a'"),
        ([("a.1.x.npy", STAMP), ("a.1.cls", b"1"), ("a.2.x.npy", STAMP), ("a.2.cls", b"1")],
         "has 2 .npy members; 1 is needed .a key ends at the first dot"),
    ],
)  # fmt: skip
def test_a_sample_that_cannot_be_used_is_named(tmp_path, members, message):
    path = write_members(tmp_path / "x.tar", *members)
    with pytest.raises(ShardError, match=message):
        StampLoader(path)


def npy_of_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy_of_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}\n"),
         "'a' at offset 512 cannot be decoded"),
        (npy_of_header("(" * 5000 + "\n"), "'a' at offset 512 cannot be decoded"),
        (npy(np.zeros((3, 64, 64), "M8[s]")), "has values of type datetime64"),
        (npy(np.zeros((3, 64, 64), "f4,f4")), "has values of type"),
        (b"\x93NUMPY\x01\x00v\x00" + b"\xff" * 300, "'a' at offset 512 cannot be decoded"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_stamp_are_named_when_they_are_read(tmp_path, data, message):
    path = write_members(tmp_path / "x.tar", ("a.npy", data), ("a.cls", b"0"))
    with pytest.raises(ShardError, match=message) as caught:
        list(open_tars(path, batch_size=1))
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Loaded:
        def __reduce__(self):
            return (tmp_path.joinpath("loaded").touch, ())

    stamp = np.empty((3, 64, 64), object)
    stamp[:] = Loaded()
    buffer = io.BytesIO()
    np.save(buffer, stamp, allow_pickle=True)
    path = write_members(tmp_path / "x.tar", ("a.npy", buffer.getvalue()), ("a.cls", b"0"))
    with pytest.raises(ShardError, match="cannot be decoded"):
        list(open_tars(path, batch_size=1))
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12]
)
def test_a_size_that_lies_is_told_and_never_read(tmp_path, size):
    path = write_members(tmp_path / "x.tar", ("a.cls", b"0"), ("a.npy", STAMP))
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = size
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"x\.tar"):
        StampLoader(path)


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (np.zeros((64, 64), np.float32), r"'a' at offset 512 has shape \(64, 64\)"),
        (np.full((3, 64, 64), 1e6, np.float32), "not finite in float16"),
    ],
)
def test_a_stamp_that_does_not_fit_is_named_when_it_is_read(tmp_path, stamp, message):
    path = write_members(tmp_path / "x.tar", ("a.npy", npy(stamp)), ("a.cls", b"0"))
    with pytest.raises(ShardError, match=message):
        list(open_tars(path, batch_size=1))


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_the_tars_is_refused(tars, row):
    loader = open_tars(tars[0], batch_size=4)
    with pytest.raises(IndexError, match=r"rows must lie in 0 \.\.\. 22"):
        loader.source.gather(np.array([row]), np.empty((1, 3, 64, 64), np.float16))


def test_a_tar_cut_between_members_is_an_error(tars, tmp_path):
    """What stock readers take for a shorter shard (webdataset#142)."""
    path = tmp_path / "a-000000.tar"
    with tarfile.open(path) as tar:
        fifth = tar.getmembers()[8]
    data = path.read_bytes()
    # A PAX header may stand before the member's own: cut before both.
    path.write_bytes(data[: fifth.offset])
    with pytest.raises(ShardError, match=r"a-000000\.tar"):
        StampLoader(str(path))


def test_a_damaged_header_is_an_error(tmp_path):
    members = [(f"{i}.{suffix}", data) for i in range(3) for suffix, data in
               (("npy", STAMP), ("cls", b"1"))]  # fmt: skip
    path = write_members(tmp_path / "x.tar", *members)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"at offset {offset}"):
        StampLoader(path)


def test_a_folder_of_tars_without_a_manifest_is_refused(tmp_path):
    """It may be a conversion that has not finished."""
    root = tiny_dataset(tmp_path, 20)
    (root / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="has no manifest"):
        StampLoader(root)


def test_a_missing_tar_is_named_before_any_warning(tmp_path):
    for name in ("no.tar", "*.tar", "no-{1..3}.tar", "no.tar.gz"):
        with pytest.raises(DatasetError, match="no such tar"):
            StampLoader(str(tmp_path / name))
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(DatasetError, match="has no manifest"):
        StampLoader(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", gzip.compress(TAR), "is packed with gzip.* Unpack it once"),
        ("a.tar.gz", gzip.compress(TAR), "is packed with gzip"),
        ("a.TGZ", gzip.compress(TAR), "is packed with gzip"),
        ("a.tar.bz2", bz2.compress(TAR), "is packed with bzip2"),
        ("a.tar.xz", lzma.compress(TAR), "is packed with xz"),
        ("a.tar", b"\x28\xb5\x2f\xfd" + bytes(600), "is packed with zstd"),
        ("a.tar", b"PK\3\4" + bytes(600), "is packed with zip"),
        ("a.tar", b"", r"a\.tar is empty: no tar"),
        ("a.tar", b"ra,dec\n" * 99, "is no tar: it begins with b'ra,dec"),
        ("a.tar", TAR[:700], "is damaged or cut .*Copy it again"),
        ("a.tar", TAR[:100] + b"!" + TAR[101:], "is damaged or cut .*Copy it again"),
    ],
)  # fmt: skip
def test_what_is_no_plain_tar_is_not_called_damaged(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ShardError, match=message):
        StampLoader(tmp_path / name)


@pytest.mark.parametrize("folder", ["", "./", "v1.2/deep/"])
def test_keys_with_dots_are_samples_of_their_own(tmp_path, folder):
    members = []
    for i in range(3):
        data = npy(np.full((3, 64, 64), i, "f4"))
        name = f"{folder}J12.{i}+0.5"
        members += [(f"{name}.npy", data), (f"{name}.cls", b"%d" % (i % 2))]
    (batch,) = open_tars(write_members(tmp_path / "x.tar", *members), shuffle=None, batch_size=3)
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.labels.tolist() == [0, 1, 0]


def test_a_single_sample_with_dots_finds_its_label(tmp_path):
    path = write_members(tmp_path / "x.tar", ("J12.5.npy", STAMP), ("J12.5.json", LABEL))
    assert len(rows(open_tars(path, batch_size=1))) == 1


def test_a_shard_of_a_dataset_says_whose_it_is(tmp_path):
    root = tiny_dataset(tmp_path, 20)
    with pytest.warns(UserWarning, match=rf"is a shard of the dataset {root}; reading is fast"):
        StampLoader(root / "train" / "train-000000.tar")


def test_a_tar_without_members_has_no_row_and_may_stand_among_others(tmp_path):
    write_members(tmp_path / "a.tar")
    with warned(), pytest.raises(ConfigError, match="there is no row in"):
        StampLoader(tmp_path / "a.tar")
    write_members(tmp_path / "b.tar", ("k.npy", STAMP), ("k.cls", b"1"))
    assert rows(open_tars(str(tmp_path / "{a,b}.tar"))) == [0]


@pytest.mark.parametrize("name", ["a[1]{x,y}.tar", "a{0..3}.tar", "a*?.tar", "a::b.tar", "~a.tar"])
@pytest.mark.parametrize("folder", ["plain", "set[1]", "set{a,b}", "v1.5.tar"])
def test_what_is_there_by_its_very_name_is_no_pattern(tmp_path, folder, name):
    place = tmp_path / folder
    place.mkdir()
    sample = (("k.npy", STAMP), ("k.cls", b"1"))
    write_members(place / name, *sample)
    assert rows(open_tars(place / name)) == [0]
    write_members(place / "b-0.tar", *sample)
    write_members(place / "b-1.tar", *sample)
    for pattern in ("b-{0..1}.tar", "b-*.tar", "b-[01].tar", "b-{0,?}.tar"):
        found = [path.name for path in tar_paths(str(place / pattern))]
        assert sorted(set(found)) == ["b-0.tar", "b-1.tar"]
    assert tar_paths(f"{place}/b-0.tar::{place}/b-1.tar") == [place / "b-0.tar", place / "b-1.tar"]


# Stock webdataset leaves its files to the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("prefix", ["", "./", "a.b/c.d/", "./v1.5/", "x" * 120 + "/"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_folders_with_dots_and_long_names_keep_their_samples_apart(tmp_path, prefix, kind):
    members = [(f"{prefix}s{i}.{suffix}", data) for i in range(2)
               for suffix, data in (("npy", npy(np.full((3, 64, 64), i, np.float32))),
                                    ("cls", b"%d" % i))]  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (batch,) = open_tars(tmp_path / "x.tar", batch_size=2, shuffle=None)
    assert batch.pixels[:, 0, 0, 0].tolist() == batch.labels.tolist() == [0, 1]
    assert len(list(wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))) == 2


def test_a_member_with_holes_is_told_with_its_remedy(tmp_path):
    """As GNU tar --sparse --format=pax stores it."""
    sizes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.npy",
             "GNU.sparse.realsize": str(len(STAMP))}  # fmt: skip
    data = f"1\n0\n{len(STAMP)}\n".encode().ljust(512, b"\0") + STAMP
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/a.npy")
        info.size, info.pax_headers = len(data), sizes
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ShardError, match=r"'a\.npy' is stored with holes.*--sparse"):
        StampLoader(tmp_path / "x.tar")


def test_a_tar_that_changes_its_size_is_noticed(tars, tmp_path):
    loader = open_tars(tars[0], batch_size=4)
    (tmp_path / "a-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="has 0 bytes where"):
        iter(loader)
