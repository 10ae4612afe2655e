"""Cutouts of three surveys in every format: the same pixels, or the same reason for none."""

import gzip
import io
import pickle
import re
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.decode import cutoutbytes
from lensprep.decode.cutoutfile import read_cutout, read_cutout_bytes, read_position
from lensprep.source.cutouts import Refusal
from tests.lensprep.decode.test_cutoutfile import fits_bytes, npz_bytes


def survey(name, bands, side, scale, zero_point):
    return Geometry(
        survey=name, bands=bands, side=side, pixel_scale_arcsec=scale, reference_band=bands[0],
        zero_point=zero_point, sky_noise=(0.01,) * len(bands),
    )  # fmt: skip


HSC = survey("hsc", ("g", "r", "i", "z", "y"), 40, 0.168, 27.0)
VIS = survey("euclid_vis", ("vis",), 48, 0.1, 23.9)
SURVEYS = [DECALS, HSC, VIS]
UNIT = {"decals": "nanomaggy", "hsc": "adu", "euclid_vis": "uJy"}
NAMES = [geometry.survey for geometry in SURVEYS]


def pixels(geometry, seed=0):
    """A cutout of some pixels more than a stamp, of another number of rows than columns."""
    shape = len(geometry.bands), geometry.side + 6, geometry.side + 3
    return np.random.default_rng(seed).normal(0, 0.01, shape).astype(np.float32)


def middle(cutout):
    return cutout[:, 3:-3, 1:-2]


def header(geometry, **words):
    sky = WCS(naxis=2)
    sky.wcs.crpix, sky.wcs.crval = (1, 1), (150.0, 2.0)
    sky.wcs.cdelt = [-geometry.pixel_scale_arcsec / 3600, geometry.pixel_scale_arcsec / 3600]
    sky.wcs.ctype = ("RA---TAN", "DEC--TAN")
    found = sky.to_header()
    found["BUNIT"] = UNIT[geometry.survey]
    found.update(words)
    return found


def hdf5_bytes(fill, **datasets):
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for name, data in datasets.items():
            file[name] = data
        fill(file)
    return sink.getvalue()


def hdf5(**datasets):
    return hdf5_bytes(lambda file: None, **datasets)


def npy(array, save=np.save):
    sink = io.BytesIO()
    save(sink, array)
    return sink.getvalue()


def by_band(geometry, cutout, prefix="image_"):
    return {f"{prefix}{b}": plane for b, plane in zip(geometry.bands, cutout, strict=True)}


FORMATS = {
    "cube": lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g))),
    "cube in another order": lambda g, c: fits_bytes(
        fits.PrimaryHDU(c[::-1], header(g, BANDS=", ".join(reversed(g.bands)).upper()))
    ),
    "extensions": lambda g, c: fits_bytes(
        fits.PrimaryHDU(),
        *(fits.ImageHDU(p, header(g, FILTER=b), b) for b, p in zip(g.bands, c, strict=True)),
    ),
    "tiles": lambda g, c: fits_bytes(
        fits.PrimaryHDU(),
        fits.CompImageHDU(c, header(g), compression_type="GZIP_2", quantize_level=0),
    ),
    "gzip": lambda g, c: gzip.compress(fits_bytes(fits.PrimaryHDU(c, header(g)))),
    "npz, bands": lambda g, c: npz_bytes(**by_band(g, c)),
    "npz, bands last": lambda g, c: npz_bytes(cutout=np.moveaxis(c, 0, 2)),
    "npz in another order": lambda g, c: npz_bytes(cutout=c[::-1], bands=np.array(g.bands[::-1])),
    "npy": lambda g, c: npy(c),
    "npy, bands last, columns first": lambda g, c: npy(np.asfortranarray(np.moveaxis(c, 0, 2))),
    "npy in gzip": lambda g, c: gzip.compress(npy(c.astype(">f8"))),
    "hdf5, bands": lambda g, c: hdf5(**by_band(g, c, "")),
    "hdf5": lambda g, c: hdf5(cutout=c),
    "hdf5 in another order": lambda g, c: hdf5(images=c[::-1], bands=list(g.bands[::-1])),
    "hdf5 in chunks": lambda g, c: hdf5_bytes(
        lambda file: file.create_dataset("data", data=c, compression="gzip", fletcher32=True)
    ),
}


