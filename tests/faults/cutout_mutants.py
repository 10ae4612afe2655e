"""Damaged cutout files by number, and what the reader makes of them.

mutant(number) -> Mutant                             the same for the same number, in every process
python -m tests.faults.cutout_mutants FIRST COUNT FOLDER    read them; tallies in found.json

A process of its own, with a limit on its memory: what decompresses tiles is compiled code, which
may end the process, and a header may claim any number of pixels.
"""

import bz2
import faulthandler
import gzip
import io
import json
import random
import resource
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lensprep.convert.tasks import peak_rss_bytes
from lensprep.decode.cutoutfile import read_cutout, read_position
from tests.faults.mutants import DAMAGES as ZIP_DAMAGES

MEMORY = 2**30
"""Address space that may be added to that of a process which has read every kind once: of what is
read in vain nothing is kept, and the largest undamaged file has 160 kB."""

MOST_SECONDS = 60
"""Of one file, on a machine that does other things too; it takes a hundredth of a second."""

SIDE = 70
_NUMBERS = ["0", "-1", "1", "2", "3", "64", "999", "65536", "2147483647", "-2147483648",
            "4294967296", "1000000000000", "9" * 60, "1E400", "-1E-400", "NaN", "T", "'grz'", "''",
            "(1, 2)", "", "'RA---TPV'", "'1J'", "'0PB(0)'", "'1QB(999999999999)'", "'RICE_1'",
            "'HCOMPRESS_1'", "'PLIO_1'", "'GZIP_2'", "8", "16", "-32", "-64", "1.5",
            "'\xff'"]  # fmt: skip
_KEYS = ["NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "BITPIX", "PCOUNT", "GCOUNT", "BSCALE", "BZERO",
         "BLANK", "GROUPS", "EXTEND", "TFIELDS", "TFORM1", "TFORM2", "TTYPE1", "THEAP", "ZIMAGE",
         "ZBITPIX", "ZNAXIS", "ZNAXIS1", "ZNAXIS3", "ZTILE1", "ZTILE2", "ZTILE3", "ZCMPTYPE",
         "ZNAME1", "ZVAL1", "ZVAL2", "ZQUANTIZ", "ZDITHER0", "ZBLANK", "ZSCALE", "ZZERO", "CRVAL1",
         "CRVAL2", "CRPIX1", "CTYPE1", "CTYPE2", "CDELT1", "CUNIT1", "CD1_1", "WCSAXES", "LONPOLE",
         "LATPOLE", "EQUINOX", "RADESYS", "WCSAXESA", "CRPIX999", "A_ORDER", "B_ORDER",
         "AP_ORDER", "CPDIS1", "D2IMDIS1", "PV1_1", "PV2_99", "PS1_0", "BANDS", "EXTNAME",
         "XTENSION", "SIMPLE", "END", "CONTINUE", "CHECKSUM", "DATASUM", "LONGSTRN", "COMMENT",
         "HIERARCH x"]  # fmt: skip


class Seed(NamedTuple):
    """An undamaged file."""

    content: bytes
    checked: bool
    """Whether checksums cover all of its pixels."""


class Mutant(NamedTuple):
    """A file with some damage."""

    kind: str
    content: bytes
    checked: bool
    """Whether checksums still cover the pixels: they may not be read in another way."""


def header():
    """A Legacy Survey cutout's: where it lies, and its bands."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = [(SIDE + 1) / 2] * 2
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cdelt = [-0.262 / 3600, 0.262 / 3600]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    found = wcs.to_header()
    found["BANDS"] = "grz"
    return found


def fits_bytes(hdus, **options):
    """A FITS file."""
    sink = io.BytesIO()
    fits.HDUList(hdus).writeto(sink, **options)
    return sink.getvalue()


def npz_bytes(save, **arrays):
    """An NPZ file."""
    sink = io.BytesIO()
    save(sink, **arrays)
    return sink.getvalue()


def hdf5_bytes(datasets, **options):
    """An HDF5 file."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data, **options)
    return sink.getvalue()


