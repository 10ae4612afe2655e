"""One cutout of somebody else: its middle pixels, or what was found instead of them."""

import bz2
import gzip
import io
import os
import re
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lensprep.decode import cutoutbytes
from lensprep.decode.cutoutfile import read_cutout, read_position
from lensprep.source.cutouts import Refusal

SIDE = 71
NAMES = ("image_g", "image_r", "image_z")
NOISE = np.random.default_rng(4).normal(0, 0.01, (3, SIDE, SIDE)).astype(np.float32)
MIDDLE = NOISE[:, 3:67, 3:67]


def header(bands="grz", scale=0.262, frame=("RA---TAN", "DEC--TAN"), at=(150.0, 2.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = [(SIDE + 1) / 2] * 2
    wcs.wcs.crval = at
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    wcs.wcs.ctype = frame
    found = wcs.to_header()
    found["BANDS"] = bands
    return found


def fits_bytes(*hdus, **options):
    sink = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(sink, **options)
    return sink.getvalue()


def npz_bytes(save=np.savez_compressed, **arrays):
    sink = io.BytesIO()
    save(sink, **arrays)
    return sink.getvalue()


def cube(pixels=NOISE, **words):
    return fits.PrimaryHDU(pixels, header(**words))


def tiles(pixels=NOISE, kind="GZIP_2", **options):
    return fits.CompImageHDU(pixels, header(), compression_type=kind, quantize_level=0, **options)


def by_band(make):
    return [make(band, name=name) for band, name in zip(NOISE, NAMES, strict=True)]


CUBE = fits_bytes(cube(), checksum=True)
PACKED = gzip.compress(fits_bytes(cube()))
BANDS_OF_NPZ = npz_bytes(**dict(zip(NAMES, NOISE, strict=True)))


@pytest.fixture
def read(tmp_path):
    """Pixels or refusal of some bytes under some name."""

    def read_bytes(content, name="cutout"):
        path, out = tmp_path / name, np.full((3, 64, 64), np.nan, np.float32)
        path.write_bytes(content)
        return read_cutout(path, out) or out

    return read_bytes


@pytest.mark.parametrize(
    "content",
    {
        "cube": CUBE,
        "gzip": PACKED,
        "bzip2": bz2.compress(fits_bytes(cube())),
        "bands": fits_bytes(fits.PrimaryHDU(), *by_band(fits.ImageHDU)),
        "tiles": fits_bytes(fits.PrimaryHDU(), tiles(), checksum=True),
        "tiles of rice, bands": fits_bytes(
            fits.PrimaryHDU(), *by_band(lambda band, name: tiles(band, "GZIP_1", name=name))
        ),
        "npz, bands": BANDS_OF_NPZ,
        "npz, bands last": npz_bytes(np.savez, cutout=np.moveaxis(NOISE, 0, 2)),
        "npz, double": npz_bytes(cutout=NOISE.astype(">f8")),
    }.items(),
    ids=lambda item: item[0],
)
def test_the_content_says_what_a_file_is_and_its_middle_is_read(read, content):
    for name in ("x.fits", "x.NPZ"):
        np.testing.assert_array_equal(read(content[1], name), MIDDLE)


def test_integers_of_fits_are_scaled_as_its_header_says(read):
    whole = fits.PrimaryHDU(np.rint(NOISE * 1e5).astype(np.float32), header())
    whole.scale("int16", bzero=7)
    np.testing.assert_array_equal(read(fits_bytes(whole)), np.rint(MIDDLE * 1e5))


@pytest.mark.parametrize(
    "text", ["grz", "GRZ", "g,r,z", "g r z", "grz ", "['g', 'r', 'z']", "(G; R; Z)"]
)
def test_the_bands_of_a_cube_are_read_however_they_are_written(read, text):
    np.testing.assert_array_equal(read(fits_bytes(cube(bands=text))), MIDDLE)
    turned = fits_bytes(cube(NOISE[::-1], bands=text.translate(str.maketrans("gzGZ", "zgZG"))))
    np.testing.assert_array_equal(read(turned), MIDDLE)


def test_bands_that_are_not_asked_for_are_left_out(read):
    four = np.stack([NOISE[0], NOISE[1], np.zeros_like(NOISE[0]), NOISE[2]])
    np.testing.assert_array_equal(read(fits_bytes(cube(four, bands="griz"))), MIDDLE)


def test_only_the_images_that_are_used_must_have_the_pixel_scale(read):
    thumbnail = fits.ImageHDU(NOISE[0], header(scale=1.0), "preview")
    np.testing.assert_array_equal(read(fits_bytes(cube(), thumbnail)), MIDDLE)
    assert read(fits_bytes(cube(scale=0.05))) == Refusal(
        "wrong_pixel_scale", "0.05 x 0.05 arcsec per pixel, not 0.262"
    )


# ------------------------------------------------------------------------- what is refused


def with_member(name, content, **entry):
    """An NPZ that has one more member."""
    sink = io.BytesIO(BANDS_OF_NPZ)
    with zipfile.ZipFile(sink, "a") as archive:
        archive.writestr(name, content, **entry)
    return sink.getvalue()


def npy_that_claims(shape):
    claim = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(claim).to_bytes(2, "little") + claim


def replaced(content, old, new):
    assert content.count(old) == 1, old
    return content.replace(old, new)


def card(key, value):
    return f"{key:8}= {value:>20}".encode()


HUGE = card("NAXIS1", 10**6)
REFUSED = {
    "a page": (
        b"<!DOCTYPE html>", "wrong_format", "neither FITS, NPZ, NPY nor HDF5: begins with b'<!DOC"
    ),
    "nothing": (b"", "empty_file", "no bytes"),
    "gzip cut": (PACKED[:-9], "truncated", "EOFError: Compressed file ended before"),
    "gzip altered": (
        PACKED[:5000] + b"\xff\xff" + PACKED[5002:], "crc_mismatch", "(zlib.error|.*CRC check)"
    ),
    "checksum": (
        replaced(CUBE, b"'grz     '", b"'zrg     '"),
        "crc_mismatch",
        "HDU 0: CHECKSUM or DATASUM does not agree",
    ),
    "pixels": (CUBE[:9000] + b"?" + CUBE[9001:], "crc_mismatch", "HDU 0: CHECKSUM or DATASUM"),
    "fits cut": (fits_bytes(cube())[:20000], "truncated", "cut: 60492 bytes of pixels"),
    "many pixels": (
        replaced(fits_bytes(cube()), card("NAXIS1", SIDE), HUGE), "truncated", "cut: 852000000 b"
    ),
    "many axes": (
        replaced(fits_bytes(cube()), card("NAXIS", 3), card("NAXIS", 2**31)),
        "unreadable",
        "NAXIS = 2147483648",
    ),
    "a negative side": (
        fits_bytes(fits.PrimaryHDU(), *by_band(fits.ImageHDU)).replace(
            card("NAXIS2", SIDE), card("NAXIS2", -20), 1
        ),
        "unreadable",
        "HDU 1: its data have a negative size",
    ),
    "distortion": (
        replaced(fits_bytes(cube()), card("LATPOLE", 2.0), card("A_ORDER", 10**6)),
        "unreadable",
        "A_ORDER is 1000000",
    ),
    "unsound tiles": (
        fits_bytes(fits.PrimaryHDU(), tiles(kind="HCOMPRESS_1", tile_shape=(1, SIDE, SIDE))),
        "unreadable",
        "HCOMPRESS_1 tiles, .* unpack the file with funpack",
    ),
    "crc": (
        replaced(npz_bytes(np.savez, cutout=NOISE), NOISE[0, 9].tobytes(), NOISE[0, 8].tobytes()),
        "crc_mismatch",
        "zipfile.BadZipFile: Bad CRC-32",
    ),
    "crc behind the array": (
        replaced(npz_bytes(np.savez, cutout=NOISE), b"(3, 71, 71)", b"(3, 71, 70)"),
        "crc_mismatch",
        "zipfile.BadZipFile: Bad CRC-32",
    ),
    "pickle": (
        npz_bytes(cutout=np.array([{}], object)), "object_array", "cutout is a pickled object array"
    ),
    "npz that claims": (
        with_member("cutout.npy", npy_that_claims((10**4, 10**4, 10**4))),
        "truncated",
        "cutout has 0 bytes of pixels, its header states 4000000000000",
    ),
    "twice": (with_member("image_g", b""), "duplicate_member", "it holds image_g more than once"),
    "packed otherwise": (
        with_member("cutout.npy", b"x", compress_type=zipfile.ZIP_BZIP2),
        "unreadable",
        "cutout is neither stored nor deflated",
    ),
    "extension twice": (
        fits_bytes(fits.PrimaryHDU(), *by_band(fits.ImageHDU), *by_band(fits.ImageHDU)),
        "duplicate_member",
        "it holds g more than once",
    ),
    "bands that differ": (
        fits_bytes(cube(bands="gri")), "missing_band", "the cube is 3 x 71 x 71, its bands 'gri'"
    ),
    "extension cut": (
        fits_bytes(fits.PrimaryHDU(), *by_band(fits.ImageHDU))[:50000],
        "missing_band",
        "no cube, and images: IMAGE_G 71 x 71, IMAGE_R 71 x 71; cut",
    ),
    "extension lost": (
        fits_bytes(fits.PrimaryHDU(), *by_band(fits.ImageHDU)).replace(
            card("NAXIS2", SIDE), card("NAXIS2", -32), 1
        ),
        "missing_band",
        "no cube, and images: none; then 77760 bytes that are no HDU",
    ),
    "a band lacks": (npz_bytes(image_g=NOISE[0]), "missing_band", "holds image_g"),
    "small": (npz_bytes(cutout=NOISE[:, 9:]), "wrong_shape", "a band is 62 x 71"),
    "whole numbers": (npz_bytes(cutout=NOISE.astype("i2")), "wrong_dtype", "band g holds int16"),
    "infinite": (
        npz_bytes(cutout=np.where(np.isin(NOISE, NOISE[1, 30, 30]), np.inf, NOISE)),
        "nonfinite",
        ".*0 in g, 1 in r, 0 in z",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_has_a_reason_and_what_was_found(read, name):
    content, reason, detail = REFUSED[name]
    found = read(content)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert re.match(detail, found.detail), found.detail


def test_a_file_that_is_none_to_read_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.fits")
    (tmp_path / "folder.fits").mkdir()
    (tmp_path / "link.fits").symlink_to(tmp_path / "gone.fits")
    out = np.empty((3, 64, 64), np.float32)
    found = {
        name: read_cutout(tmp_path / f"{name}.fits", out) for name in ("pipe", "folder", "link")
    }
    assert found["pipe"] == found["folder"] == Refusal("unreadable", "not a regular file")
    assert found["link"].detail.startswith("FileNotFoundError")


def test_a_bomb_is_refused_before_it_takes_the_memory(read, monkeypatch):
    monkeypatch.setattr(cutoutbytes, "MOST_BYTES", 2**22)
    pressed = zlib.compressobj(wbits=31)
    bomb = pressed.compress(CUBE + bytes(2**24)) + pressed.flush()
    claims = npz_bytes(cutout=np.zeros((3, 2**10, 2**10), np.float32))
    tracemalloc.start()
    try:
        assert read(bomb) == Refusal("oversized", "holds more than 4.2 MB")
        assert read(claims) == Refusal("oversized", "cutout claims 12.6 MB")
        assert tracemalloc.get_traced_memory()[1] < 2**23 + 2**22
    finally:
        tracemalloc.stop()


def test_words_of_a_refusal_are_one_line_that_a_table_and_a_terminal_can_hold(read):
    found = read(npz_bytes(**{"image_\x1b[31m\n": NOISE[0], "é" * 400: NOISE[0]}))
    assert found.detail.startswith(r"holds image_\x1b[31m")
    assert "é" in found.detail
    assert found.detail.isprintable()
    assert len(found.detail) < 220


# ------------------------------------------------------------------------------- positions


@pytest.fixture
def place(tmp_path):
    def place_of(content):
        path = tmp_path / "cutout"
        path.write_bytes(content)
        return read_position(path)

    return place_of


def test_the_middle_of_a_cutout_is_where_its_header_says(place):
    for content in (CUBE, PACKED, fits_bytes(fits.PrimaryHDU(), tiles())):
        np.testing.assert_allclose(place(content), (150, 2), rtol=0, atol=1e-9)
    assert place(npz_bytes(cutout=NOISE, ra=-10, dec=2)) == (350, 2)
    assert place(npz_bytes(cutout=NOISE, meta_ra=10, meta_dec=2)) == (10, 2)


def test_a_position_in_another_frame_is_turned_into_ours(place):
    galactic = fits_bytes(cube(frame=("GLON-TAN", "GLAT-TAN"), at=(0.0, 0.0)))
    np.testing.assert_allclose(place(galactic), (266.40499, -28.93617), rtol=0, atol=1e-4)
    swapped = fits_bytes(cube(frame=("DEC--TAN", "RA---TAN"), at=(2.0, 150.0)))
    np.testing.assert_allclose(place(swapped), (150, 2), rtol=0, atol=1e-9)


def test_no_position_and_a_position_that_cannot_be_read_are_told_apart(place):
    assert place(fits_bytes(fits.PrimaryHDU(NOISE))) is None
    assert place(npz_bytes(cutout=NOISE, ra=np.nan, dec=2)) is None
    assert place(PACKED[:-9]).reason == "truncated"
    assert place(npz_bytes(ra=10, dec=95)) == Refusal(
        "unreadable", "states a position that is not on the sky: ra 10, dec 95"
    )
    assert place(npz_bytes(ra=np.arange(2), dec=2)).reason == "unreadable"
