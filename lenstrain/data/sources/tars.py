"""WebDataset tars that are not ours: the same exact epochs, read by the stock stages.

Without our grid every sample must be found, read and decoded on its own, in Python, so this is
slower by one or two orders of magnitude; but an index of the members gives it the same order,
resume, ranks and errors as a converted dataset.
"""

from __future__ import annotations

import glob
import hashlib
import io
import math
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from lensprep.dataset import DECALS
from lensprep.dataset.geometry import LEAST_SIDE, MOST_BANDS, MOST_SIDE
from lensprep.dataset.layout import STAMP_DTYPE
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import DatasetError, ProjectError, ShardError, error_line
from lensprep.store import is_remote
from lenstrain.data.sources.base import Reading, ShardSource, check_gather

_STAMP_BYTES: Final = 1 << 23
"""No ``.npy`` of a stamp is longer, in any dtype."""
_HEADER_BYTES: Final = 1 << 12
_LABEL_BYTES: Final = 1 << 16
_TAR_SUFFIXES: Final = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "zip",
}
"""How packed files begin, whose members nobody can reach by an offset."""

_Group = dict[str, tarfile.TarInfo]


@dataclass(frozen=True, slots=True)
class Member:
    """Where the stamp of one sample lies, and its label."""

    key: str
    suffix: str
    offset: int
    size: int
    label: int


def names_tars(uri: str) -> bool:
    """Whether a location names tars, also packed ones, and not a folder called like one."""
    return uri.lower().endswith(_TAR_SUFFIXES) and (is_remote(uri) or not Path(uri).is_dir())


def tar_paths(uri: str) -> list[Path]:
    """Tars that a location names: a file, a brace pattern (``{000..003}``) or a wildcard.

    What exists under the very name is no pattern, be it the file or a folder on the way to it.
    Several locations are separated by ``::``.

    Raises
    ------
    DatasetError
        If there is no such tar.
    """
    literal = Path(uri).exists()
    paths = [path for one in ([uri] if literal else uri.split("::")) for path in _expand(one)]
    missing = next((path for path in paths if not path.is_file()), None)
    if not paths or missing is not None:
        what = "is a folder" if missing is not None and missing.is_dir() else "no such tar"
        raise DatasetError(f"{missing or uri}: {what}.")
    return paths


def _expand(uri: str) -> list[Path]:
    path = Path(uri)
    if path.exists():
        return [path]
    folder = next(parent for parent in path.parents if parent.exists())
    found: list[str] = []
    for name in expand_urls(str(path.relative_to(folder))):
        wild = any(mark in name for mark in "*?[") and not (folder / name).exists()
        found += sorted(glob.glob(name, root_dir=folder)) if wild else [name]
    return [folder / name for name in found]


def index_tar(path: Path) -> list[Member]:
    """Find every sample of a tar by its headers.

    Parameters
    ----------
    path : Path
        Not compressed. A sample is a run of members of one key: one ``.npy`` member of shape
        (bands, side, side), and a label in ``.cls`` (a number) or ``.json`` (its entry ``label``).
        A key ends at the first dot of the name, as in WebDataset, but where that makes several
        stamps one sample (``J1234.5.npy``, ``J1234.6.npy``) at the last.

    Raises
    ------
    ShardError
        If it cannot be read, is compressed, cut or has a damaged header, or a sample has no stamp
        or no label.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            groups = (one for group in _groups(path, tar) for one in _by_stamp(group))
            members = [_sample(path, tar, key, group) for key, group in groups]
            _check_end(path, tar)
    except ProjectError:
        raise
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # for damaged headers the library raises anything
        raise ShardError(f"{path} {_fault(path, error)}") from error
    key, times = max(Counter(m.key for m in members).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        raise ShardError(f"{path} holds {times} samples of key {key!r:.100}.")
    return members


def _fault(path: Path, error: Exception) -> str:
    """Why a file cannot be read as a tar, judged by its first bytes."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return (
                f"is packed with {name}, in which no sample can be reached by itself. Unpack it "
                "once, and name the plain tar."
            )
    if b"ustar" not in head:
        return f"is no tar: it begins with {head[:16]!r}." if head else "is empty: no tar."
    return f"is damaged or cut ({error_line(error)}). Copy it again."