@cache
def seeds():
    """A file of every kind by name; every kilobyte has something in it that damage can meet."""
    rng = np.random.default_rng(5)
    cube = np.tile(rng.normal(0, 0.01, (3, 7, 7)), (1, 10, 10)).astype(np.float32)
    names = [f"image_{band}" for band in "grz"]
    head = header()

    def tiles(kind, data=cube, **options):
        level = {} if kind == "RICE_1" else {"quantize_level": 0}
        return fits.CompImageHDU(data, head, compression_type=kind, **(level | options))

    plain = [fits.PrimaryHDU(cube, head)]
    split = [
        fits.PrimaryHDU(),
        *(fits.ImageHDU(b, head, n) for b, n in zip(cube, names, strict=True)),
    ]
    scaled = fits.PrimaryHDU(cube, head)
    scaled.scale("int16", bscale=1e-5, bzero=0)
    packed = {
        "rice": [fits.PrimaryHDU(), tiles("RICE_1")],
        "gzip1": [fits.PrimaryHDU(), tiles("GZIP_1")],
        "gzip2 bands": [fits.PrimaryHDU(), *(tiles("GZIP_2", b, name=n)
                                            for b, n in zip(cube, names, strict=True))],
        "rice bands": [fits.PrimaryHDU(), *(tiles("RICE_1", b, name=n)
                                           for b, n in zip(cube, names, strict=True))],
    }  # fmt: skip
    files = {
        "cube.fits": Seed(fits_bytes(plain), False),
        "cube+sum.fits": Seed(fits_bytes(plain, checksum=True), True),
        "scaled.fits": Seed(fits_bytes([scaled]), False),
        "bands.fits": Seed(fits_bytes(split), False),
        "bands+sum.fits": Seed(fits_bytes(split, checksum=True), True),
        "cube.fits.gz": Seed(gzip.compress(fits_bytes(plain)), True),
        "bands.fits.gz": Seed(gzip.compress(fits_bytes(split), 1), True),
        "cube.fits.bz2": Seed(bz2.compress(fits_bytes(plain)), True),
        "cube.npz": Seed(npz_bytes(np.savez, cutout=np.moveaxis(cube, 0, 2), ra=150, dec=2), True),
        "cube deflated.npz": Seed(npz_bytes(np.savez_compressed, cutout=cube), True),
        "bands.npz": Seed(
            npz_bytes(np.savez_compressed, **dict(zip(names, cube, strict=True))), True
        ),
    }
    for name, hdus in packed.items():
        files[f"{name}.fits.fz"] = Seed(fits_bytes(hdus), False)
        files[f"{name}+sum.fits.fz"] = Seed(fits_bytes(hdus, checksum=True), True)
    sums = {"fletcher32": True, "chunks": (1, SIDE, SIDE)}
    files |= {
        "cube.npy": Seed(npz_bytes(lambda sink, cube: np.save(sink, cube), cube=cube), False),
        "cube.h5": Seed(hdf5_bytes({"cutout": cube}), False),
        "cube gzip.h5": Seed(hdf5_bytes({"images": cube}, compression="gzip"), False),
        "bands+sum.h5": Seed(
            hdf5_bytes(dict(zip(names, cube[:, None], strict=True)), **sums), False
        ),
    }
    return files


def mutant(number):
    """One file with some damage; of packed ones every other is damaged before it is packed."""
    rng = random.Random(number)
    kind = rng.choice(sorted(seeds()))
    seed = seeds()[kind]
    unpack, pack = next(
        (ways for end, ways in _PACKED.items() if kind.endswith(end)), (bytes, bytes)
    )
    inside = pack is not bytes and rng.random() < 0.5
    content = bytearray(unpack(seed.content) if inside else seed.content)
    damages = _BYTES
    if kind.endswith(".npz"):
        damages = (*_BYTES, *ZIP_DAMAGES)
    elif inside or pack is bytes:
        damages = (*_BYTES, *(3 * _CARDS))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if content:
            rng.choice(damages)(rng, content)
    checked = seed.checked and not inside
    if checked and b"CHECKSUM" in seed.content:
        # Damage may have taken the sums away, or hidden them from who reads cards.
        checked = sums(content) == sums(seed.content)
    return Mutant(kind, pack(content) if inside else bytes(content), checked)


def sums(content):
    """Cards of checksums, and of where headers begin and end, with their order."""
    cards = (content[at : at + 30] for at in range(0, len(content), 80))
    return [c for c in cards if c[:8].rstrip() in (b"CHECKSUM", b"DATASUM", b"XTENSION", b"END")]


