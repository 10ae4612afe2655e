"""Which cutout of a folder belongs to which row of a catalogue."""

import os
from pathlib import Path

import numpy as np
import pytest

from lensprep.decode.cutoutfile import read_position
from lensprep.errors import InputError
from lensprep.source.cutouts import open_cutouts, split_name
from tests.lensprep.decode.test_cutoutfile import NOISE, npz_bytes

STAMP = NOISE[:, :64, :64]


def put(path, ra=10.0, dec=-5.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(npz_bytes(np.savez, cutout=STAMP, ra=ra, dec=dec))
    return path


@pytest.fixture
def folder(tmp_path):
    """A cutout, another in a subfolder, and a third behind a link that leads outside."""
    root = tmp_path / "fits"
    put(root / "a.npz", 10.0)
    put(root / "sub" / "B.NPZ", 10.1)
    put(tmp_path / "elsewhere" / "c.npz", 10.2)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    return root


def opened(folder, *rows, head="file,ra,dec", **options):
    catalog = folder.parent / "catalog.csv"
    catalog.write_text("\n".join([head, *rows]) + "\n")
    return open_cutouts(folder, catalog, read_position, **options)


def files(found):
    return found.table["file"].to_pylist()


def test_folders_that_are_links_are_searched_and_loops_end(folder):
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "elsewhere again").symlink_to(folder.parent / "elsewhere")
    (folder / ".hidden").mkdir()
    put(folder / ".hidden" / "a.npz")
    keys = opened(folder, "a,1,2", "B,1,2", "c,1,2", head="key,ra,dec")
    assert files(keys) == ["a.npz", "sub/B.NPZ", "elsewhere again/c.npz"]
    assert keys.unused == 0
    # A table may name a file by any of the links that lead to it.
    assert files(opened(folder, "linked/c.npz,1,2", "sub/up/a.npz,1,2")) == [
        "linked/c.npz",
        "sub/up/a.npz",
    ]
    assert opened(folder, "linked/c.npz,1,2", "sub/up/a.npz,1,2").unused == 1


def test_a_file_may_be_named_with_the_place_of_its_folder(folder, monkeypatch):
    other = folder.parent / "other name"
    other.symlink_to(folder)
    for root in (folder, other):
        for start in (folder, root, f"file://{root}"):
            assert files(opened(root, f"{start}/sub/B.NPZ,1,2")) == ["sub/B.NPZ"]
    monkeypatch.chdir(folder.parent)
    assert files(opened(Path("fits"), f"{folder}/a.npz,1,2", "./sub/B.NPZ,1,2")) == [
        "a.npz",
        "sub/B.NPZ",
    ]


@pytest.mark.parametrize("called", ["s3://bucket/fits", "s3a://bucket/fits/"])
@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_the_copy_of_a_folder_in_a_store_goes_by_the_name_of_the_store(folder, called, scheme):
    found = opened(folder, f"{scheme}://bucket/fits/sub/B.NPZ,1,2", called=called)
    assert files(found) == ["sub/B.NPZ"]
    with pytest.raises(InputError, match="lies outside s3://bucket/fits"):
        opened(folder, "s3://bucket/other/a.npz,1,2", called=called)
    with pytest.raises(InputError, match=r"No row of .* has a cutout in s3://bucket/fits"):
        opened(folder, "x.npz,1,2", called=called)


@pytest.mark.parametrize(
    "file",
    ["../elsewhere/c.npz", "sub/../../elsewhere/c.npz", "/etc/a.npz", "{}/../elsewhere/c.npz",
     "{}x/a.npz", "s3://bucket/fits/a.npz"],
)  # fmt: skip
def test_a_name_never_leaves_the_folder(folder, file):
    with pytest.raises(InputError, match=r"lies outside .*Give the folder above all cutouts"):
        opened(folder, f"{file.format(folder)},1,2")


