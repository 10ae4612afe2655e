"""Blobs of every kind that upstream may hand over.

GOOD[name]() -> (blob, pixels)      must decode to exactly these float32 pixels
BAD[name]() -> (blob, reason)       must be refused for exactly this reason
npz(members, ...) -> bytes          an archive member by member, with zipfile's options
by_numpy(blob, kind)                what np.load makes of a blob
strictness(blob, reason, kind)      whether a documented strictness explains that it is refused
"""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from functools import partial
from typing import NamedTuple

import numpy as np

from lensprep.decode.reasons import RejectReason
from lensprep.decode.zipwalk import MAX_HEADER_CHARS, most_member_bytes


class Kind(NamedTuple):
    """Bands and side of stamps."""

    bands: tuple[str, ...]
    side: int

    @property
    def shape(self):
        return len(self.bands), self.side, self.side

    @property
    def names(self):
        return tuple(f"image_{band}" for band in self.bands)

    @property
    def most_bytes(self):
        return most_member_bytes(len(self.bands), self.side)


DECALS = Kind(("g", "r", "z"), 64)
ALIKE = Kind(("g", "g1", "Yjhk2345"), 32)
"""The smallest stamps, whose names begin alike or are as long as they may be."""
KINDS = (DECALS, ALIKE)
SURVEYS = (Kind(("vis",), 101), Kind(tuple("ugrizy"), 48), Kind(tuple("grizy"), 256))

NAMES = DECALS.names
MOST_BYTES = DECALS.most_bytes


def noise(seed=0, dtype=np.float32, shape=DECALS.shape):
    """Sky-like pixels, nanomaggies."""
    return np.random.default_rng(seed).normal(0.0, 0.01, shape).astype(dtype)


def npy(array, version=None):
    """One array as a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def npy_with_header(text, data, version=(1, 0)):
    """A .npy file with this header, padded by nothing but its newline."""
    raw = text.encode("utf-8" if version == (3, 0) else "latin1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(raw))
    return b"\x93NUMPY" + bytes(version) + length + raw + data


def bands(pixels, version=None, names=NAMES):
    """Members of an archive: name -> .npy file."""
    return {f"{name}.npy": npy(p, version) for name, p in zip(names, pixels, strict=True)}


def npz(members, method=zipfile.ZIP_DEFLATED, *, streamed=False, zip64=False, comment=b""):
    """An archive of these members, a dict or a list of pairs.

    Streamed archives have their sizes in data descriptors behind the data, zip64 ones in the extra
    field of the local header.
    """
    target = _Unseekable() if streamed else io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", method) as archive:
        warnings.simplefilter("ignore")  # "Duplicate name": that is what is wanted
        archive.comment = comment
        for name, data in members.items() if isinstance(members, dict) else members:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as member:
                member._zinfo.compress_type = method
                member._compressor = zipfile._get_compressor(method)
                member.write(data)
    return target.getvalue()


class _Unseekable(io.BytesIO):
    """A pipe: zipfile then writes data descriptors."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation


def saved(pixels, compressed=True, names=NAMES):
    """What NumPy itself writes."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, **dict(zip(names, pixels, strict=True)))
    return buffer.getvalue()


PLAIN = saved(noise())
"""A blob as most are, for surgery."""

SMALL = saved(np.zeros((3, 64, 64), np.float32))
"""The shortest blob that is a stamp."""


# -- surgery on the bytes of an archive ----------------------------------------------------------


def central(blob, index=0):
    """Offset of an entry of the central directory."""
    at = blob.find(b"PK\x01\x02")
    for _ in range(index):
        at = blob.find(b"PK\x01\x02", at + 1)
    return at


def patched(blob, at, data):
    """The blob with some bytes replaced."""
    return blob[:at] + data + blob[at + len(data) :]


def with_sizes(blob, index, size):
    """The blob with another claim of an uncompressed size."""
    return patched(blob, central(blob, index) + 24, struct.pack("<I", size))


def as_zip64(blob):
    """The same archive with a Zip64 end record, and all values of the directory in Zip64 extras."""
    end = blob.rfind(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<10xHII", blob, end)
    entries, at = b"", start
    for _ in range(count):
        head = bytearray(blob[at : at + 46])
        compressed, full = struct.unpack_from("<II", head, 20)
        n_name = struct.unpack_from("<H", head, 28)[0]
        offset = struct.unpack_from("<I", head, 42)[0]
        extra = struct.pack("<HHQQQ", 1, 24, full, compressed, offset)
        struct.pack_into("<II", head, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", head, 30, len(extra))
        struct.pack_into("<I", head, 42, 0xFFFFFFFF)
        entries += bytes(head) + blob[at + 46 : at + 46 + n_name] + extra
        at += 46 + n_name + struct.unpack_from("<H", blob, at + 30)[0]
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count,
                         len(entries), start)  # fmt: skip
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(entries), 1)
    final = struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
    )
    return blob[:start] + entries + record + locator + final


def with_zip64(blob, index, *numbers, header=0xFFFFFFFF):
    """The blob with a Zip64 extra field in an entry of its directory that had none.

    The numbers stand there for the fields that are full; of them the offset of the local header is
    made so.
    """
    at, end = central(blob, index), blob.rfind(b"PK\x05\x06")
    extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    name_end = at + 46 + struct.unpack_from("<H", blob, at + 28)[0]
    size = struct.unpack_from("<I", blob, end + 12)[0] + len(extra)
    blob = patched(blob, end + 12, struct.pack("<I", size))
    blob = patched(blob, at + 30, struct.pack("<H", len(extra)))
    blob = patched(blob, at + 42, struct.pack("<I", header))
    return blob[:name_end] + extra + blob[name_end:]


def _zip64_offset(number):
    return with_zip64(SMALL, 2, number), RejectReason.BAD_ZIP


def _zip64_end(**numbers):
    """An archive with a Zip64 end record, and other numbers in that record or in its locator."""
    blob = as_zip64(PLAIN)
    places = {"length": 4, "size": 40, "offset": 48, "locator": 64}
    for name, number in numbers.items():
        at = blob.rfind(b"PK\x06\x06") + places[name]
        blob = patched(blob, at, struct.pack("<Q", number))
    return blob


def renamed(members, old, new, **options):
    """An archive in which a name, of the same length, is put in by hand: zipfile ends it at a NUL.

    In the local header and in the directory.
    """
    return npz(members, **options).replace(old, new)


def listed_twice():
    """Two entries of the directory for one and the same member."""
    first = PLAIN[central(PLAIN) + 42 :][:4]
    blob = patched(PLAIN, central(PLAIN, 1) + 42, first)
    return patched(blob, central(PLAIN, 1) + 46 + len("image_"), b"g")


def _field(index, offset, data):
    """`PLAIN` with other bytes in one entry of its directory."""
    return patched(PLAIN, central(PLAIN, index) + offset, data)


# -- good ------------------------------------------------------------------------------------------


def _good(members=None, dtype=np.float32, seed=1, version=None, **options):
    pixels = noise(seed, dtype)
    blob = npz(bands(pixels, version) if members is None else members(pixels), **options)
    return blob, pixels.astype(np.float32)


def _fortran():
    pixels = noise(2)
    columns = [np.asfortranarray(p) for p in pixels]
    return npz({f"{n}.npy": npy(p) for n, p in zip(NAMES, columns, strict=True)}), pixels


def _header(text, version=(1, 0)):
    def members(pixels):
        return {
            f"{n}.npy": npy_with_header(text, p.tobytes(), version)
            for n, p in zip(NAMES, pixels, strict=True)
        }

    return lambda: _good(members)


def _zip64_directory():
    blob, pixels = _good()
    return as_zip64(blob), pixels


GOOD = {
    "savez_compressed": lambda: (saved(noise(3)), noise(3)),
    "savez_stored": lambda: (saved(noise(4), compressed=False), noise(4)),
    "deflated": _good,
    "stored": lambda: _good(method=zipfile.ZIP_STORED),
    "streamed": lambda: _good(streamed=True),
    "streamed_stored": lambda: _good(streamed=True, method=zipfile.ZIP_STORED),
    "zip64_local": lambda: _good(zip64=True),
    "zip64_streamed": lambda: _good(zip64=True, streamed=True),
    "zip64_directory": _zip64_directory,
    "comment": lambda: _good(comment=b"upstream build 7, PK\x05 and so on"),
    "float64": lambda: _good(dtype=np.float64),
    "float16": lambda: _good(dtype=np.float16),
    "big_endian_float32": lambda: _good(dtype=">f4"),
    "big_endian_float64": lambda: _good(dtype=">f8"),
    "big_endian_float16": lambda: _good(dtype=">f2"),
    "fortran_order": _fortran,
    "npy_version_2": lambda: _good(version=(2, 0)),
    "npy_version_3": lambda: _good(version=(3, 0)),
    "old_padding": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (64, 64), }     \n"),
    "other_key_order": _header("{'shape': (64, 64), 'descr': 'float32', 'fortran_order': False}\n"),
    "long_header": _header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (64, 64), }" + " " * 9_000 + "\n"
    ),
    "no_suffix": lambda: _good(lambda p: {n[:-4]: d for n, d in bands(p).items()}),
    "extra_members": lambda: _good(
        lambda p: {"image_i.npy": b"?", **bands(p), "meta.json": b"{}", "é/": b"", "x.npy": b""}
    ),
    "reversed_members": lambda: _good(lambda p: dict(reversed(bands(p).items()))),
    "bytes_after_the_array": lambda: _good(lambda p: {n: d + b"junk" for n, d in bands(p).items()}),
    "bytes_after_the_archive": lambda: (saved(noise(5)) + b"junk", noise(5)),
    "subnormal": lambda: (saved(noise(6) * np.float32(1e-40)), noise(6) * np.float32(1e-40)),
    "incompressible": lambda: _good(seed=7),
    "zeros": lambda: (saved(np.zeros((3, 64, 64), np.float32)), np.zeros((3, 64, 64), np.float32)),
}
"""Name -> function that makes (blob, pixels)."""


# -- bad -------------------------------------------------------------------------------------------


def _changed_band(data, band="image_r.npy"):
    return npz({**bands(noise()), band: data})


def _nan(value, dtype=np.float32):
    pixels = noise(dtype=dtype)
    pixels[1, 63, 63] = value
    return saved(pixels)


def _flipped_stored_bit():
    blob = saved(noise(), compressed=False)
    return patched(blob, 5_000, bytes([blob[5_000] ^ 0x01]))


def _pickled():
    objects = np.empty((64, 64), object)
    return _changed_band(npy(objects))


def _typed(dtype):
    return _changed_band(npy(np.zeros((64, 64), dtype)))


def _shaped(*shape):
    return _changed_band(npy(np.zeros(shape, np.float32)))


def _header_lie(text):
    return _changed_band(npy_with_header(text, noise()[1].tobytes()))


_REPEAT = list(bands(noise()).items())
_BOTH_NAMES = npz([("image_z", npy(noise(9)[2])), *_REPEAT])

BAD = {
    "null": lambda: (None, RejectReason.NULL_BLOB),
    "empty": lambda: (b"", RejectReason.EMPTY_BLOB),
    "bare_npy": lambda: (npy(noise()), RejectReason.NOT_ZIP),
    "pickle": lambda: (pickle.dumps({"image_g": 1}), RejectReason.NOT_ZIP),
    "text": lambda: (b"cutout service: HTTP 503", RejectReason.NOT_ZIP),
    "one_byte": lambda: (b"P", RejectReason.NOT_ZIP),
    "gzip": lambda: (zlib.compress(PLAIN), RejectReason.NOT_ZIP),
    "empty_archive": lambda: (npz({}), RejectReason.NOT_ZIP),
    "bytes_before_the_archive": lambda: (b"junk" + PLAIN, RejectReason.NOT_ZIP),
    "signature_only": lambda: (b"PK\x03\x04", RejectReason.TRUNCATED),
    "half": lambda: (PLAIN[:20_000], RejectReason.TRUNCATED),
    "last_byte_missing": lambda: (PLAIN[:-1], RejectReason.TRUNCATED),
    "directory_missing": lambda: (b"PK\x03\x04" + PLAIN[-22:], RejectReason.BAD_ZIP),
    "directory_signature": lambda: (
        _field(1, 0, b"PK\x01\x00"), RejectReason.BAD_ZIP),
    "member_past_the_directory": lambda: (
        _field(2, 20, struct.pack("<I", 900_000)),
        RejectReason.BAD_ZIP),
    "header_past_the_end": lambda: (
        _field(1, 42, struct.pack("<I", 0x7FFFFFFF)),
        RejectReason.BAD_ZIP),
    **{
        f"zip64_offset_{number:x}": partial(_zip64_offset, number)
        for number in (2**63 - 1, 2**63 - 30, 2**63, 2**64 - 1, 2**32 - 1, len(SMALL) + 12)
    },
    "zip64_field_missing": lambda: (with_zip64(SMALL, 1), RejectReason.BAD_ZIP),
    "zip64_directory_offset_near_2_63": lambda: (
        _zip64_end(offset=2**63 - 1), RejectReason.BAD_ZIP),
    "zip64_directory_size_near_2_63": lambda: (_zip64_end(size=2**63 - 1), RejectReason.BAD_ZIP),
    "zip64_directory_wraps": lambda: (
        _zip64_end(offset=2**63 - 1, size=2**63 - 1, locator=2**64 - 2), RejectReason.BAD_ZIP),
    "zip64_locator_points_elsewhere": lambda: (_zip64_end(locator=7), RejectReason.BAD_ZIP),
    "zip64_end_is_longer": lambda: (_zip64_end(length=100), RejectReason.BAD_ZIP),
    "zip64_end_missing": lambda: (
        as_zip64(PLAIN).replace(b"PK\x06\x06", b"PK\x06\x05"), RejectReason.BAD_ZIP),
    "local_name_is_shorter": lambda: (
        patched(PLAIN, PLAIN.rfind(b"PK\x03\x04") + 26, b"\x07"), RejectReason.BAD_ZIP),
    "name_with_nul": lambda: (
        renamed({**dict(_REPEAT[:2]), "image_z?npy": _REPEAT[2][1]}, b"z?npy", b"z\0npy"),
        RejectReason.BAD_ZIP),
    "duplicate_that_is_encrypted": lambda: (
        patched(_BOTH_NAMES, central(_BOTH_NAMES) + 8, b"\x01"), RejectReason.DUPLICATE_MEMBER),
    "duplicate_of_one_that_is_encrypted": lambda: (
        patched(_BOTH_NAMES, central(_BOTH_NAMES, 3) + 8, b"\x01"), RejectReason.DUPLICATE_MEMBER),
    "duplicate_with_nul": lambda: (
        renamed([*_REPEAT, ("image_z?npy", npy(noise(9)[2]))], b"z?npy", b"z\0npy"),
        RejectReason.DUPLICATE_MEMBER),
    "duplicate_with_nul_after_suffix": lambda: (
        renamed([("image_z.npy?", npy(noise(9)[2])), *_REPEAT], b"npy?", b"npy\0"),
        RejectReason.DUPLICATE_MEMBER),
    "strong_encryption": lambda: (_field(0, 8, b"\x40\x00"), RejectReason.UNSUPPORTED_ZIP),
    "patch_data": lambda: (_field(0, 8, b"\x20\x00"), RejectReason.UNSUPPORTED_ZIP),
    "newer_zip": lambda: (_field(1, 6, b"\x40"), RejectReason.UNSUPPORTED_ZIP),
    "names_disagree": lambda: (
        patched(PLAIN, PLAIN.find(b"image_r"), b"image_x"), RejectReason.BAD_ZIP),
    "overlapping_members": lambda: (
        _field(1, 42, PLAIN[central(PLAIN) + 42 :][:4]), RejectReason.BAD_ZIP),
    "stored_sizes_disagree": lambda: (
        with_sizes(saved(noise(), compressed=False), 1, 16_000), RejectReason.BAD_ZIP),
    "directory_size_too_large": lambda: (
        patched(PLAIN, len(PLAIN) - 10, struct.pack("<I", 0x7FFFFFFF)),
        RejectReason.BAD_ZIP),
    "encrypted": lambda: (
        _field(1, 8, b"\x01\x00"),
        RejectReason.UNSUPPORTED_ZIP),
    "bzip2": lambda: (npz(bands(noise()), zipfile.ZIP_BZIP2), RejectReason.UNSUPPORTED_ZIP),
    "lzma": lambda: (npz(bands(noise()), zipfile.ZIP_LZMA), RejectReason.UNSUPPORTED_ZIP),
    "duplicate_member": lambda: (
        npz([("image_g.npy", _REPEAT[0][1]), *_REPEAT]), RejectReason.DUPLICATE_MEMBER),
    "duplicate_without_suffix": lambda: (
        npz([("image_g", _REPEAT[0][1]), *_REPEAT]), RejectReason.DUPLICATE_MEMBER),
    "same_member_twice_in_directory": lambda: (listed_twice(), RejectReason.DUPLICATE_MEMBER),
    "r_band_alone": lambda: (npz({"image_r.npy": npy(noise()[1])}), RejectReason.MISSING_BAND),
    "no_z_band": lambda: (npz(dict(_REPEAT[:2])), RejectReason.MISSING_BAND),
    "one_cube": lambda: (npz({"arr_0.npy": npy(noise())}), RejectReason.MISSING_BAND),
    "names_in_capitals": lambda: (
        npz({n.upper(): d for n, d in _REPEAT}), RejectReason.MISSING_BAND),
    "claims_4_gb": lambda: (with_sizes(PLAIN, 0, 0xFFFFFFFE), RejectReason.OVERSIZED),
    "claims_one_byte_too_many": lambda: (
        with_sizes(PLAIN, 0, MOST_BYTES + 1), RejectReason.OVERSIZED),
    "deflate_bomb": lambda: (_changed_band(bytes(50_000_000)), RejectReason.OVERSIZED),
    "deflate_bomb_that_lies": lambda: (
        with_sizes(_changed_band(bytes(50_000_000)), 1, 16512), RejectReason.BAD_STREAM),
    "longer_than_claimed": lambda: (with_sizes(PLAIN, 1, 16_000), RejectReason.BAD_STREAM),
    "shorter_than_claimed": lambda: (with_sizes(PLAIN, 2, 16_576), RejectReason.TRUNCATED),
    "flipped_bit_stored": lambda: (_flipped_stored_bit(), RejectReason.CRC_MISMATCH),
    "wrong_crc": lambda: (
        _field(2, 16, b"\0\0\0\0"),
        RejectReason.CRC_MISMATCH),
    "empty_member": lambda: (_changed_band(b""), RejectReason.BAD_NPY),
    "text_member": lambda: (_changed_band(b"nothing like an array"), RejectReason.BAD_NPY),
    "pickle_member": lambda: (_changed_band(pickle.dumps([1])), RejectReason.BAD_NPY),
    "npy_version_1_1": lambda: (
        _changed_band(patched(npy(noise()[0]), 6, b"\x01\x01")), RejectReason.BAD_NPY),
    "npy_version_9": lambda: (
        _changed_band(patched(npy(noise()[0]), 6, b"\x09")), RejectReason.BAD_NPY),
    "header_no_dict": lambda: (_header_lie("[1, 2, 3]\n"), RejectReason.BAD_NPY),
    "header_code": lambda: (
        _header_lie("{'descr': __import__('os').system('true'), 'fortran_order': False, "
                    "'shape': (64, 64)}\n"), RejectReason.BAD_NPY),
    "header_nested": lambda: (_header_lie("(" * 9_000 + "\n"), RejectReason.BAD_NPY),
    "header_float_shape": lambda: (
        _header_lie("{'descr': '<f4', 'fortran_order': False, 'shape': (64.0, 64)}\n"),
        RejectReason.BAD_NPY),
    "header_order_no_bool": lambda: (
        _header_lie("{'descr': '<f4', 'fortran_order': 0, 'shape': (64, 64)}\n"),
        RejectReason.BAD_NPY),
    "header_extra_key": lambda: (
        _header_lie("{'descr': '<f4', 'fortran_order': False, 'shape': (64, 64), 'x': 1}\n"),
        RejectReason.BAD_NPY),
    "header_too_long": lambda: (
        _header_lie("{'descr': '<f4', 'fortran_order': False, 'shape': (64, 64)}"
                    + " " * 20_000 + "\n"), RejectReason.BAD_NPY),
    "header_length_past_the_end": lambda: (
        _changed_band(patched(npy(noise()[0]), 8, b"\xff\xff")), RejectReason.BAD_NPY),
    "object_array": lambda: (_pickled(), RejectReason.OBJECT_ARRAY),
    "object_field": lambda: (
        _header_lie("{'descr': '|O', 'fortran_order': False, 'shape': (64, 64)}\n"),
        RejectReason.OBJECT_ARRAY),
    "integers": lambda: (_typed(np.int32), RejectReason.WRONG_DTYPE),
    "complex": lambda: (_typed(np.complex64), RejectReason.WRONG_DTYPE),
    "bool": lambda: (_typed(bool), RejectReason.WRONG_DTYPE),
    "strings": lambda: (_typed("S4"), RejectReason.WRONG_DTYPE),
    "records": lambda: (_typed([("v", "<f4")]), RejectReason.WRONG_DTYPE),
    "96_pixels": lambda: (_shaped(96, 96), RejectReason.WRONG_SHAPE),
    "63_pixels": lambda: (_shaped(64, 63), RejectReason.WRONG_SHAPE),
    "flat": lambda: (_shaped(4096), RejectReason.WRONG_SHAPE),
    "scalar": lambda: (_shaped(), RejectReason.WRONG_SHAPE),
    "cube": lambda: (_shaped(1, 64, 64), RejectReason.WRONG_SHAPE),
    "array_cut": lambda: (_changed_band(npy(noise()[1])[:-1]), RejectReason.TRUNCATED),
    "nan": lambda: (_nan(np.nan), RejectReason.NONFINITE),
    "plus_infinity": lambda: (_nan(np.inf), RejectReason.NONFINITE),
    "minus_infinity": lambda: (_nan(-np.inf), RejectReason.NONFINITE),
    "infinite_as_float32": lambda: (_nan(1e300, np.float64), RejectReason.NONFINITE),
    "too_large_to_add": lambda: (_nan(2.0**125), RejectReason.NONFINITE),
}  # fmt: skip
"""Name -> function that makes (blob, reason)."""


# -- np.load ---------------------------------------------------------------------------------------


def by_numpy(blob, kind=DECALS):
    """Pixels as np.load reads them, or the exception it raised; None if they are no float stamp."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
                arrays = [archive[name] for name in kind.names]
    except Exception as error:
        return error
    for array in arrays:
        if (
            not isinstance(array, np.ndarray)
            or array.shape != kind.shape[1:]
            or array.dtype.kind != "f"
        ):
            return None
    with np.errstate(over="ignore"):
        pixels = np.stack(arrays).astype(np.float32)
    return pixels if (np.abs(pixels) < 2.0**125).all() else None