def _gzip(content):
    return gzip.compress(content, 1)


_PACKED = {".gz": (gzip.decompress, _gzip), ".bz2": (bz2.decompress, bz2.compress)}


def _flip(rng, content):
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)


def _set(rng, content):
    content[rng.randrange(len(content))] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF))


def _cut(rng, content):
    del content[rng.randrange(len(content)) :]


def _remove(rng, content):
    at = rng.randrange(len(content))
    del content[at : at + rng.choice((1, 4, 80, 2880))]


def _splice(rng, content):
    """A stretch of another file, or of this one, over what was there or between it."""
    other = rng.choice((bytes(content), rng.choice(list(seeds().values())).content))
    at, start = rng.randrange(len(content)), rng.randrange(len(other))
    piece = other[start : start + rng.choice((1, 4, 80, 2880, len(other)))]
    content[at : at + rng.choice((0, len(piece)))] = piece


def _card_places(content):
    """Where the cards of all headers begin: whatever looks like one."""
    return [at for at in range(0, len(content) - 79, 80) if content[at + 8 : at + 10] == b"= "]


def _card(key, value):
    return f"{key:8.8}= {value:>20}".ljust(80)[:80].encode("latin-1")


def _edit_card(rng, content):
    """Another value for one of the cards that mean something."""
    places = _card_places(content)
    wanted = [at for at in places if content[at : at + 8].decode("latin-1").strip() in _KEYS]
    if wanted:
        at = rng.choice(wanted)
        key = content[at : at + 8].decode("latin-1")
        content[at : at + 80] = _card(key, rng.choice(_NUMBERS))


def _add_card(rng, content):
    """A card over another, or before it; then all behind is moved by 80 bytes, or by a block."""
    places = _card_places(content)
    if places:
        at = rng.choice(places)
        card = _card(rng.choice(_KEYS), rng.choice(_NUMBERS))
        content[at : at + rng.choice((80, 80, 0))] = card + rng.choice((b"", b"", b" " * 2800))


def _copy_card(rng, content):
    places = _card_places(content)
    if places:
        at, other = rng.choice(places), rng.choice(places)
        content[at : at + 80] = content[other : other + 80]


_BYTES = (_flip, _flip, _flip, _set, _cut, _remove, _splice, _splice)
_CARDS = (_edit_card, _edit_card, _add_card, _copy_card)


def read(folder, found, out):
    """What both readers say of a mutant: reasons, "" for pixels."""
    suffix = found.kind[found.kind.index(".") :]
    path = folder / f"cutout{suffix}"
    path.write_bytes(found.content)
    begun = time.perf_counter()
    refusal = read_cutout(path, out)
    place = read_position(path)
    return refusal, place, time.perf_counter() - begun


def main(first, count, folder):
    """Read mutants; the first that is read in another way than its checksums allow ends it."""
    out, truth = np.empty((2, 3, 64, 64), np.float32)
    originals = {}
    for kind, seed in seeds().items():
        refusal = read(folder, Mutant(kind, seed.content, True), truth)[0]
        assert refusal is None, f"{kind}: {refusal}"
        originals[kind] = truth.copy()
    limit_memory()
    reasons, details, checked, slowest = Counter(), Counter(), 0, 0.0
    for number in range(first, first + count):
        print(number, flush=True)
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        found = mutant(number)
        refusal, _, seconds = read(folder, found, out)
        slowest = max(slowest, seconds)
        reasons[refusal.reason if refusal else ""] += 1
        if refusal is None and found.checked:
            same = out.tobytes() == originals[found.kind].tobytes()
            assert same, f"mutant({number}), {found.kind}: other pixels, and no checksum minded"
            checked += 1
        elif refusal and refusal.reason == "unreadable":
            details[refusal.detail.split(":")[0]] += 1
    peak = peak_rss_bytes()  # not `ru_maxrss`: a new process begins with that of its parent
    told = {"reasons": reasons, "details": details, "checked": checked}
    told |= {"slowest": slowest, "peak": peak}
    (folder / "found.json").write_text(json.dumps(told))


def limit_memory():
    """Let the process have no more than it has, and `MEMORY`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