def _groups(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, _Group]]:
    """Key of each sample, and its members by suffix, as the stock reader groups them."""
    key, group = "", _Group()
    end = path.stat().st_size
    for info in tar:
        if info.size < 0 or info.offset_data + info.size > end:
            raise tarfile.ReadError(f"member {info.name!r:.100} ends beyond the file's {end} bytes")
        prefix, suffix = base_plus_ext(info.name)
        if not info.isreg() or prefix is None:
            continue
        if prefix != key and group:
            yield key, group
            group = {}
        key, suffix = prefix, suffix.lower()
        if suffix in group:
            raise ShardError(f"{path}: member {info.name!r:.100} occurs twice in one sample.")
        if info.issparse():
            raise ShardError(
                f"{path}: member {info.name!r:.100} is stored with holes, without its zeros. Pack "
                "the tar without --sparse."
            )
        group[suffix] = info
    if group:
        yield key, group


def _by_stamp(sample: tuple[str, _Group]) -> Iterator[tuple[str, _Group]]:
    """Samples whose keys contain dots, which the stock reader takes for one sample."""
    groups: dict[str, _Group] = {}
    for suffix, info in sample[1].items():
        groups.setdefault(info.name.rpartition(".")[0], {})[suffix] = info
    whole = [len(group) > 1 and sum(map(_is_stamp, group)) == 1 for group in groups.values()]
    return iter(groups.items() if all(whole) else [sample])


def _is_stamp(suffix: str) -> bool:
    return suffix.rpartition(".")[2] == "npy"


def _sample(path: Path, tar: tarfile.TarFile, key: str, group: _Group) -> Member:
    stamps = list(filter(_is_stamp, group))
    if len(stamps) != 1:
        raise ShardError(
            f"{path}: sample {key!r:.100} has {len(stamps)} .npy members; 1 is needed (a key ends "
            "at the first dot of a name)."
        )
    stamp = group[stamps[0]]
    if stamp.size > _STAMP_BYTES:
        raise ShardError(f"{path}: sample {key!r:.100} has a .npy member of {stamp.size} bytes.")
    return Member(key, stamps[0], stamp.offset_data, stamp.size, _label(path, tar, key, group))


