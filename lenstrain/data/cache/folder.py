"""A folder of shards on a local disk, shared by all processes of a node, never above its limit.

    folder = CacheFolder.open("/nvme/cache", CacheOptions(limit_bytes=...))
    cached = folder.use(dataset)                its shards stay until `cached.close()`
    cached.size(shard), cached.file(shard)      bytes and path of a complete copy
    claim = cached.claim(shard)                 room for a shard that is not there, or why not

On the disk, below the folder:

    lenstrain-cache.json                        makes it a cache: nothing else is ever cleared
    lock                                        held for moments by whoever counts, claims, evicts
    datasets/<dataset id>/dataset.json          where it came from, and the names of its shards
    datasets/<dataset id>/users                 held, shared, by processes that use the dataset
    datasets/<dataset id>/<sha256>.tar          a shard, whole and of that digest
    datasets/<dataset id>/<sha256>.claim        held by the process that fetches it; states its size
    datasets/<dataset id>/.<sha256>.tar.<pid>.partial

All locks are `flock`: the kernel releases them when a process ends, however it ends. What it was
fetching is then a claim that nobody holds, and the next process that counts removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

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
    """Limits of a cache for one process; the folder itself has none."""

    limit_bytes: int = DEFAULT_LIMIT
    """Most bytes of shards, finished or on their way, of all datasets in the folder."""
    reserve_bytes: int = DEFAULT_RESERVE
    """Bytes of the disk that stay free, for checkpoints and others."""

    def __post_init__(self) -> None:
        for name in ("limit_bytes", "reserve_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


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
            If the folder holds other things, is of another format, or cannot be created.
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
                    raise StorageError(
                        f"{root}: there is no cache. `lenstrain cache fill` or data.cache_dir "
                        "makes one."
                    )
                root.mkdir(parents=True, exist_ok=True)
                write_atomic(marker, json.dumps({"format": FORMAT}).encode())
            try:
                found = parse_json(marker.read_bytes())["format"]
            except (ValueError, TypeError, KeyError):
                found = "unknown"
            if found != FORMAT:
                raise StorageError(
                    f"{root} has cache format {found}; this version reads {FORMAT}. Remove the "
                    "folder, or name another."
                )
            (root / "datasets").mkdir(exist_ok=True)
        return cls(root, options)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who counts, claims or evicts; for moments only."""
        with ExitStack() as stack:
            with _disk_errors(self.root):
                file = stack.enter_context((self.root / "lock").open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def home(self, dataset_id: str) -> Path:
        """Folder of a dataset."""
        return self.datasets / dataset_id

    def use(self, dataset: Dataset) -> CachedDataset:
        """Take a dataset into use: nothing of it is evicted until `CachedDataset.close`."""
        home = self.home(dataset.dataset_id)
        with self.locked(), _disk_errors(home):
            home.mkdir(exist_ok=True)
            if not (home / "dataset.json").exists():
                write_atomic(home / "dataset.json", _description(dataset))
            users = (home / "users").open("a+b")
            fcntl.flock(users, fcntl.LOCK_SH)
            os.utime(users.fileno())
        return CachedDataset(self, home, users)

    # ------------------------------------------------------------------ counting

    def usage(self) -> tuple[int, int]:
        """Bytes of all shards, those on their way in full; and how many of these are not written.

        Under `locked`. What killed processes left behind is removed.
        """
        used, unwritten = 0, 0
        for home in self.homes():
            shards, claims = _contents(home)
            used += sum(shards.values())
            for digest, size in claims.items():
                if digest not in shards:  # else it was finished a moment ago
                    used += size
                    unwritten += max(0, size - _written(home, digest))
        return used, unwritten

    def homes(self) -> list[Path]:
        """Folders of the datasets, each named by its dataset id."""
        return [Path(entry.path) for entry in os.scandir(self.datasets) if entry.is_dir()]

    def free(self) -> int:
        """Bytes that are free on the disk, for this user."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def make_room(self, need: int, keep: str) -> bool:
        """Whether `need` more bytes may be taken; other datasets may be evicted (under `locked`).

        The dataset `keep` needs them: its own shards are never evicted for each other.
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
        with ExitStack() as locks:
            unused = sorted(
                (os.fstat(users.fileno()).st_mtime, home)
                for home in self.homes()
                if home.name != keep and (users := locks.enter_context(_alone(home / "users")))
            )
            evictable = [
                (home / f"{digest}.tar", size)
                for _, home in unused
                for digest, size in _complete(home).items()
            ]
            if sum(size for _, size in evictable) < lack:
                return False
            for path, size in evictable:
                path.unlink(missing_ok=True)
                lack -= size
                if lack <= 0:
                    break
            for _, home in unused:
                if not _complete(home):
                    _remove_folder(home)
            return True

    # ------------------------------------------------------------------ for `lenstrain cache`

    def held(self) -> list[dict[str, Any]]:
        """The datasets in the cache, as in `lenstrain.data.cache.upkeep.status`."""
        with self.locked():
            found = [_held(home) for home in self.homes()]
        return sorted(found, key=lambda one: -one["last_used"])

    def clear(self, dataset_ids: Container[str]) -> tuple[int, list[str]]:
        """Remove datasets; those that a running process uses are kept.

        Returns
        -------
        tuple
            Bytes of shards removed, and the ids of datasets that were kept.
        """
        removed, kept = 0, []
        with self.locked(), _disk_errors(self.root):
            for home in self.homes():
                if home.name in dataset_ids:
                    with _alone(home / "users") as users:
                        if users is None:
                            kept.append(home.name)
                        else:
                            removed += sum(_contents(home)[0].values())
                            _remove_folder(home)
        return removed, kept

    def shard_files(self) -> list[tuple[str, str, Path, int]]:
        """Dataset id, name, path and size of every complete shard."""
        found = []
        for home in self.homes():
            names = {digest: name for name, digest, _ in _described(home).get("shards", ())}
            for digest, size in _complete(home).items():
                name = names.get(digest, digest)
                found.append((home.name, name, home / f"{digest}.tar", size))
        return found


class CachedDataset:
    """A dataset's shards in a cache, in use by this process; made by `CacheFolder.use`."""

    def __init__(self, folder: CacheFolder, home: Path, users: BinaryIO) -> None:
        self.folder, self._home, self._users = folder, home, users

    def file(self, shard: ShardInfo) -> Path:
        """Path that a complete copy of a shard has."""
        return self._home / f"{shard.sha256}.tar"

    def _claim_file(self, shard: ShardInfo) -> Path:
        return self._home / f"{shard.sha256}.claim"

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
        """Whether some process is fetching a shard."""
        path = self._claim_file(shard)
        with self.folder.locked():
            return path.exists() and not _abandoned(path)

    def claim(self, shard: ShardInfo) -> ExitStack | Refusal:
        """Room for a shard, to be fetched by the holder of the claim alone.

        Returns
        -------
        ExitStack or str
            The claim, which ends with its block or with the process; or ``"there"`` already,
            ``"taken"`` by a process that is fetching it, or ``"full"``.
        """
        path = self._claim_file(shard)
        with self.folder.locked(), _disk_errors(path), ExitStack() as claim:
            # In this order: a shard gets its name before its claim goes.
            if path.exists() and not _abandoned(path):
                return "taken"
            if self.size(shard) is not None:
                return "there"
            if not self.folder.make_room(shard.bytes, self._home.name):
                return "full"
            file = claim.enter_context(_alone(path))
            assert file is not None  # nobody makes claims without the lock of the folder
            claim.callback(path.unlink, missing_ok=True)
            file.write(str(shard.bytes).encode())
            file.flush()
            return claim.pop_all()

    def close(self) -> None:
        """Say that this process no longer uses the dataset."""
        if not self._users.closed:
            with suppress(OSError):
                os.utime(self._users.fileno())
            self._users.close()


@contextmanager
def download_slot(folder: CacheFolder) -> Iterator[bool]:
    """One of the few downloads that a node makes at once; False if all are under way."""
    with ExitStack() as stack:
        with _disk_errors(folder.root):
            locks = (folder.root / f"download-{number}.lock" for number in range(DOWNLOADS))
            free = any(stack.enter_context(_alone(path)) for path in locks)
        yield free


def is_disk_full(error: BaseException) -> bool:
    """Whether the cause of an error is a full disk, quota or file-size limit."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL_DISK


# ----------------------------------------------------------------------------------- locks


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO | None]:
    """Hold a lock for the block, if nobody else does: the open file, else None."""
    with path.open("a+b") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield file if held else None


def _abandoned(path: Path) -> bool:
    """Whether nobody holds a claim; if so, it goes, with what was fetched (`locked`)."""
    with _alone(path) as held:
        if held:
            for left in _partials(path.parent, path.stem):
                left.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        return held is not None


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


def _complete(home: Path) -> dict[str, int]:
    """Bytes of each complete shard by digest."""
    found = {}
    with suppress(FileNotFoundError):
        for entry in os.scandir(home):
            if entry.name.endswith(".tar"):
                with suppress(FileNotFoundError):
                    found[entry.name.removesuffix(".tar")] = entry.stat().st_size
    return dict(sorted(found.items()))


def _contents(home: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of complete shards and of claims by digest; abandoned claims go (`locked`)."""
    claims = {}
    for path in sorted(home.glob("*.claim")):
        if not _abandoned(path):
            with suppress(FileNotFoundError):
                claims[path.stem] = int(path.read_text() or 0)
    for left in home.glob(f".*{PARTIAL_SUFFIX}"):
        if left.name.split(".")[1] not in claims:  # its claim is gone: nobody writes it
            left.unlink(missing_ok=True)
    return _complete(home), claims


def _partials(home: Path, digest: str) -> list[Path]:
    return list(home.glob(f".{digest}.tar.*{PARTIAL_SUFFIX}"))


def _written(home: Path, digest: str) -> int:
    """Bytes of a shard on its way that take room on the disk already."""
    written = 0
    for path in _partials(home, digest):
        with suppress(FileNotFoundError):
            written += path.stat().st_blocks * 512
    return written


def _remove_folder(home: Path) -> None:
    """Remove a dataset's folder, but for what others are fetching into it (`locked`)."""
    for path in list(home.iterdir()):
        if path.suffix != ".claim" and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        home.rmdir()


def _description(dataset: Dataset) -> bytes:
    shards = [
        [shard.name, shard.sha256, shard.bytes]
        for split in dataset.manifest.splits.values()
        for shard in split.shards
    ]
    content = {"uri": dataset.uri, "dataset_id": dataset.dataset_id, "shards": shards}
    return json.dumps(content, indent=1).encode()


def _described(home: Path) -> dict[str, Any]:
    """What `_description` wrote; empty if it is lost."""
    try:
        found = parse_json((home / "dataset.json").read_bytes())
        shards = [(str(name), str(digest), bytes_) for name, digest, bytes_ in found["shards"]]
        return {"uri": str(found["uri"]), "shards": shards}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _held(home: Path) -> dict[str, Any]:
    shards, claims = _contents(home)
    described = _described(home)
    with _alone(home / "users") as users:
        in_use = users is None
    return {
        "dataset_id": home.name,
        "uri": described.get("uri", "?"),
        "shards": len(shards),
        "of": len(described["shards"]) if "shards" in described else None,
        "bytes": sum(shards.values()),
        "coming": len(claims.keys() - shards.keys()),
        "in_use": in_use,
        "last_used": (home / "users").stat().st_mtime,
    }