@pytest.mark.parametrize("geometry", SURVEYS, ids=NAMES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pixels(tmp_path, name, geometry):
    cutout, out = pixels(geometry), np.full(geometry.shape, np.nan, np.float32)
    content = FORMATS[name](geometry, cutout)
    assert read_cutout_bytes(content, out, geometry) is None
    np.testing.assert_array_equal(out, middle(cutout))
    (tmp_path / "x").write_bytes(content)
    out[:] = np.nan
    assert read_cutout(tmp_path / "x", out, geometry) is None
    np.testing.assert_array_equal(out, middle(cutout))


@pytest.mark.parametrize("geometry", SURVEYS, ids=NAMES)
def test_one_file_a_band_is_read_by_a_pattern_or_by_names(tmp_path, geometry):
    cutout, out = pixels(geometry), np.empty(geometry.shape, np.float32)
    names = [f"{number} x_{band}.fits" for number, band in enumerate(geometry.bands)]
    for name, band, plane in zip(names, geometry.bands, cutout, strict=True):
        hdu = fits.PrimaryHDU(plane, header(geometry, FILTER=f"Cam-{band.upper()}"))
        hdu.writeto(tmp_path / name)
        (tmp_path / f"x_{band}.fits").write_bytes((tmp_path / name).read_bytes())
    listed = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
    for each in ("x_{band}.fits", listed):
        out[:] = np.nan
        assert read_cutout(tmp_path / each, out, geometry) is None
        np.testing.assert_array_equal(out, middle(cutout))


def test_the_file_of_another_band_is_not_taken_for_its_own(tmp_path):
    cutout, out = pixels(HSC), np.empty(HSC.shape, np.float32)
    for band, states, plane in zip(HSC.bands, "griyz", cutout, strict=True):
        fits.PrimaryHDU(plane, header(HSC, FILTER=f"HSC-{states}")).writeto(
            tmp_path / f"{band}.fit"
        )
    found = read_cutout(tmp_path / "{band}.fit", out, HSC)
    assert found == Refusal("missing_band", "band z: FILTER is HSC-y, not band z")
    (tmp_path / "r.fit").unlink()
    assert read_cutout(tmp_path / "{band}.fit", out, HSC).detail.startswith("FileNotFoundError")


@pytest.mark.parametrize("geometry", SURVEYS, ids=NAMES)
@pytest.mark.parametrize("kind", ["h5", "npy", "npz", "h5 by band"])
def test_a_stamp_of_a_stack_is_read_by_its_number(tmp_path, geometry, kind):
    stack = np.stack([pixels(geometry, seed) for seed in range(4)])
    content = {
        "h5": lambda: hdf5(images=np.moveaxis(stack, 1, 3)),
        "npy": lambda: npy(stack if len(geometry.bands) > 1 else stack[:, 0]),
        "npz": lambda: npz_bytes(cutout=stack),
        "h5 by band": lambda: hdf5(**by_band(geometry, np.moveaxis(stack, 0, 1))),
    }[kind]()
    (tmp_path / "stack").write_bytes(content)
    out = np.empty(geometry.shape, np.float32)
    for number in (0, 3):
        assert read_cutout(tmp_path / f"stack[{number}]", out, geometry) is None
        np.testing.assert_array_equal(out, middle(stack[number]))
        assert read_cutout_bytes(content, out, geometry, number) is None
    assert read_cutout(tmp_path / "stack[4]", out, geometry).detail.startswith("no stamp 4 in 4 x")
    found = read_cutout(tmp_path / "stack", out, geometry)
    assert found.reason == "wrong_shape"
    assert "is a stack: say which stamp in a column index" in found.detail


def test_the_image_of_a_single_band_is_found_among_others():
    plane, out = pixels(VIS)[0], np.empty(VIS.shape, np.float32)
    science = fits.ImageHDU(plane, header(VIS), "SCI")
    noise = fits.ImageHDU(plane + 1, header(VIS), "RMS")
    for hdus in ([fits.PrimaryHDU(plane, header(VIS))], [fits.PrimaryHDU(), noise, science]):
        assert read_cutout_bytes(fits_bytes(*hdus), out, VIS) is None
        np.testing.assert_array_equal(out[0], middle(plane[None])[0])
    found = read_cutout_bytes(fits_bytes(fits.PrimaryHDU(plane), noise), out, VIS)
    assert found.reason == "missing_band"


# ------------------------------------------------------------------------- what is refused


def linked(make):
    """An HDF5 file of other files."""
    return hdf5_bytes(lambda file: make(file))


def external(file):
    file["cutout"] = h5py.ExternalLink("/etc/hostname", "/cutout")


def soft(file):
    file["far"] = h5py.ExternalLink("other.h5", "/")
    file["cutout"] = h5py.SoftLink("/far/cutout")


def raw(file):
    file.create_dataset("cutout", (3, 64, 64), "f4", external=[("/etc/hostname", 0, 49152)])


def virtual(file):
    layout = h5py.VirtualLayout((3, 64, 64), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "cutout", (3, 64, 64))
    file.create_virtual_dataset("cutout", layout)


def unwritten(file):
    file.create_dataset("cutout", (10**4, 10**4, 10**4), "f4", chunks=(1, 64, 64))


def wide(file):
    shape = 1, 2**11, 2**11
    file.create_dataset("cutout", shape, "f4", chunks=shape, compression="gzip")
    file["cutout"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(2**24)))


