"""A folder of shards on a local disk, shared by all processes of a node, never above its limit.

    folder = CacheFolder.open("/nvme/cache", CacheOptions(limit_bytes=...))
    with folder.use(dataset) as copies:         its shards stay until the block ends
        copies.path(shard)                      a complete copy, or None
        claim = copies.claim(shard)             room for a shard that is not there, or why not

On the disk, below the folder:

    lenstrain-cache.json                        makes it a cache: nothing else is ever cleared
    lock                                        held for moments by whoever counts, claims, evicts
    datasets/<dataset id>/dataset.json          where it came from, and the names of its shards
    datasets/<dataset id>/users                 held, shared, by processes that use the dataset
    datasets/<dataset id>/<sha256>.tar          a shard, whole and of that digest
    datasets/<dataset id>/<sha256>.claim        held by the process that fetches it; states its size
    datasets/<dataset id>/.<sha256>.tar.<pid>.partial

All locks are `flock`: the kernel lets go of them when a process ends, however it ends. What it was
fetching is then a claim that nobody holds, and is removed by whoever next counts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lensprep.dataset import Dataset, ShardInfo
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import StorageError
from lensprep.store import PARTIAL_SUFFIX, local_path, write_atomic

MARKER = "lenstrain-cache.json"
FORMAT = 1
DEFAULT_LIMIT = 900 * 10**9
DEFAULT_RESERVE = 20 * 10**9
DOWNLOADS = 8
"""Most shards that the processes of a node fetch at once: each costs a digest and a disk write."""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Refusal = Literal["there", "taken", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheOptions:
    """How a cache is used by one process; the folder itself knows no limits."""

    limit_bytes: int = DEFAULT_LIMIT
    """Most bytes of shards, finished or on their way, of all datasets in the folder."""
    reserve_bytes: int = DEFAULT_RESERVE
    """Bytes of the disk that stay free, for checkpoints and others."""

    def __post_init__(self) -> None:
        for name in ("limit_bytes", "reserve_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of one dataset in a cache."""

    dataset_id: str
    uri: str
    shards: int
    """Complete ones."""
    of: int | None
    """Shards of the whole dataset; None if its description was lost."""
    bytes: int
    coming: int
    """Shards on their way."""
    in_use: bool
    last_used: float
    """Unix time."""