def _label(path: Path, tar: tarfile.TarFile, key: str, group: _Group) -> int:
    for suffix in ("cls", "json"):
        names = [suffix] if suffix in group else [s for s in group if s.endswith(f".{suffix}")]
        if len(names) != 1:
            continue
        file = tar.extractfile(group[names[0]])
        text = b"" if file is None else file.read(_LABEL_BYTES)
        try:
            label = int(text) if suffix == "cls" else parse_json(text)["label"]
        except (ValueError, KeyError, TypeError):
            break
        if type(label) is int and label in (0, 1):
            return label
    raise ShardError(f"{path}: sample {key!r:.100} has no label 0 or 1 in a .cls or .json member.")


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Refuse a damaged header or a cut between members, which tar readers take for the end."""
    with path.open("rb") as file:
        file.seek(tar.offset)
        mark = file.read(tarfile.BLOCKSIZE)
    # Past the zero block that ends the archive, `offset` is that of this block.
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise ShardError(
            f"{path} ends without an end mark at offset {tar.offset}: cut there, or the header is "
            "damaged. Copy it again."
        )


class TarSource(ShardSource):
    """Rows of indexed tars: read by offset and decoded by the stock stage ``wds.decode()``.

    `shards` is the index of each tar (`index_tar`). All stamps must have the shape of the first.
    """

    def __init__(
        self, paths: Sequence[Path], shards: Sequence[Sequence[Member]], reading: Reading
    ) -> None:
        self.shape = _shape(paths, shards)
        self.depth = reading.depth(math.prod(self.shape) * STAMP_DTYPE.itemsize)
        self._paths = list(paths)
        self._sizes = [path.stat().st_size for path in paths]
        self._members = [member for shard in shards for member in shard]
        self._starts = np.cumsum([0, *map(len, shards)])

    def check(self) -> None:
        """Compare the size of every tar with what was indexed."""
        for path, size in zip(self._paths, self._sizes, strict=True):
            if not path.exists():
                raise ShardError(f"{path} is gone since it was indexed.")
            found = path.stat().st_size
            if found != size:
                raise ShardError(f"{path} has {found} bytes where {size} were indexed.")

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        """Read, decode and convert the stamps of `rows` into `out`."""
        check_gather(rows, len(self._members), self.shape, out)
        samples = wds.decode()(self._raw(rows))
        for i, row in enumerate(rows.tolist()):
            try:
                stamp = next(samples)[self._members[row].suffix]
            except ProjectError:
                raise
            except Exception as error:  # the stock stage raises anything
                cause = error.__cause__ or error.__context__ or error
                raise self._error(row, f"cannot be decoded: {error_line(cause)}.") from error
            if not isinstance(stamp, np.ndarray) or stamp.shape != self.shape:
                shape = getattr(stamp, "shape", None)
                raise self._error(row, f"has shape {shape!s:.100}, not {self.shape}")
            if stamp.dtype.kind not in "fiu":
                raise self._error(row, f"has values of type {stamp.dtype!s:.100}, not numbers")
            with np.errstate(over="ignore", invalid="ignore"):
                out[i] = stamp
            if not np.isfinite(out[i]).all():
                raise self._error(row, "has values that are not finite in float16")

    def _raw(self, rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        descriptors: dict[int, int] = {}
        try:
            for row in rows.tolist():
                shard, member = self._shard(row), self._members[row]
                if shard not in descriptors:
                    descriptors[shard] = os.open(self._paths[shard], os.O_RDONLY)
                data = os.pread(descriptors[shard], member.size, member.offset)
                if len(data) != member.size:
                    raise self._error(row, "is cut")
                yield {"__key__": member.key, member.suffix: data}
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def _shard(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _error(self, row: int, what: str) -> ShardError:
        path, offset = self.locate(row)
        return ShardError(
            f"{path}: the stamp {self._members[row].key!r:.100} at offset {offset} {what}."
        )

    def locate(self, row: int) -> tuple[str, int]:
        """Path of the tar that holds a row, and the offset of its stamp's member there."""
        return str(self._paths[self._shard(row)]), self._members[row].offset


def _shape(paths: Sequence[Path], shards: Sequence[Sequence[Member]]) -> tuple[int, int, int]:
    """Shape of the first stamp by its header; where that is none, of DECaLS: reading it will say.

    No array is made: a header may state any size.
    """
    first = next(((p, shard[0]) for p, shard in zip(paths, shards, strict=True) if shard), None)
    if first is None:
        return DECALS.shape
    path, member = first
    with path.open("rb") as file:
        file.seek(member.offset)
        head = io.BytesIO(file.read(min(member.size, _HEADER_BYTES)))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        bands, height, width = read(head)[0]
    except Exception:  # for damaged headers the library raises anything
        return DECALS.shape
    fits = 1 <= bands <= MOST_BANDS and LEAST_SIDE <= height == width <= MOST_SIDE
    return (bands, height, width) if fits else DECALS.shape


def tars_digest(shards: Sequence[Sequence[Member]]) -> str:
    """Identity of indexed tars: keys, offsets, sizes and labels, not the pixels."""
    digest = hashlib.blake2b(digest_size=16)
    for shard in shards:
        for m in shard:
            line = f"{m.key}|{m.suffix}|{m.offset}|{m.size}|{m.label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        digest.update(b"--\n")
    return f"tar-{digest.hexdigest()}"
