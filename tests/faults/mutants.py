"""Damaged stamps by number, and what the kernels make of them.

mutant(number) -> bytes                       the same blob for the same number, in every process;
                                              every other batch is of another kind of stamps
python -m tests.faults.mutants FIRST COUNT    walk them; with the compiled kernels decode them too,
                                              and compare with np.load

A process of its own, since a kernel that reads outside a blob may end the process, and since
``NUMBA_DISABLE_JIT`` holds for a whole one.
"""

import random
import struct
import sys
import zlib
from functools import cache

import numpy as np
import pyarrow as pa
from numba import config

from lensprep.decode import stampnpz, zipwalk
from tests.lensprep.blobs import (
    BAD,
    DECALS,
    GOOD,
    KINDS,
    as_zip64,
    bands,
    by_numpy,
    npy,
    npz,
    saved,
    strictness,
    with_zip64,
)  # fmt: skip

BATCH = 500
"""Blobs that are walked at a time; after a crash the first of them has been printed."""

_BOUNDARIES = [
    0, 1, 7, 11, 26, 30, 46, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1,
    2**32, 2**62, 2**63 - 46, 2**63 - 30, 2**63 - 26, 2**63 - 4, 2**63 - 1, 2**63, 2**63 + 30,
    2**64 - 46, 2**64 - 30, 2**64 - 1,
]  # fmt: skip

_FIELDS = {
    b"PK\x03\x04": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\x01\x02": [(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2),
                    (42, 4), (57, 2), (59, 2), (61, 8), (69, 8), (77, 8)],
    b"PK\x06\x06": [(4, 8), (24, 8), (32, 8), (40, 8), (48, 8)],
    b"PK\x06\x07": [(4, 4), (8, 8), (16, 4)],
    b"PK\x05\x06": [(8, 2), (12, 4), (16, 4), (20, 2)],
}  # fmt: skip
"""Numbers of each record: offset and width. Behind the name of 11 bytes lies the extra field."""

_NAME_CHANGES = [(6, b"g"), (6, b"r"), (7, b"\0"), (7, b"."), (10, b"\0"), (0, b"I"), (8, b"\xff")]


def kind_of(number):
    """Bands and side of a mutant's stamp."""
    return KINDS[number // BATCH % len(KINDS)]


@cache
def _small(kind):
    """Stamps of about a kilobyte with pixels that differ, in all forms that are read."""
    rng, times = np.random.default_rng(5), kind.side // 4
    pixels = np.tile(rng.normal(0, 0.01, (3, 4, 4)), (1, times, times)).astype(np.float32)
    members, names = bands(pixels, names=kind.names), kind.names
    columns = {f"{n}.npy": npy(np.asfortranarray(p)) for n, p in zip(names, pixels, strict=True)}
    short = {name[:-4]: data for name, data in members.items()}
    plain = saved(pixels, names=names)
    small = saved(np.zeros(kind.shape, np.float32), names=names)
    first, last = members[f"{names[0]}.npy"], names[2]
    return [
        plain, small,
        as_zip64(plain), as_zip64(npz(columns)), as_zip64(npz(members, streamed=True)),
        with_zip64(plain, 2, plain.rfind(b"PK\x03\x04")),
        with_zip64(plain, 1, 0), with_zip64(small, 0, 1, 2, 3),
        npz(members, streamed=True), npz(members, zip64=True), npz(members, comment=b"PK\5\6"),
        npz(short), npz(dict(reversed(members.items()))), npz(columns),
        npz(bands(pixels, (2, 0), names)),
        npz(bands(pixels.astype(">f8"), (3, 0), names)),
        npz(bands(pixels.astype(np.float16), names=names)),
        npz({"image_i.npy": b"?", **members, "x": b"", "é/": b"{}"}),
        npz([*members.items(), (f"{last}?npy", first)]).replace(b"?npy", b"\0npy"),
        npz([(last, first), *members.items()]),
        plain + b"junk", plain + plain,
    ]  # fmt: skip


@cache
def _large():
    """Every blob of `DECALS` that the unit tests have: full of noise, or stored, or refused."""
    made = [make()[0] for make in (*GOOD.values(), *BAD.values())]
    return [blob for blob in made if blob]


def mutant(number):
    """One blob with some damage; two in five times in what Zip64 says."""
    rng, kind = random.Random(number), kind_of(number)
    seeds = _large() if rng.random() < 0.01 and kind is DECALS else _small(kind)
    blob = bytearray(seeds[int(rng.random() * len(seeds))])
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 6))):
        if blob:
            rng.choice(DAMAGES)(rng, blob)
    return bytes(blob)


def _record(rng, blob, signatures):
    """Place and signature of one of the records; none: the start."""
    signature = rng.choice(signatures)
    at = blob.find(signature, int(rng.random() * len(blob)))
    return max(at if at >= 0 else blob.find(signature), 0), signature


