"""Packages hold all that they should, and the same content is the same bytes."""

import io
import os
import tarfile
import zipfile

import pytest

from tests.release.packages import exported_files, incomplete, repacked

FILES = ("lensprep/__init__.py", "lensprep/surveys/hsc.toml", "tests/test_a.py", "LICENSE")
IN_WHEEL = (*FILES[:2], "lensprep-1.2.0.dist-info/METADATA")
IN_SDIST = (*FILES, "PKG-INFO")


@pytest.fixture
def export(tmp_path):
    """An export in which the surveys are reached by a link, and lenstrain's link shows them too."""
    root = tmp_path / "export"
    for name in (*FILES[::2], "LICENSE", "configs/surveys/hsc.toml", ".ci/run"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "lensprep" / "surveys").symlink_to("../configs/surveys")
    (root / "lenstrain").mkdir()
    (root / "lenstrain" / "configs").symlink_to("../configs")
    return root


def pack_wheel(path, names):
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    return path


def pack_sdist(path, names, mtime=1, umask=0o022, uid=0):
    """An sdist as different machines would write it; returns its path."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"lensprep-1.2.0/{name}")
            member.size, member.mtime, member.uid = len(name), mtime, uid
            member.mode = (0o777 if name.endswith(".sh") else 0o666) & ~umask
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def test_files_of_an_export_are_found_through_links_but_for_hidden_ones(export):
    assert exported_files(export) == {*FILES, "configs/surveys/hsc.toml"}


@pytest.mark.parametrize("name", [None, *FILES])
def test_a_file_that_a_package_lacks_is_named(tmp_path, name):
    wheel = pack_wheel(tmp_path / "a.whl", {*IN_WHEEL} - {name})
    sdist = pack_sdist(tmp_path / "a.tar.gz", {*IN_SDIST} - {name})
    lacking = [f"a.whl lacks {name}."] if name in IN_WHEEL else []
    lacking += [f"a.tar.gz lacks {name}."] if name in IN_SDIST else []
    assert incomplete({*FILES}, wheel, sdist) == lacking


def test_a_file_that_a_wheel_should_not_have_is_named(tmp_path):
    wheel = pack_wheel(tmp_path / "a.whl", [*IN_WHEEL, "tests/test_a.py"])
    sdist = pack_sdist(tmp_path / "a.tar.gz", IN_SDIST)
    assert incomplete({*FILES}, wheel, sdist) == ["a.whl should not have tests/test_a.py."]


def test_an_sdist_is_the_same_bytes_whenever_and_by_whomever_it_was_packed(tmp_path):
    names = [*FILES, "run.sh", f"tests/{'long/' * 40}name"]
    here = pack_sdist(tmp_path / "1.tar.gz", names, mtime=1.5)
    there = pack_sdist(tmp_path / "2.tar.gz", names[::-1], mtime=2e9, umask=0o002, uid=1000)
    assert repacked(here, 1000) == repacked(there, 1000) != repacked(here, 1001)
    assert int.from_bytes(repacked(here, 1000)[4:8], "little") == 1000  # of gzip itself
    other = pack_sdist(tmp_path / "3.tar.gz", [*names, "more"])
    assert repacked(other, 1000) != repacked(here, 1000)


def test_a_repacked_sdist_has_the_content_and_the_programs_of_the_first(tmp_path):
    names = [*FILES, "run.sh", f"tests/{'long/' * 40}name"]
    first = pack_sdist(tmp_path / "1.tar.gz", names)
    second = tmp_path / "2.tar.gz"
    second.write_bytes(repacked(first, 1000))
    with tarfile.open(second) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "lensprep-1.2.0"
    assert all((folder / name).read_text() == name for name in names)
    assert [name for name in names if os.access(folder / name, os.X_OK)] == ["run.sh"]
    assert (folder / "LICENSE").stat().st_mtime == 1000