class CacheFolder:
    """The folder: what is in it, what may be put there, what may go.

    Parameters
    ----------
    root : Path
    options : CacheOptions, optional
    """

    def __init__(self, root: Path, options: CacheOptions | None = None) -> None:
        self.root, self.options = root, options or CacheOptions()
        self.datasets = root / "datasets"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        options: CacheOptions | None = None,
        *,
        create: bool = True,
    ) -> CacheFolder:
        """Open a cache, and make it if there is none.

        Raises
        ------
        StorageError
            If the folder holds other things, is of another format, or cannot be made.
        """
        root = local_path(path)
        marker = root / MARKER
        with _disk_errors(root):
            if not marker.exists():
                others = _other_files(root)
                if others:
                    raise StorageError(
                        f"{root} is no cache: it holds other files (such as {others[0]})."
                        + (" Name an empty or new folder on a local disk." if create else "")
                    )
                if not create:
                    raise StorageError(f"{root}: there is no cache. Check the folder's name.")
                root.mkdir(parents=True, exist_ok=True)
                write_atomic(marker, json.dumps({"format": FORMAT}).encode())
            try:
                found = parse_json(marker.read_bytes())["format"]
            except (ValueError, TypeError, KeyError):
                found = "unknown"
            if found != FORMAT:
                raise StorageError(
                    f"{root} has cache format {found}; this version knows {FORMAT}. Remove the "
                    "folder, or name another."
                )
            (root / "datasets").mkdir(exist_ok=True)
        return cls(root, options)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who counts, claims or evicts; for moments only."""
        with _disk_errors(self.root):
            descriptor = _open_lock(self.root / "lock")
        try:
            with _disk_errors(self.root):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def place(self, dataset_id: str) -> Path:
        """Folder of a dataset."""
        return self.datasets / dataset_id

    def use(self, dataset: Dataset) -> CachedDataset:
        """Take a dataset into use: nothing of it is evicted until `CachedDataset.close`."""
        place = self.place(dataset.dataset_id)
        with self.locked(), _disk_errors(place):
            place.mkdir(exist_ok=True)
            if not (place / "dataset.json").exists():
                write_atomic(place / "dataset.json", _description(dataset))
            users = _open_lock(place / "users")
            fcntl.flock(users, fcntl.LOCK_SH)
            os.utime(users)
        return CachedDataset(self, place, users)

    # ------------------------------------------------------------------ counting

    def usage(self) -> tuple[int, int]:
        """Bytes of all shards, those on their way in full; and how many of these are not written.

        Under `locked`. What killed processes left behind is removed.
        """
        used, unwritten = 0, 0
        for place in _folders(self.datasets):
            shards, claims = _contents(place)
            used += sum(shards.values())
            for digest, size in claims.items():
                if digest in shards:  # finished a moment ago
                    continue
                used += size
                unwritten += max(0, size - _written(place, digest))
        return used, unwritten

    def free(self) -> int:
        """Bytes that are free on the disk, for this user."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def make_room(self, need: int, keep: str) -> bool:
        """Whether so many bytes more may be taken; other datasets may go for it (`locked`).

        Parameters
        ----------
        need : int
        keep : str
            Dataset that the room is for: its own shards never go for each other.
        """
        used, unwritten = self.usage()
        over_limit = used + need - self.options.limit_bytes
        over_disk = unwritten + need + self.options.reserve_bytes - self.free()
        lack = max(over_limit, over_disk)
        return lack <= 0 or (need <= self.options.limit_bytes and self._evict(lack, keep))

    def _evict(self, lack: int, keep: str) -> bool:
        """Remove shards of datasets that nobody uses, those unused for longest first.

        Nothing is removed if that would not do.
        """
        unused = [
            (mtime, place, users)
            for place in _folders(self.datasets)
            if place.name != keep and (users := _try_hold(place / "users")) is not None
            for mtime in [os.fstat(users).st_mtime]
        ]
        try:
            evictable = [
                (place / f"{digest}.tar", size)
                for _, place, _ in sorted(unused)
                for digest, size in _contents(place)[0].items()
            ]
            if sum(size for _, size in evictable) < lack:
                return False
            for path, size in evictable:
                path.unlink(missing_ok=True)
                lack -= size
                if lack <= 0:
                    break
            for _, place, _ in unused:
                if not _contents(place)[0]:
                    _remove_folder(place)
            return True
        finally:
            for _, _, users in unused:
                os.close(users)

    # ------------------------------------------------------------------ for people

    def held(self) -> list[Held]:
        """What is in the cache, the most recently used first."""
        with self.locked():
            found = [_held(place) for place in _folders(self.datasets)]
        return sorted(found, key=lambda one: -one.last_used)

    def clear(self, dataset_ids: Sequence[str] | None = None) -> tuple[int, list[str]]:
        """Remove datasets, all if none are named; those that a running process uses are kept.

        Returns
        -------
        tuple
            Bytes of shards removed, and the ids of datasets that were kept.
        """
        removed, kept = 0, []
        with self.locked(), _disk_errors(self.root):
            for place in _folders(self.datasets):
                if dataset_ids is not None and place.name not in dataset_ids:
                    continue
                users = _try_hold(place / "users")
                if users is None:
                    kept.append(place.name)
                    continue
                try:
                    removed += sum(_contents(place)[0].values())
                    _remove_folder(place)
                finally:
                    os.close(users)
        return removed, kept

    def shard_files(self) -> list[tuple[str, str, Path, int]]:
        """Dataset id, name, path and size of every complete shard."""
        found = []
        for place in _folders(self.datasets):
            names = {digest: name for name, digest, _ in _described(place).get("shards", ())}
            for digest, size in _complete(place).items():
                name = names.get(digest, digest)
                found.append((place.name, name, place / f"{digest}.tar", size))
        return found


class CachedDataset:
    """A dataset's shards in a cache, in use by this process; made by `CacheFolder.use`."""

    def __init__(self, folder: CacheFolder, place: Path, users: int) -> None:
        self.folder, self._place = folder, place
        self._users: int | None = users

    def __enter__(self) -> CachedDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, shard: ShardInfo) -> Path:
        """Where a complete copy of a shard has its place."""
        return self._place / f"{shard.sha256}.tar"

    def _claim_file(self, shard: ShardInfo) -> Path:
        return self._place / f"{shard.sha256}.claim"

    def size(self, shard: ShardInfo) -> int | None:
        """Bytes of the copy that is there, if one is."""
        try:
            return self.file(shard).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, shard: ShardInfo) -> None:
        """Remove a damaged copy; whoever has it mapped keeps it."""
        self.file(shard).unlink(missing_ok=True)

    def coming(self, shard: ShardInfo) -> bool:
        """Whether somebody fetches a shard now."""
        path = self._claim_file(shard)
        with self.folder.locked():
            return path.exists() and not _abandoned(path)

    def claim(self, shard: ShardInfo) -> Claim | Refusal:
        """Room for a shard, to be fetched by the holder of the claim alone.

        Returns
        -------
        Claim or str
            ``"there"`` already, ``"taken"`` by somebody who fetches it now, or ``"full"``.
        """
        path = self._claim_file(shard)
        with self.folder.locked(), _disk_errors(path):
            # In this order: a shard gets its name before its claim goes.
            if path.exists() and not _abandoned(path):
                return "taken"
            if self.size(shard) is not None:
                return "there"
            if not self.folder.make_room(shard.bytes, self._place.name):
                return "full"
            descriptor = _try_hold(path)
            assert descriptor is not None  # nobody makes claims without the lock of the folder
            os.write(descriptor, str(shard.bytes).encode())
        return Claim(path, descriptor)

    def close(self) -> None:
        """Say that this process uses the dataset no more."""
        users, self._users = self._users, None
        if users is not None:
            with suppress(OSError):
                os.utime(users)
            os.close(users)