def _number(rng, blob):
    """A number at which something may turn over: a boundary, or about the size of the blob."""
    if rng.random() < 0.7:
        return rng.choice(_BOUNDARIES)
    return (rng.choice((0, len(blob), len(blob) // 2)) + rng.randrange(-60, 60)) % 2**64


def _set(blob, at, number, width):
    blob[at : at + width] = (number & (2 ** (8 * width) - 1)).to_bytes(width, "little")


def _change_field(rng, blob):
    at, signature = _record(rng, blob, tuple(_FIELDS))
    offset, width = rng.choice(_FIELDS[signature])
    _set(blob, at + offset, _number(rng, blob), width)


def _change_zip64(rng, blob):
    """Full fields in an entry, and an extra field of numbers; the end record knows of it."""
    at, end = _record(rng, blob, (b"PK\x01\x02",))[0], blob.rfind(b"PK\x05\x06")
    if end < at + 46 or end + 16 > len(blob):
        return
    for offset in rng.sample((20, 24, 42), rng.choice((1, 1, 2, 3))):
        _set(blob, at + offset, 0xFFFFFFFF, 4)
    numbers = [_number(rng, blob) for _ in range(rng.randrange(4))]
    extra = struct.pack("<HH", 1, 8 * len(numbers) + rng.choice((0, 0, 0, 0, 8, -1)) & 0xFFFF)
    extra += struct.pack(f"<{len(numbers)}Q", *numbers)
    size = struct.unpack_from("<I", blob, end + 12)[0] + len(extra)
    _set(blob, end + 12, size, 4)
    _set(blob, at + 30, struct.unpack_from("<H", blob, at + 30)[0] + len(extra), 2)
    place = at + 46 + struct.unpack_from("<H", blob, at + 28)[0]
    blob[place:place] = extra


def _change_zip64_end(rng, blob):
    at, signature = _record(rng, blob, (b"PK\x06\x06", b"PK\x06\x07"))
    offset, width = rng.choice(_FIELDS[signature])
    _set(blob, at + offset, _number(rng, blob), width)


def _change_name(rng, blob):
    offset, text = rng.choice(_NAME_CHANGES)
    at = _record(rng, blob, (b"image_",))[0]
    other = blob.rfind(blob[at : at + 11]) if rng.random() < 0.7 else at  # in the directory too
    for place in (at, other):
        blob[place + offset : place + offset + 1] = text


def _change_byte(rng, blob):
    at = int(rng.random() * len(blob))
    blob[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, blob[at] ^ (1 << rng.randrange(8))))


def _cut(rng, blob):
    at = _record(rng, blob, tuple(_FIELDS))[0] + rng.randrange(60)
    del blob[at : at + rng.choice((1, 4, 30, 200))]


def _double(rng, blob):
    at = _record(rng, blob, tuple(_FIELDS))[0]
    blob[at:at] = blob[at : at + rng.choice((4, 30, 46, 57))]


def _copy(rng, blob):
    at, other = (_record(rng, blob, tuple(_FIELDS))[0] + rng.randrange(90) for _ in range(2))
    width = rng.choice((1, 2, 4, 8))
    blob[at : at + width] = blob[other : other + width]


DAMAGES = (
    _change_field, _change_field, _change_field, _change_zip64, _change_zip64, _change_zip64,
    _change_zip64, _change_zip64_end, _change_name, _change_byte, _change_byte, _cut, _double,
    _copy,
)  # fmt: skip


def compare_with_numpy(blob, reason, pixels, kind=DECALS):
    """Accepted: the pixels of np.load. Refused: np.load refuses too, or a strictness says why.

    `lensprep.decode.stampnpz.decode` lists what is read although np.load refuses it: names of other
    members, and codes of deflate whose result has the right CRC-32 all the same.
    """
    expected = by_numpy(blob, kind)
    if reason is None:
        if not isinstance(expected, UnicodeDecodeError) and not _is_odd_code(expected):
            assert isinstance(expected, np.ndarray), f"accepted, but np.load says {expected!r}"
            assert pixels.tobytes() == expected.tobytes(), "other pixels than np.load's"
    elif isinstance(expected, np.ndarray):
        assert strictness(blob, reason, kind), f"{reason}, but np.load reads it"


def _is_odd_code(error):
    return isinstance(error, zlib.error) and "invalid literal/length code" in str(error)


def walked(blobs, kind):
    """Reason and places of each blob, shape (n, 1 + 15); places of a refused one are zeros."""
    column = pa.array(blobs, pa.binary())
    places, codes = zipwalk.walk(*stampnpz._arrow_stretch(column)[:2], *kind)
    table = np.column_stack([codes, np.reshape(places, (len(blobs), -1))])
    table[table[:, 0] != zipwalk.READ, 1:] = 0
    return table


def main(first, count, out):
    """Write what the walk finds to `out`; the first difference from np.load ends it."""
    found = []
    for start in range(first, first + count, BATCH):
        print(start, flush=True)
        kind, stop = kind_of(start), min(start + BATCH, first + count)
        blobs = [mutant(n) for n in range(start, stop)]
        with np.errstate(over="raise"):  # interpreted: no sum of a kernel wraps
            found.append(walked(blobs, kind))
        if config.DISABLE_JIT:
            continue
        pixels = np.empty((len(blobs), *kind.shape), np.float32)
        reasons = stampnpz.decode_batch(pa.array(blobs, pa.binary()), pixels, kind.bands)
        for i, (blob, reason) in enumerate(zip(blobs, reasons, strict=True)):
            # Of what is refused all the first thousands, then one in five.
            if reason is None or start + i < 10_000 or i % 5 == 0:
                try:
                    compare_with_numpy(blob, reason, pixels[i], kind)
                except AssertionError as error:
                    raise AssertionError(f"mutant({start + i}): {error}") from None
    np.save(out, np.concatenate(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
