"""Wheel and sdist of a commit: from an export of it, complete, and the same bytes each time."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.release.shell import Failed, Shell
from tests.release.state import git


def build(root: Path, out: Path, log: Path) -> list[Path]:
    """Build the commit that is checked out, twice, and write its packages and their digests.

    Parameters
    ----------
    root, out, log : Path
        The checkout; an existing folder for wheel, sdist and `SHA256SUMS`; the log of the builds.

    Returns
    -------
    list of Path
        The wheel and the sdist.

    Raises
    ------
    Failed
        If a build fails, the two differ, or a package lacks a file or has one too many.
    """
    packages, again = _packages(root, log), _packages(root, log)
    if packages != again:
        raise Failed("Two builds of the commit differ: the release could not be built again.")
    paths = [out / name for name in packages]
    for path in paths:
        path.write_bytes(packages[path.name])
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (out / "SHA256SUMS").write_text(sums)
    return paths


def _packages(root: Path, log: Path) -> dict[str, bytes]:
    """The bytes of wheel and sdist, in this order, by name, from a fresh export."""
    epoch = git(root, "log", "-1", "--format=%ct")
    with tempfile.TemporaryDirectory(prefix="lensprep-build-") as name:
        folder = Path(name)
        git(root, "archive", "HEAD", "--output", str(folder / "export.tar"))
        with tarfile.open(folder / "export.tar") as tar:
            tar.extractall(folder / "export", filter="data")
        files = exported_files(folder / "export")
        words = [sys.executable, "-m", "build", "--outdir", "out", "export"]
        pins = ["--dependency-constraints-txt", "export/constraints.txt"]
        Shell(folder, log).run(*words, *pins, SOURCE_DATE_EPOCH=epoch)
        (wheel,), (sdist,) = folder.glob("out/*.whl"), folder.glob("out/*.tar.gz")
        if faults := incomplete(files, wheel, sdist):
            raise Failed(" ".join(faults))
        return {wheel.name: wheel.read_bytes(), sdist.name: repacked(sdist, int(epoch))}


def exported_files(export: Path) -> set[str]:
    """Relative paths of all files of an export, through links, without those that are hidden."""
    found = {
        Path(folder, name).relative_to(export).as_posix()
        for folder, _, names in os.walk(export, followlinks=True)
        for name in names
    }
    # lenstrain's link leads to all configurations, but surveys are packaged in lensprep alone.
    return {path for path in found if not path.startswith((".", "lenstrain/configs/surveys/"))}


def incomplete(files: set[str], wheel: Path, sdist: Path) -> list[str]:
    """What the packages lack of the files of an export, and what a wheel has beyond them."""
    packaged = {path for path in files if path.startswith(("lensprep/", "lenstrain/"))}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {path for path in archive.namelist() if ".dist-info/" not in path}
    with tarfile.open(sdist) as tar:
        in_sdist = {path.partition("/")[2] for path in tar.getnames()}
    differences = {
        f"{wheel.name} lacks": packaged - in_wheel,
        f"{wheel.name} should not have": in_wheel - packaged,
        f"{sdist.name} lacks": files - in_sdist,
    }
    return [f"{what} {', '.join(sorted(paths))}." for what, paths in differences.items() if paths]


def repacked(sdist: Path, epoch: int) -> bytes:
    """An sdist with one time and owner for all files: setuptools writes those of the build."""
    out = io.BytesIO()
    with (
        tarfile.open(sdist) as built,
        gzip.GzipFile("", "wb", fileobj=out, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in sorted(built, key=lambda member: member.name):
            content = built.extractfile(member) if member.isfile() else None
            member.mtime, member.pax_headers = epoch, {}
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            tar.addfile(member, content)
    return out.getvalue()