def strictness(blob, reason, kind=DECALS):
    """Whether one of the differences that `decode` documents is why it refuses what np.load reads.

    Found with zipfile and zlib, not with the code that is tested.
    """
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        infos = archive.infolist()
    ours = [info for info in infos if info.filename.removesuffix(".npy") in kind.names]
    if reason is RejectReason.DUPLICATE_MEMBER:
        return len(ours) > len(kind.names)
    if reason is RejectReason.UNSUPPORTED_ZIP:
        return any(info.compress_type not in (0, 8) for info in ours)
    if reason is RejectReason.OVERSIZED:
        return any(info.file_size > kind.most_bytes for info in ours)
    if reason is RejectReason.BAD_NPY:
        return any(b"L" in _content(blob, info)[0][:MAX_HEADER_CHARS] for info in ours)
    if reason is RejectReason.CRC_MISMATCH:
        return any(zlib.crc32(_content(blob, info)[0]) != info.CRC for info in ours)
    if reason in (RejectReason.TRUNCATED, RejectReason.BAD_STREAM):
        return any(
            len(data) != info.file_size or not whole
            for info in ours for data, whole in [_content(blob, info)]
        )  # fmt: skip
    return reason is RejectReason.BAD_ZIP and (
        any("\0" in info.orig_filename for info in ours)
        or any(info.compress_type == 0 and info.compress_size != info.file_size for info in ours)
        or any(max(i.header_offset, i.compress_size, i.file_size) >= len(blob) for i in infos)
        or blob.rfind(b"PK\x06\x07") >= 0
        or _overlap(blob, infos, ours)
    )


def _data_start(blob, info):
    name, extra = struct.unpack_from("<HH", blob, info.header_offset + 26)
    return info.header_offset + 30 + name + extra


def _content(blob, info):
    """All bytes of a member, and whether its stream comes to its end within what it claims."""
    start = _data_start(blob, info)
    raw = blob[start : start + info.compress_size]
    if info.compress_type == 0:
        return raw, True
    inflater = zlib.decompressobj(-15)
    try:
        return inflater.decompress(raw, MOST_BYTES), inflater.eof
    except zlib.error:
        return b"", False


def _overlap(blob, infos, ours):
    """Whether a band's data reach into another member, or into the directory."""
    directory = blob.find(b"PK\x01\x02")
    for info in ours:
        end = _data_start(blob, info) + info.compress_size
        others = [other.header_offset for other in infos if other is not info]
        if any(info.header_offset <= at < end for at in others) or end > directory:
            return True
    return False