def other_pixels(c):
    """An HDF5 whose checksum does not fit the pixels."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        stored = file.create_dataset("cutout", data=c, chunks=c.shape, fletcher32=True)
        at = stored.id.get_chunk_info(0).byte_offset
    content = bytearray(sink.getvalue())
    content[at + 9000] ^= 1
    return bytes(content)


def scaled_int(g, c, **words):
    hdu = fits.PrimaryHDU(np.full(c.shape, 7, np.int16), header(g))
    hdu.header.update(words)
    return fits_bytes(hdu)


def with_nan(c):
    c = c.copy()
    c[0, 20, 20] = np.nan
    return c


def pickled(array):
    return npy(array, lambda sink, data: pickle.dump(data, sink))


BAD = {
    "another scale": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, CDELT1=1e-4, CDELT2=1e-4))),
        "wrong_pixel_scale", r"0\.36 x 0\.36 arcsec per pixel, not",
    ),
    "another unit": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, BUNIT="nJy"))),
        "wrong_unit", "BUNIT nJy: one unit of flux is magnitude 31.4, not",
    ),
    "another zero point": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, MAGZERO=30.0))),
        "wrong_unit", "MAGZERO: one unit of flux is magnitude 30, not",
    ),
    "another flux of magnitude 0": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, FLUXMAG0=1e8))),
        "wrong_unit", "FLUXMAG0: one unit of flux is magnitude 20, not",
    ),
    "surface brightness": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, BUNIT="MJy/sr"))),
        "wrong_unit", "BUNIT is MJy/sr, not flux per pixel",
    ),
    "other bands": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g, BANDS="u" * len(c)))),
        "missing_band", "the cube is .*, its bands 'u",
    ),
    "a band too few": (
        lambda g, c: npy(np.concatenate([c, c])[: len(c) + 1]), "missing_band|wrong_shape", ".* x ",
    ),
    "small": (lambda g, c: npy(c[:, 8:]), "wrong_shape", "a band is "),
    "a line of pixels": (lambda g, c: npy(c.ravel()), "wrong_shape", "the cube is [0-9]+$"),
    "NaN": (lambda g, c: hdf5(cutout=with_nan(c)), "nonfinite", ".*: 1 in "),
    "whole numbers": (lambda g, c: npy(c.astype("u2")), "wrong_dtype", "band .* holds uint16"),
    "whole numbers in FITS": (scaled_int, "wrong_dtype", "band .* holds int16"),
    "masked in FITS": (
        lambda g, c: scaled_int(g, c, BSCALE=0.1, BLANK=7), "nonfinite", "pixels that are not"
    ),
    "objects in NPY": (lambda g, c: npy(np.array([{}, c], object)), "object_array", ".*never load"),
    "objects in NPZ": (
        lambda g, c: npz_bytes(cutout=np.array([{}], object)), "object_array", "cutout is a pickl"
    ),
    "a pickle": (lambda g, c: pickled(c), "wrong_format", "neither FITS, NPZ, NPY nor HDF5: b"),
    "a page": (lambda g, c: b"<html>404</html>", "wrong_format", "neither FITS"),
    "XML": (lambda g, c: b"<?xml version='1.0'?><Error/>", "wrong_format", "neither FITS"),
    "a page in gzip": (lambda g, c: gzip.compress(b"<html>"), "wrong_format", "neither FITS"),
    "nothing": (lambda g, c: b"", "empty_file", "no bytes"),
    "nothing in gzip": (lambda g, c: gzip.compress(b""), "empty_file", "no bytes"),
    "FITS cut": (
        lambda g, c: fits_bytes(fits.PrimaryHDU(c, header(g)))[:6000], "truncated", "cut: "
    ),
    "gzip cut": (lambda g, c: gzip.compress(npy(c))[:-20], "truncated", "EOFError"),
    "gzip with another CRC": (
        lambda g, c: gzip.compress(npy(c))[:-8] + bytes(8), "crc_mismatch", "gzip.BadGzipFile: CRC"
    ),
    "NPY cut": (lambda g, c: npy(c)[:-4], "truncated", "it has .* its header states"),
    "NPY and more": (lambda g, c: npy(c) + b"1", "unreadable", "it has .* its header states"),
    "NPZ cut": (lambda g, c: npz_bytes(cutout=c)[:-40], "unreadable", "zipfile.BadZipFile"),
    "HDF5 cut": (lambda g, c: hdf5(cutout=c)[:-99], "unreadable", "OSError: .*truncated"),
    "HDF5 with another checksum": (
        lambda g, c: other_pixels(c), "unreadable", "OSError: Can't synchronously read data"
    ),
    "HDF5 without the dataset": (
        lambda g, c: hdf5(spectrum=c), "missing_band", "holds spectrum; known are image_"
    ),
    "a group": (
        lambda g, c: hdf5_bytes(lambda f: f.create_group("cutout")), "missing_band", "cutout is a"
    ),
    "an external link": (lambda g, c: linked(external), "link_to_file", "cutout is a link"),
    "a soft link": (lambda g, c: linked(soft), "link_to_file", "cutout is a link"),
    "raw pixels elsewhere": (lambda g, c: linked(raw), "link_to_file", "the pixels of cutout lie"),
    "virtual pixels": (lambda g, c: linked(virtual), "link_to_file", "the pixels of cutout lie"),
    "unwritten pixels": (lambda g, c: linked(unwritten), "truncated", "nothing was written"),
    "a chunk that unpacks": (lambda g, c: linked(wide), "oversized", "cutout has chunks of 16"),
    "text in HDF5": (lambda g, c: hdf5(cutout=["a", "b"]), "wrong_dtype", "the pixels are object"),
    "a bomb": (
        lambda g, c: gzip.compress(bytes(2**23), 1), "oversized", "holds more than 4.2 MB"
    ),
}  # fmt: skip


@pytest.mark.parametrize("geometry", SURVEYS, ids=NAMES)
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_has_a_reason_and_one_line(tmp_path, monkeypatch, name, geometry):
    monkeypatch.setattr(cutoutbytes, "MOST_BYTES", 2**22)
    make, reason, detail = BAD[name]
    path = tmp_path / "x.fits"
    path.write_bytes(make(geometry, pixels(geometry)))
    found = read_cutout(path, np.empty(geometry.shape, np.float32), geometry)
    assert isinstance(found, Refusal)
    assert re.fullmatch(reason, found.reason), found
    assert re.match(detail, found.detail), found.detail
    assert found.detail.isprintable()


def test_a_unit_that_means_the_survey_s_is_no_other_unit():
    out = np.empty(DECALS.shape, np.float32)
    for words in (
        {"BUNIT": "nanomaggies"}, {"BUNIT": "nmgy/pix"}, {"BUNIT": "ADU"}, {"BUNIT": ""},
        {"MAGZERO": 22.5}, {"MAGZERO": 0.0}, {"MAGZERO": "none"}, {"FLUXMAG0": 1e9}, {"ZP": 22.52},
    ):  # fmt: skip
        hdu = fits.PrimaryHDU(pixels(DECALS), header(DECALS, **words))
        assert read_cutout_bytes(fits_bytes(hdu), out) is None, words


def test_positions_are_read_from_hdf5_too(tmp_path):
    (tmp_path / "a").write_bytes(hdf5(cutout=pixels(HSC), ra=10.0, dec=-5.0))
    (tmp_path / "b").write_bytes(hdf5_bytes(lambda f: f.attrs.update(ra=-10.0, dec=-5.0)))
    (tmp_path / "c").write_bytes(npy(pixels(HSC)))
    assert [read_position(tmp_path / name) for name in "abc"] == [(10, -5), (350, -5), None]


def test_a_missing_h5py_is_named_with_its_extra(tmp_path):
    (tmp_path / "x.h5").write_bytes(hdf5(cutout=pixels(DECALS)))
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "import numpy as np; from pathlib import Path\n"
        "from lensprep.decode.cutoutfile import read_cutout\n"
        "from lensprep.extras import install_hint\n"
        "try: read_cutout(Path(sys.argv[1]), np.empty((3, 64, 64), np.float32))\n"
        "except ModuleNotFoundError as error: print(install_hint(error.name))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.h5")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("h5py is not installed; the extra `hdf5` brings it.")
