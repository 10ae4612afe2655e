"""Alter a small dataset in one way after another and read it by every door; a program of its own.

::

    python -m tests.faults.altered FOLDER SEED FIRST COUNT

Run by `test_datasets` as a process, so that a crash, a hang or an allocation beyond the limit is
seen from outside. Case ``n`` depends on (SEED, n) alone: the number in a failure makes it again.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import re
import resource
import struct
import sys
import tarfile
import traceback
import warnings
from collections import Counter
from copy import deepcopy
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from lensprep.convert.tasks import peak_rss_bytes
from lensprep.dataset import Dataset
from lensprep.dataset.layout import BLOCK, JSON_BYTES, JSON_OFFSET, PAYLOAD_OFFSET, RECORD_STRIDE
from lensprep.errors import ProjectError
from lensprep.inspection.inspect import inspect_dataset
from lensprep.inspection.text import render_text
from lensprep.inspection.verify import verify
from lenstrain.data import StampLoader
from lenstrain.evaluation.scores import read_scores
from tests.datasets import tiny_dataset

HEADROOM_BYTES = 3 << 30
"""Address space beyond what the process has when the cases begin; threads reserve much of it."""
CASE_SECONDS = 30

ODD = (
    None, True, False, -1, 0, 1, 2, 3.0, 1.5, -0.0, 1e308, float("nan"), float("inf"), 10**15,
    2**31, 2**53 + 1, 2**63, 2**64, 10**400, "", "x", "3", "g", "train", "../x", "/etc/passwd",
    "train/train-000000.tar", "train/train-000001.parquet", "val/val-000000.tar", "a\0b", "\ud800",
    "[/red]", "\x1b[31m", "é" * 9, "y" * 5000, "0" * 64, "f" * 64, [], {}, [[]], [1, 2], {"a": 1},
    {"0": 1, "1": 2}, {"0": -1, "1": 7}, [{}], {"SIE": 1}, ["g", "r"], [None] * 50,
)  # fmt: skip


def build(folder: Path) -> Path:
    """The dataset before it is altered, a stock tar and a table of scores beside it."""
    root = tiny_dataset(folder, {"train": 7, "val": 4}, shard_rows=4)
    manifest = json.loads((root / "manifest.json").read_text())
    part = {"input_rows": 13, "accepted": 11, "filtered": {"where": 1}, "rejected": {"not_zip": 1}}
    manifest["account"] = {**part, "splits": {"train": {"0": part}}}
    manifest["source"] = {"uri": "phase4c", "digest": "0" * 64, "files": 1, "skipped_files": []}
    manifest["versions"] = {"python": "3.11"}
    manifest["config"] = {"seed": 0, "shard_rows": 4, "where": None, "sources": ["phase4c"]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    pq.write_table(pa.table({"task_id": ["a", "b"]}), root / "rejects.parquet")
    stock = folder / "stock.tar"
    with tarfile.open(stock, "w", format=tarfile.PAX_FORMAT) as tar:
        for row, stamp in enumerate(Dataset.open(root).read_pixels("train", np.arange(3))):
            buffer = io.BytesIO()
            np.save(buffer, stamp.astype(np.float32))
            members = {"npy": buffer.getvalue(), "cls": b"%d" % (row % 2), "json": b'{"label": 1}'}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"s{row}.{suffix}")
                info.size, info.pax_headers = len(data), {"comment": "é"} if row == 1 else {}
                tar.addfile(info, io.BytesIO(data))
    table = Dataset.open(root).read_sidecar("train")
    table = table.append_column("logit", pa.array(np.linspace(-2, 2, 7, dtype=np.float32)))
    pq.write_table(table, folder / "scores.parquet")
    return root


class Truth:
    """What the readers must give of a dataset that they do not refuse."""

    def __init__(self, root: Path) -> None:
        self.root, self.beside = root, root.parent
        self.names = [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]
        self.files = {name: (root / name).read_bytes() for name in self.names}
        self.others = {n: (self.beside / n).read_bytes() for n in ("stock.tar", "scores.parquet")}
        dataset = Dataset.open(root)
        splits = dataset.manifest.splits
        self.pixels = {n: dataset.read_pixels(n, np.arange(s.rows)) for n, s in splits.items()}
        self.labels = {n: dataset.read_sidecar(n)["label"].to_numpy() for n in splits}
        self.tables = {
            name: pq.read_table(io.BytesIO(data))
            for name, data in (self.files | self.others).items()
            if name.endswith(".parquet")
        }


# ------------------------------------------------------------------ alterations


def places(node, path=()):
    """Every place in a tree of JSON."""
    found = [path] if path else []
    if isinstance(node, dict):
        children = node.items()
    else:
        children = enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def alter_tree(rng, tree):
    """One to three changes of a manifest as data."""
    for _ in range(rng.integers(1, 4)):
        every = places(tree)
        if not every:
            return
        # Half of them near the splits: that is where counts and names stand.
        near = [place for place in every if place[0] == "splits"]
        some = near if near and rng.random() < 0.5 else every
        *way, last = some[rng.integers(len(some))]
        holder = tree
        for step in way:
            holder = holder[step]
        match rng.integers(6):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, list):
                holder.insert(rng.integers(len(holder) + 1), deepcopy(holder[last]))
            case 2 if isinstance(holder, list):
                holder.reverse()
            case 3:
                other = some[rng.integers(len(some))]
                source = tree
                for step in other:
                    source = source[step] if isinstance(source, (dict, list)) else source
                holder[last] = deepcopy(source) if source is not tree else None
            case 4 if isinstance(holder, dict):
                holder[str(ODD[rng.integers(len(ODD))])] = deepcopy(holder[last])
            case 5 if type(holder[last]) is int:
                holder[last] += int(rng.integers(-3, 4))
            case _:
                holder[last] = deepcopy(ODD[rng.integers(len(ODD))])


def alter_text(rng, text):
    """One change of a manifest as text."""
    at = int(rng.integers(len(text)))
    match rng.integers(9):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([rng.integers(256)]) + text[at + 1 :]
        case 2:
            depth = int(rng.choice([30, 40, 1500, 200_000]))
            return text.replace(b'"seed": 0', b'"seed": ' + b"[" * depth + b"]" * depth)
        case 3:
            return text.replace(b'"config": {', b'"config": {"seed": 1, ')
        case 4:
            return b"\xef\xbb\xbf" + text
        case 5:
            return text.decode().encode("utf-16")
        case 6:
            number = rng.choice(
                [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"0x1", b"01", b"1_0"]
            )
            return re.sub(rb": \d+", b": " + number, text, count=1)
        case 7:
            return text + text
        case _:
            return text.replace(b"phase4c", rng.choice([b"\\ud800", b"\xff", b"\\u0000", b"\x00"]))


def restate(tree):
    """Give a manifest the dataset_id that its writer would have given it."""
    try:
        content = {
            name: tree[name] for name in ("format_version", "geometry", "bands", "label_map")
        }
        norm = tree["normalization"]
        content["normalization"] = {
            "mode": norm["mode"], "clip": float(norm["clip"]), "parameters": norm["parameters"]
        }  # fmt: skip
        content["shards"] = [
            [shard["name"], shard["rows"], shard["sha256"]]
            for split in sorted(tree["splits"])
            for shard in tree["splits"][split]["shards"]
        ]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (LookupError, TypeError, ValueError, OverflowError):
        return
    tree["dataset_id"] = hashlib.sha256(text.encode()).hexdigest()


def restated(tree, name, data):
    """A manifest whose writer knows of the altered file."""
    for split in tree["splits"].values():
        for shard in split["shards"]:
            if shard["name"] == name:
                shard["sha256"] = hashlib.sha256(data).hexdigest()
            elif shard["sidecar"] == name:
                shard["sidecar_sha256"] = hashlib.sha256(data).hexdigest()
                shard["sidecar_bytes"] = len(data)
    restate(tree)
    return json.dumps(tree).encode()


def odd_column(rng, rows):
    """A column of any type."""
    bad_text = pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(np.arange(rows + 1, dtype=np.int32)),
                            pa.py_buffer(b"\xff" * rows)])  # fmt: skip
    makers = (
        lambda: pa.array([[1.0]] * rows),
        lambda: pa.array([Decimal("1.5")] * rows),
        lambda: pa.array(["x" * 10] * rows),
        lambda: pa.array(["x" * 10] * rows, pa.large_string()),
        lambda: pa.array(["x" * 10] * rows, pa.string_view()),
        lambda: pa.array(["x", "y"] * rows)[:rows].dictionary_encode(),
        lambda: pa.array([b"x" * 10] * rows, pa.binary()),
        lambda: pa.array([b"x" * 10] * rows, pa.binary(10)),
        lambda: pa.nulls(rows),
        lambda: pa.nulls(rows, pa.int8()),
        lambda: pa.array([True] * rows),
        lambda: pa.array([0] * rows, pa.timestamp("us", "UTC")),
        lambda: pa.array([0] * rows, pa.date32()),
        lambda: pa.array([0] * rows, pa.duration("s")),
        lambda: pa.array([0] * rows, pa.time64("us")),
        lambda: pa.array(np.ones(rows, np.float16)),
        lambda: pa.array([2**63] * rows, pa.uint64()),
        lambda: pa.array([-1] * rows, pa.int64()),
        lambda: pa.array([300] * rows, pa.int64()),
        lambda: pa.array(np.full(rows, rng.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324]))),
        lambda: pa.array(rng.choice([1e308, -1e308, np.nan, 0], rows)),
        lambda: pa.array([None, *[1] * (rows - 1)], pa.int64()),
        lambda: pa.array([None, *["x"] * (rows - 1)], pa.string()),
        lambda: pa.array([{"a": 1, "b": "x"}] * rows),
        lambda: pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array(["z" * 2_000_000] * rows),
        lambda: bad_text,
    )  # fmt: skip
    return makers[rng.integers(len(makers))]()


def alter_table(rng, table):
    """One or two changes of a sidecar as a table."""
    for _ in range(rng.integers(1, 3)):
        if not table.num_columns:
            return table
        at = int(rng.integers(table.num_columns))
        name = table.column_names[at]
        match rng.integers(8):
            case 0:
                table = table.remove_column(at)
            case 1:
                table = table.append_column(name, table.column(at))
            case 2:
                names = list(table.column_names)
                names[at] = str(
                    rng.choice(["[/x]", "a.b", "label.x", "", "\x1b[31m", "é", "n" * 999])
                )
                table = table.rename_columns(names)
            case 3:
                rows = int(rng.choice([0, 1, max(0, table.num_rows - 1), table.num_rows]))
                table = pa.concat_tables([table.slice(rows), table.slice(0, rng.integers(3))])
            case 4 if table.num_rows:
                new = rng.choice(
                    ["extra", "is_control", "ra", "brickname", "region_split", "split"]
                )
                table = table.append_column(str(new), odd_column(rng, table.num_rows))
            case _ if table.num_rows:
                table = table.set_column(at, name, odd_column(rng, table.num_rows))
            case _:
                pass
    return table


def as_parquet(rng, table):
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=str(rng.choice(["zstd", "none", "snappy", "gzip"])),
        row_group_size=int(rng.choice([1, 3, 1000])),
        store_schema=bool(rng.random() < 0.8),
        use_dictionary=bool(rng.random() < 0.7),
    )
    return sink.getvalue()


def deep_schema(depth):
    """A footer whose schema is nested so deeply that a recursive parser runs out of stack."""

    def varint(value):
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def zigzag(value):
        return varint(value << 1)

    def name(text):
        return varint(len(text)) + text

    group = b"\x35" + zigzag(0) + b"\x18" + name(b"g") + b"\x15" + zigzag(1) + b"\x00"
    leaf = b"\x15" + zigzag(1) + b"\x25" + zigzag(0) + b"\x18" + name(b"x") + b"\x00"
    footer = (
        b"\x15" + zigzag(1) + b"\x19\xfc" + varint(depth + 1) + group * depth + leaf
        + b"\x16" + zigzag(4) + b"\x19\x0c" + b"\x00"
    )  # fmt: skip
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def flip(rng, data, low=0):
    """A few bytes of a file replaced, or its end cut off or added to."""
    out = bytearray(data)
    match rng.integers(8):
        case 0:
            return bytes(out[: rng.integers(len(out))])
        case 1:
            return bytes(out) + bytes(rng.integers(1, 2000))
        case _:
            for _ in range(rng.integers(1, 6)):
                out[rng.integers(low, len(out))] = rng.choice(
                    [0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]
                )
    return bytes(out)


def alter_header(rng, out, at):
    """One field of a tar header, with the right checksum as often as not."""
    fields = {
        (0, 100): [b"../x.npy", b"/x.npy", b"\xff" * 99, b"", b"s0.npy", b"a" * 100, b"s.NPY"],
        (100, 8): [b"-000644", b"\xff" * 8],
        (124, 12): [b"77777777777", b"00000000000", b"-0000000001", b"\xff" * 12, b"zzz",
                    b"\x80" + b"\0" * 10 + b"\x01", b"\x80" + b"\x7f" * 11, b"1000"],
        (136, 12): [b"\xff" * 12, b"77777777777"],
        (156, 1): [b"S", b"x", b"g", b"L", b"K", b"1", b"2", b"5", b"7", b"\xff", b"V"],
        (257, 8): [b"ustar  \0", b"\0" * 8],
        (345, 155): [b"..", b"p" * 155, b"\0" * 100 + b"\x80" + b"\xff" * 30],
        (386, 96): [b"\0" * 11 + b"\x80" + b"\x7f" * 20],
    }  # fmt: skip
    (offset, width), values = list(fields.items())[rng.integers(len(fields))]
    value = values[rng.integers(len(values))]
    out[at + offset : at + offset + width] = value[:width].ljust(width, b"\0")
    if rng.random() < 0.8:
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])


def alter_tar(rng, data):
    """One change of a shard; returns it and what of it was altered."""
    out = bytearray(data)
    row = int(rng.integers((len(data) - 2 * BLOCK) // RECORD_STRIDE))
    start = row * RECORD_STRIDE
    match rng.integers(6):
        case 0:
            alter_header(rng, out, start + int(rng.choice([0, 25_600])))
            return bytes(out), "header"
        case 1:
            texts = (
                b"", b"null", b"[]", b'{"label": 1e999}', b'{"label": NaN}', b"[" * 500, b"\xff",
                b'{"label": true}', b'{"label": "1"}', b'{"label": 1, "label": 0}', b'{"a": [1]}',
                b'{"label": 99999999999999999999}', b'{"label": 9223372036854775807}',
                b'{"theta_e_arcsec": 9007199254740993}', b'{"ra": [1], "dec": {}}',
                b'{"label": 1, "key": 5, "task_id": 7}', b'{"task_id": "\\ud800"}', b"{" * 400,
            )  # fmt: skip
            text = texts[rng.integers(len(texts))].ljust(JSON_BYTES)
            out[start + JSON_OFFSET : start + JSON_OFFSET + JSON_BYTES] = text
            return bytes(out), "json"
        case 2:
            at = start + PAYLOAD_OFFSET + int(rng.integers(24_576 - 8))
            out[at : at + 8] = rng.choice([b"\xff", b"\x01", b"\x7c", b"\x00\x7d"]) * 8
            del out[len(data) :]
            return bytes(out), "payload"
        case 3:
            out = bytearray(flip(rng, data))
            return bytes(out), "any"
        case 4:
            return bytes(rng.permutation(np.frombuffer(data[:2048], np.uint8))) + data[2048:], "any"
        case _:
            records = out[: -2 * BLOCK]
            del records[start : start + RECORD_STRIDE]
            return bytes(records) + bytes(2 * BLOCK + RECORD_STRIDE), "any"


class Case:
    """One alteration: the files that differ, and what may still be asked of the readers."""

    def __init__(self, rng, truth: Truth) -> None:
        self.changed: dict[str, bytes] = {}
        self.beside: dict[str, bytes] = {}
        self.kind, self.altered, self.seen = "", "", False
        kinds = ("manifest", "manifest text", "sidecar", "sidecar bytes", "tar", "stock", "scores")
        self.kind = str(rng.choice(kinds, p=[0.3, 0.08, 0.2, 0.12, 0.18, 0.08, 0.04]))
        self.honest = bool(rng.random() < 0.2)
        tree = json.loads(truth.files["manifest.json"])
        if self.kind == "manifest":
            alter_tree(rng, tree)
            if not self.honest:
                restate(tree)
            try:
                self.changed["manifest.json"] = json.dumps(tree).encode()
            except (ValueError, RecursionError):
                self.changed["manifest.json"] = b"{}"
        elif self.kind == "manifest text":
            self.changed["manifest.json"] = alter_text(rng, truth.files["manifest.json"])
        elif self.kind in ("stock", "scores"):
            name = "stock.tar" if self.kind == "stock" else "scores.parquet"
            self.beside[name] = self._other(rng, truth, name)
        else:
            ending = ".tar" if self.kind == "tar" else ".parquet"
            names = [n for n in truth.names if n.endswith(ending) and "/" in n]
            name = str(rng.choice(names))
            data = truth.files[name]
            if self.kind == "tar":
                data, self.altered = alter_tar(rng, data)
            elif self.kind == "sidecar":
                data = as_parquet(rng, alter_table(rng, truth.tables[name]))
            elif rng.random() < 0.05:
                data = deep_schema(int(rng.choice([40, 5_000, 9_900, 300_000])))
            else:
                # Half of them in the footer: counts, types, offsets and sizes.
                footer = len(data) - struct.unpack("<I", data[-8:-4])[0]
                data = flip(rng, data, footer if rng.random() < 0.5 else 0)
            self.changed[name] = data
            self.seen = data != truth.files[name]
            if not self.honest:
                self.changed["manifest.json"] = restated(tree, name, data)

    @staticmethod
    def _other(rng, truth, name):
        data = truth.others[name]
        if name == "scores.parquet":
            table = truth.tables[name]
            return (
                as_parquet(rng, alter_table(rng, table)) if rng.random() < 0.7 else flip(rng, data)
            )
        if rng.random() < 0.5:
            return flip(rng, data)
        out = bytearray(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            headers = [info.offset for info in tar]
        alter_header(rng, out, headers[rng.integers(len(headers))])
        return bytes(out)


# ------------------------------------------------------------------ doors


def rows_of(loader):
    with np.errstate(all="ignore"):
        for batch in loader:
            kept = batch.weight.numpy() > 0
            yield batch.index.numpy()[kept], batch.pixels.numpy()[kept], batch.labels.numpy()[kept]


def by_verify(rng, case, truth):
    found = verify(str(truth.root), workers=1)
    json.dumps(found, allow_nan=False)
    if case.seen and (case.kind == "tar" or case.honest):
        assert not found["ok"], "verify saw nothing"


def by_inspect(rng, case, truth):
    where = truth.root if rng.random() < 0.7 else truth.root / "train/train-000000.tar"
    found = inspect_dataset(where, sample=int(rng.integers(3)))
    json.dumps(found.to_dict(), allow_nan=False)
    Console(file=io.StringIO(), width=100).print(render_text(found))


def by_tar_alone(rng, case, truth):
    alone = truth.beside / "alone" / "alone.tar"
    alone.parent.mkdir(exist_ok=True)
    for ending in (".tar", ".parquet"):
        name = f"train/train-000000{ending}"
        alone.with_suffix(ending).write_bytes(case.changed.get(name, truth.files[name]))
    if rng.random() < 0.5:
        alone.with_suffix(".parquet").unlink()
    found = inspect_dataset(alone, sample=0)
    json.dumps(found.to_dict(), allow_nan=False)


def by_dataset(rng, case, truth):
    dataset = Dataset.open(truth.root)
    for name, split in dataset.manifest.splits.items():
        dataset.read_sidecar(name, ["label"] if rng.random() < 0.3 else None)
        pixels = dataset.read_pixels(name, np.arange(split.rows))
        if case.kind != "tar":
            np.testing.assert_array_equal(pixels, truth.pixels[name][: split.rows])


def by_loader(rng, case, truth):
    split = str(rng.choice(["train", "val"]))
    checked = rng.random() < 0.7
    options = [{}, {"sampling": "balanced"}, {"where": "theta_e_arcsec > 0.5 or label == 0"}]
    loader = StampLoader(truth.root, split, 4, verify="crc" if checked else "size",
                         **options[rng.integers(3)])  # fmt: skip
    try:
        for index, pixels, labels in rows_of(loader):
            assert set(labels.tolist()) <= {0, 1}, "labels"
            if checked or case.kind != "tar":
                np.testing.assert_array_equal(pixels, truth.pixels[split][index])
            if not case.kind.startswith("sidecar"):
                np.testing.assert_array_equal(labels, truth.labels[split][index])
    finally:
        loader.close()


def by_stock_tar(rng, case, truth):
    path = (
        truth.beside / "stock.tar"
        if case.kind == "stock"
        else truth.root / "train/train-000000.tar"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*one by one by the stock WebDataset")
        loader = StampLoader(str(path), batch_size=2)
    for _, pixels, labels in rows_of(loader):
        assert np.isfinite(pixels).all()
        assert set(labels.tolist()) <= {0, 1}
    loader.close()


def by_scores(rng, case, truth):
    scores = read_scores(truth.beside / "scores.parquet")
    assert np.isfinite(scores.logits).all()


DOORS = {
    "manifest": (by_verify, by_inspect, by_dataset, by_loader, by_loader),
    "manifest text": (by_verify, by_inspect, by_dataset, by_loader),
    "sidecar": (by_verify, by_inspect, by_tar_alone, by_dataset, by_loader),
    "sidecar bytes": (by_verify, by_inspect, by_tar_alone, by_dataset, by_loader),
    "tar": (by_verify, by_inspect, by_tar_alone, by_dataset, by_loader, by_stock_tar),
    "stock": (by_stock_tar,),
    "scores": (by_scores,),
}


def attempt(seed: int, number: int, truth: Truth) -> tuple[str, str, str | None]:
    """Make one case, read it by one door, and put the dataset back; returns what failed."""
    rng = np.random.default_rng([seed, number])
    case = Case(rng, truth)
    door = DOORS[case.kind][rng.integers(len(DOORS[case.kind]))]
    for name, data in case.changed.items():
        (truth.root / name).write_bytes(data)
    for name, data in case.beside.items():
        (truth.beside / name).write_bytes(data)
    name = door.__name__.removeprefix("by_")
    try:
        door(rng, case, truth)
    except ProjectError as error:
        text = str(error)
        if "\n" in text or not 10 < len(text) < 1500:
            return name, "refused", f"case {number} ({case.kind}): not a line: {text[:2000]!r}"
        return name, "refused", None
    except BaseException:
        return name, "failed", f"case {number} ({case.kind}): {traceback.format_exc()}"
    finally:
        for changed in case.changed:
            (truth.root / changed).write_bytes(truth.files[changed])
        for changed in case.beside:
            (truth.beside / changed).write_bytes(truth.others[changed])
    return name, "right", None


def main(folder: str, seed: int, first: int, count: int) -> None:
    """Print what became of the cases, as JSON; the number of the present one is in a file."""
    truth = Truth(build(Path(folder)))
    unaltered = Case.__new__(Case)
    unaltered.kind, unaltered.seen, unaltered.honest, unaltered.changed = (
        "manifest",
        False,
        True,
        {},
    )
    for door in (
        by_verify,
        by_inspect,
        by_tar_alone,
        by_dataset,
        by_loader,
        by_stock_tar,
        by_scores,
    ):
        door(np.random.default_rng(0), unaltered, truth)  # compiled and imported before the limit
    used = int(re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES,) * 2)
    warnings.simplefilter("error")
    counts, failures = Counter(), []
    present = Path(folder) / "present"
    for number in range(first, first + count):
        present.write_text(str(number))
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        door, outcome, failure = attempt(seed, number, truth)
        faulthandler.cancel_dump_traceback_later()
        counts[f"{door} {outcome}"] += 1
        if failure is not None:
            failures.append(failure)
            (Path(folder) / "failures").write_text("\n".join(failures))
            if len(failures) >= 20:
                break
    # Not `ru_maxrss`: a new process begins with that of its parent.
    report = {"counts": counts, "failures": failures, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