@dataclass(slots=True)
class Claim:
    """The right to fetch one shard; it ends with the block, or with the process."""

    path: Path
    descriptor: int

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


@contextmanager
def download_slot(folder: CacheFolder) -> Iterator[bool]:
    """One of the few downloads that a node makes at once; False if all are under way."""
    held = None
    for number in range(DOWNLOADS):
        with _disk_errors(folder.root):
            held = _try_hold(folder.root / f"download-{number}.lock")
        if held is not None:
            break
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error was made by a disk, quota or file-size limit that is used up."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL_DISK


# ----------------------------------------------------------------------------------- locks


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _try_hold(path: Path) -> int | None:
    """Hold a lock alone, if nobody holds it: the descriptor that keeps it."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        os.close(descriptor)
        raise
    return descriptor


def _abandoned(path: Path) -> bool:
    """Whether nobody holds a claim; if so, it goes, with what was fetched (`locked`)."""
    descriptor = _try_hold(path)
    if descriptor is None:
        return False
    try:
        for left in _partials(path.parent, path.stem):
            left.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"The cache {path} cannot be used: {reason}.") from error


# ----------------------------------------------------------------------------------- files


def _other_files(root: Path) -> list[str]:
    """What a folder holds that is not the beginning of a cache."""
    if not root.exists():
        return []
    return sorted(n for n in os.listdir(root) if not n.startswith(".") and n != "lost+found")


def _folders(datasets: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(datasets) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _complete(place: Path) -> dict[str, int]:
    """Bytes of each complete shard by digest."""
    found = {}
    with suppress(FileNotFoundError):
        for entry in os.scandir(place):
            if entry.name.endswith(".tar"):
                with suppress(FileNotFoundError):
                    found[entry.name.removesuffix(".tar")] = entry.stat().st_size
    return dict(sorted(found.items()))


def _contents(place: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of complete shards and of claims by digest; abandoned claims go (`locked`)."""
    claims = {}
    for path in sorted(place.glob("*.claim")):
        if not _abandoned(path):
            with suppress(FileNotFoundError):
                claims[path.stem] = int(path.read_text() or 0)
    for left in place.glob(f".*{PARTIAL_SUFFIX}"):
        if left.name.split(".")[1] not in claims:  # its claim is gone: nobody writes it
            left.unlink(missing_ok=True)
    return _complete(place), claims


def _partials(place: Path, digest: str) -> list[Path]:
    return list(place.glob(f".{digest}.tar.*{PARTIAL_SUFFIX}"))


def _written(place: Path, digest: str) -> int:
    """Bytes of a shard on its way that take room on the disk already."""
    written = 0
    for path in _partials(place, digest):
        with suppress(FileNotFoundError):
            written += path.stat().st_blocks * 512
    return written


def _remove_folder(place: Path) -> None:
    """Remove a dataset's folder, but for what others are fetching into it (`locked`)."""
    for path in list(place.iterdir()):
        if path.suffix != ".claim" and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        place.rmdir()


def _description(dataset: Dataset) -> bytes:
    shards = [
        [shard.name, shard.sha256, shard.bytes]
        for split in dataset.manifest.splits.values()
        for shard in split.shards
    ]
    content = {"uri": dataset.uri, "dataset_id": dataset.dataset_id, "shards": shards}
    return json.dumps(content, indent=1).encode()


def _described(place: Path) -> dict[str, Any]:
    """What `_description` wrote; empty if it is lost."""
    try:
        found = parse_json((place / "dataset.json").read_bytes())
        shards = [(str(name), str(digest), bytes_) for name, digest, bytes_ in found["shards"]]
        return {"uri": str(found["uri"]), "shards": shards}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _held(place: Path) -> Held:
    shards, claims = _contents(place)
    described = _described(place)
    users = _try_hold(place / "users")
    in_use = users is None
    if users is not None:
        os.close(users)
    return Held(
        dataset_id=place.name,
        uri=described.get("uri", "?"),
        shards=len(shards),
        of=len(described["shards"]) if "shards" in described else None,
        bytes=sum(shards.values()),
        coming=len(claims.keys() - shards.keys()),
        in_use=in_use,
        last_used=_time_of(place / "users"),
    )


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
