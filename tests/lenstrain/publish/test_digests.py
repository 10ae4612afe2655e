import subprocess

import pytest

from lensprep.errors import StorageError
from lenstrain.publish.digests import SUMS, check_sums, files_of, write_sums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "inner" / "b ü.bin").write_bytes(bytes(range(256)))
    (tmp_path / "inner" / "empty").touch()
    write_sums(tmp_path)
    return tmp_path


def test_the_sums_are_those_of_sha256sum(folder):
    assert check_sums(folder) == 3
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_one_altered_byte_is_found_wherever_it_is(folder):
    for name in files_of(folder):
        path = folder / name
        content = path.read_bytes()
        for position in range(len(content)):
            altered = bytearray(content)
            altered[position] ^= 1
            path.write_bytes(altered)
            with pytest.raises(StorageError, match=r"altered|missing|not listed|readable"):
                check_sums(folder)
        path.write_bytes(content)
    assert check_sums(folder) == 3


def test_files_that_are_lost_added_or_cut_are_named(folder):
    (folder / "a.txt").rename(folder / "c.txt")
    (folder / "inner" / "b ü.bin").write_bytes(b"")
    with pytest.raises(StorageError) as error:
        check_sums(folder)
    message = str(error.value)
    assert "missing: a.txt" in message
    assert "not listed in SHA256SUMS: c.txt" in message
    assert "altered: inner/b ü.bin" in message
    assert "\n" not in message


def test_the_list_itself_may_not_be_written_otherwise(folder):
    text = (folder / SUMS).read_text()
    for other in (text.upper(), text + "\n", text.replace("\n", "\r\n"), text + text, ""):
        (folder / SUMS).write_bytes(other.encode())
        with pytest.raises(StorageError):
            check_sums(folder)


def test_links_are_not_published(folder):
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="link"):
        check_sums(folder)