def test_one_name_for_several_files_is_an_error_that_names_them(folder):
    put(folder / "sub" / "a.npz")
    message = r"a\.npz and sub/a\.npz may be meant by key a\. Say which in a column file"
    with pytest.raises(InputError, match=message):
        opened(folder, "a,1,2", head="key,ra,dec")
    assert files(opened(folder, "B,1,2", head="key,ra,dec")) == ["sub/B.NPZ"]
    named = opened(folder, "a.npz,1,2,x", "sub/a.npz,1,2,y", head="file,ra,dec,key")
    assert files(named) == ["a.npz", "sub/a.npz"]


def test_names_of_one_file_are_no_choice(folder):
    (folder / "sub" / "a.npz").symlink_to(folder / "a.npz")
    assert files(opened(folder, "a,1,2", head="key,ra,dec")) == ["a.npz"]
    assert files(opened(folder, "10,-5", head="ra,dec")) == ["a.npz"]


def test_two_files_of_one_position_are_an_error_that_names_them(folder):
    put(folder / "copy.npz", 10.0)
    with pytest.raises(
        InputError, match=r"a\.npz and copy\.npz may be meant by row 2 of the catalogue"
    ):
        opened(folder, "10.1,-5", "10,-5", head="ra,dec")
    put(folder / "copy.npz", 10.0 + 1 / 3600)  # a neighbour: the nearest is meant
    assert files(opened(folder, "10,-5", head="ra,dec")) == ["a.npz"]


def test_a_row_without_a_file_says_what_was_looked_for(folder):
    def why(*rows, head):
        return opened(folder, *rows, head=head).table["no_cutout"].to_pylist()

    assert why("a.npz,1,2", "x.npz,1,2", ",1,2", head="file,ra,dec") == [
        None,
        "there is no cutout x.npz",
        "the row names no file",
    ]
    assert why("a,1,2", "x,1,2", head="key,ra,dec")[1] == "no file is called x.fits, x.npz, ..."
    assert why("10,-5", "10,-5.001", head="ra,dec") == [
        None,
        "the nearest, a.npz, is 3.6 arcsec away",
    ]


def test_damaged_files_without_position_are_told_and_end_nothing(folder):
    content = (folder / "sub" / "B.NPZ").read_bytes()
    (folder / "sub" / "B.NPZ").write_bytes(content[:-100])
    put(folder / "odd.npz", 10, 95)
    found = opened(folder, "10,-5", "10.1,-5", head="ra,dec")
    assert files(found) == ["a.npz", None]
    assert (
        found.table["no_cutout"][1]
        .as_py()
        .endswith(
            "2 files state no readable position (first: 'odd.npz', states a position that is not "
            "on the sky: ra 10, dec 95)"
        )
    )
    for name in ("a.npz", "linked/c.npz"):
        (folder / name).write_bytes(b"<html>")
    message = r"No cutout .* states its position; 4 files state no readable .* 'a.npz', neither"
    with pytest.raises(InputError, match=message):
        opened(folder, "10,-5", head="ra,dec")


def test_a_name_that_no_table_can_hold_ends_nothing(folder):
    os.rename(os.fsencode(folder / "a.npz"), os.fsencode(folder) + b"/\xff.npz")
    found = opened(folder, "10.1,-5", "10,-5", head="ra,dec")
    assert files(found) == ["sub/B.NPZ", None]
    assert found.table["no_cutout"][1].as_py().endswith(r"(first: '\udcff.npz', name not UTF-8)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(folder):
    (folder / "sub").chmod(0)
    try:
        with pytest.raises(InputError, match="sub cannot be listed: Permission denied"):
            opened(folder, "a.npz,1,2")
    finally:
        (folder / "sub").chmod(0o755)


# ----------------------------------------------------- one file a band, many stamps in a file


@pytest.fixture
def by_band(tmp_path):
    """Cutouts of one file a band, and stacks."""
    for name in ("x_g.npy", "x_r.npy", "x_z.npy", "g/y.fits", "r/y.fits", "z/y.fits", "q_r.npy",
                 "stack.h5", "other.npy", "one.fits"):  # fmt: skip
        path = tmp_path / "fits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")
    return tmp_path / "fits"


@pytest.mark.parametrize(
    ("name", "names", "stamp"),
    [
        ("a.fits", ("a.fits",), None),
        ("{band}/a_{band}.fits", ("g/a_g.fits", "r/a_r.fits", "z/a_z.fits"), None),
        ("a_{band}.fits[3]", ("a_g.fits", "a_r.fits", "a_z.fits"), 3),
        ("d/{p,q/r,s}.npy", ("d/p.npy", "d/q/r.npy", "d/s.npy"), None),
        ("{p,q}.npy", ("{p,q}.npy",), None),
        ("a[1].fits", ("a[1].fits",), None),
    ],
)
def test_a_name_stands_for_one_file_or_one_a_band(name, names, stamp):
    assert split_name(name, "grz") == (names, stamp)


def test_one_file_a_band_is_named_by_a_pattern(by_band):
    found = opened(
        by_band, "x_{band}.npy,1,2", f"{by_band}/{{band}}/y.fits,1,2", "q_{band}.npy,1,2"
    )
    assert files(found) == ["x_{band}.npy", "{band}/y.fits", None]
    assert found.table["no_cutout"].to_pylist() == [None, None, "there is no cutout q_g.npy"]
    assert found.table["key"].to_pylist() == ["x", "y", "row-3"]
    assert found.unused == 4
    for file in ("../x_{band}.npy", "{x_g.npy,../../x_r.npy,x_z.npy}"):
        with pytest.raises(InputError, match="lies outside"):
            opened(by_band, f'"{file}",1,2')


def test_one_file_a_band_is_named_by_a_column_each(by_band):
    head = "file_g,file_r,path_z,ra,dec"
    rows = "x_g.npy,x_r.npy,x_z.npy,1,2", "g/y.fits,q_r.npy,x_z.npy,1,2", "x_g.npy,,x_z.npy,1,2"
    found = opened(by_band, *rows, head=head, columns={"file_z": "path_z"})
    assert files(found) == ["x_{band}.npy", "{g/y.fits,q_r.npy,x_z.npy}", None]
    assert not {"file_g", "file_r", "path_z"} & {*found.table.column_names}
    with pytest.raises(InputError, match="has a file for some bands, and no column file_z"):
        opened(by_band, *rows, head=head)


def test_one_file_a_band_is_found_by_its_key(by_band):
    found = opened(by_band, "x,1,2", "q,1,2", "one,1,2", head="key,ra,dec")
    assert files(found) == ["x_{band}.npy", None, "one.fits"]


def test_a_stamp_of_a_stack_is_named_by_its_index(by_band):
    head = "file,index,ra,dec"
    rows = "stack.h5,0,1,2", "stack.h5,7,1,2", "stack.h5,,1,2", "one.fits,3,1,2", "other.npy,4,1,2"
    found = opened(by_band, *rows, head=head)
    # of files with a row each, the number may be that of a data frame
    assert files(found) == ["stack.h5[0]", "stack.h5[7]", None, "one.fits", "other.npy"]
    assert found.table["no_cutout"][2].as_py() == "the row has no index"
    assert found.table["key"].to_pylist() == ["stack-0", "stack-7", "row-3", "one", "other"]
    said = opened(by_band, "other.npy,4,1,2", head="file,n,ra,dec", columns={"index": "n"})
    assert files(said) == ["other.npy[4]"]
    for bad in ("-1", "1.5", "a"):
        with pytest.raises(InputError, match=r"index .* does not count stamps from 0"):
            opened(by_band, "stack.h5,0,1,2", f"stack.h5,{bad},1,2", head=head)
