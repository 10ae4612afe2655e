"""Reading blobs: what np.load reads is read, all else has its reason, and nothing raises."""

import io
import tracemalloc
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lensprep.decode import stampnpz
from lensprep.decode.reasons import RejectReason
from lensprep.decode.stampnpz import decode, decode_batch
from lensprep.decode.zipwalk import walk
from tests.lensprep.blobs import (
    ALIKE,
    BAD,
    DECALS,
    GOOD,
    KINDS,
    MOST_BYTES,
    SURVEYS,
    Kind,
    bands,
    by_numpy,
    noise,
    npy,
    npz,
    patched,
    saved,
    strictness,
)


def decoded(blob, kind=DECALS):
    """(reason, pixels) of one blob."""
    out = np.full(kind.shape, np.nan, np.float32)
    return decode(blob, out, kind.bands), out


@pytest.mark.parametrize("name", GOOD)
def test_good_blob_gives_its_pixels(name):
    blob, pixels = GOOD[name]()
    reason, out = decoded(blob)
    assert reason is None
    assert out.tobytes() == np.ascontiguousarray(pixels).tobytes()


@pytest.mark.parametrize("name", GOOD)
def test_good_blob_is_what_numpy_reads(name):
    blob, pixels = GOOD[name]()
    assert by_numpy(blob).tobytes() == np.ascontiguousarray(pixels).tobytes()


@pytest.mark.parametrize("name", BAD)
def test_bad_blob_has_its_reason(name):
    blob, reason = BAD[name]()
    assert decoded(blob)[0] is reason


@pytest.mark.parametrize("name", [name for name in BAD if BAD[name]()[0]])
def test_bad_blob_is_refused_by_numpy_too_or_by_a_documented_strictness(name):
    blob, reason = BAD[name]()
    assert not isinstance(by_numpy(blob), np.ndarray) or strictness(blob, reason)


def test_float64_beyond_float32_is_nonfinite_without_a_warning():
    blob, reason = BAD["infinite_as_float32"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(blob)[0] is reason is RejectReason.NONFINITE


@pytest.mark.parametrize("name", BAD)
def test_no_blob_costs_more_memory_than_one_stamp(name):
    blob, _ = BAD[name]()
    out = np.empty((3, 64, 64), np.float32)
    decode(blob, out)  # compiled, and parsed once
    tracemalloc.start()
    try:
        decode(blob, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES + 64_000


def test_oversized_member_is_refused_before_anything_is_inflated(monkeypatch):
    def inflate(*_):
        raise AssertionError("inflated")

    monkeypatch.setattr(stampnpz, "inflate", inflate)
    blob = npz({**bands(noise()), "image_z.npy": bytes(MOST_BYTES + 1)})
    assert decoded(blob)[0] is RejectReason.OVERSIZED


UNPICKLED = []


def _explode():
    UNPICKLED.append(1)


class Bomb:
    """Its unpickling is seen."""

    def __reduce__(self):
        return (_explode, ())


def test_object_array_is_never_unpickled():
    blob = npz({**bands(noise()), "image_g.npy": npy(np.full((64, 64), Bomb()))})
    assert decoded(blob)[0] is RejectReason.OBJECT_ARRAY
    assert UNPICKLED == []
    with np.load(io.BytesIO(blob), allow_pickle=True) as archive:
        assert archive["image_g"].shape == (64, 64)
    assert UNPICKLED != []  # the bomb was live


def test_buffers_of_all_kinds_are_read():
    blob = saved(noise(11))
    for kind in (bytes, bytearray, memoryview, pa.py_buffer, lambda b: np.frombuffer(b, np.uint8)):
        reason, out = decoded(kind(blob))
        assert reason is None
        assert np.array_equal(out, noise(11))


# -- batches ---------------------------------------------------------------------------------------


def column_of(kinds, arrow_type):
    return pa.array([(BAD | GOOD)[kind]()[0] for kind in kinds], arrow_type)


MIXED = ["nan", "stored", "null", "deflated", "empty", "half", "float64", "96_pixels"]


@pytest.mark.parametrize("arrow_type", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_batch_equals_one_by_one(arrow_type):
    column = column_of(MIXED, arrow_type)
    out = np.zeros((len(MIXED), 3, 64, 64), np.float32)
    reasons = decode_batch(column, out)
    for kind, reason, stamp in zip(MIXED, reasons, out, strict=True):
        expected, alone = decoded((BAD | GOOD)[kind]()[0])
        assert reason is expected
        assert reason is not None or np.array_equal(stamp, alone)


def test_batch_reads_slices_chunks_and_sequences_alike():
    column = column_of(MIXED, pa.binary())
    chunked = pa.chunked_array([column[2:5], column[5:5], column[5:]])
    whole = decode_batch(column, np.empty((8, 3, 64, 64), np.float32))
    assert decode_batch(chunked, np.empty((8, 3, 64, 64), np.float32)) == whole[2:]
    assert decode_batch(column[3:6], np.empty((8, 3, 64, 64), np.float32)) == whole[3:6]
    assert decode_batch(column.to_pylist(), np.empty((8, 3, 64, 64), np.float32)) == whole


@pytest.mark.parametrize("bounds", [[0, 2**62], [-1, 4], [3, 2], [0, 5]])
def test_bounds_outside_the_memory_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds of blobs descend, or lie outside of 4 bytes"):
        walk(memoryview(b"PK\3\4"), np.array(bounds))


def test_batch_of_nothing_is_nothing():
    out = np.empty((0, 3, 64, 64), np.float32)
    assert decode_batch([], out) == []
    assert decode_batch(pa.array([], pa.binary()), out) == []
    assert decode_batch(pa.chunked_array([], pa.binary()), out) == []


def test_batch_of_nulls_alone():
    out = np.empty((2, 3, 64, 64), np.float32)
    for column in (pa.array([None, None], pa.binary()), pa.nulls(2)):
        assert decode_batch(column, out) == [RejectReason.NULL_BLOB] * 2


def test_rows_after_the_batch_are_not_touched():
    out = np.full((3, 3, 64, 64), 7.0, np.float32)
    decode_batch([saved(noise()), b"junk"], out)
    assert (out[2] == 7.0).all()


# -- other surveys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SURVEYS, ALIKE], ids=str)
def test_stamps_of_any_bands_and_side_are_what_numpy_reads(kind):
    pixels = noise(8, shape=kind.shape)
    forms = [
        saved(pixels, names=kind.names),
        saved(pixels, compressed=False, names=kind.names),
        npz(dict(reversed(bands(pixels, (2, 0), kind.names).items())), streamed=True),
        npz(bands([np.asfortranarray(p.astype(">f8")) for p in pixels], names=kind.names)),
    ]
    out = np.empty((len(forms), *kind.shape), np.float32)
    assert decode_batch(pa.array(forms, pa.binary()), out, kind.bands) == [None] * len(forms)
    for blob, stamp in zip(forms, out, strict=True):
        assert stamp.tobytes() == by_numpy(blob, kind).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("side", [32, 63, 65, 256])
def test_stamps_of_another_side_are_refused(side):
    kind = Kind(DECALS.bands, side)
    blob = saved(noise(shape=(3, 48, 48)))
    assert decoded(blob, kind)[0] is RejectReason.WRONG_SHAPE
    assert by_numpy(blob, kind) is None


def test_bands_are_taken_by_their_whole_names():
    pixels = noise(3, shape=(8, 32, 32))
    names = ("image_Yjhk23456", "image_Yjhk2345", "image_g12", "image_g1", "image_g.", "image_",
             "image_g", "image_G")  # fmt: skip
    blob = saved(pixels, names=names)
    reason, out = decoded(blob, ALIKE)
    assert reason is None
    assert np.array_equal(out, pixels[[6, 3, 1]])
    for gone in (6, 3, 1):
        left = [i for i in range(8) if i != gone]
        blob = saved(pixels[left], names=[names[i] for i in left])
        assert decoded(blob, ALIKE)[0] is RejectReason.MISSING_BAND


def test_a_band_twice_is_refused_whatever_its_name():
    members = bands(noise(shape=ALIKE.shape), names=ALIKE.names)
    for name in ("image_g1", "image_Yjhk2345"):
        blob = npz([(name, members["image_g.npy"]), *members.items()])
        assert decoded(blob, ALIKE)[0] is RejectReason.DUPLICATE_MEMBER


@pytest.mark.parametrize("kind", [*SURVEYS, ALIKE], ids=str)
def test_largest_member_is_a_stamp_of_float64(kind):
    header = npy(np.zeros(kind.shape[1:]))[: -8 * kind.side**2]
    most = kind.most_bytes
    assert most > len(header) + 8 * kind.side**2 * len(kind.bands)
    members = bands(noise(shape=kind.shape), names=kind.names)
    last = f"{kind.names[-1]}.npy"
    for size, expected in ((most, RejectReason.BAD_NPY), (most + 1, RejectReason.OVERSIZED)):
        assert decoded(npz({**members, last: bytes(size)}), kind)[0] is expected


@pytest.mark.parametrize("bands", [("",), ("g", "r", "band_name"), ("g", "b@d"), ("g", "é")])
def test_names_that_no_band_has_are_an_error_of_the_caller(bands):
    with pytest.raises(ValueError, match="is no name of a band"):
        decode(saved(noise()), np.empty((len(bands), 64, 64), np.float32), bands)


@pytest.mark.parametrize(
    "shape", [(3, 31, 31), (3, 257, 257), (3, 64, 63), (2, 64, 64), (4, 64, 64)]
)
def test_output_of_no_stamp_is_an_error_of_the_caller(shape):
    with pytest.raises(
        ValueError, match=r"shape \(1, 3, side, side\) or longer, side from 32 to 256"
    ):
        decode(saved(noise()), np.empty(shape, np.float32))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 3, 64, 64), np.float64),
        np.empty((1, 3, 64, 64), ">f4"),
        np.empty((1, 3, 64, 63), np.float32),
        np.empty((0, 3, 64, 64), np.float32),
        np.empty((1, 64, 64, 3), np.float32).transpose(0, 3, 1, 2),
        np.frombuffer(bytes(3 * 64 * 64 * 4), np.float32).reshape(1, 3, 64, 64),
    ],
    ids=["float64", "big-endian", "shape", "too short", "layout", "read-only"],
)
def test_output_that_does_not_fit_is_an_error_of_the_caller(out):
    with pytest.raises(ValueError, match="out must be writable C-contiguous float32"):
        decode_batch([saved(noise())], out)


# -- properties ------------------------------------------------------------------------------------


def as_stored(array, dtype, fortran):
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype, order="F" if fortran else "C")


FILL = st.one_of(st.floats(-1.0, 1.0), st.floats(), st.just(1e300))


def arrays(side):
    return st.builds(
        as_stored,
        hnp.arrays(
            np.float64, (side, side), elements=st.floats(-60_000, 60_000, width=16), fill=FILL
        ),
        st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]),
        st.booleans(),
    )


STAMPS = st.one_of(
    st.tuples(st.just(kind), st.tuples(*[arrays(kind.side)] * len(kind.bands))) for kind in KINDS
)


@settings(max_examples=60, deadline=None)
@given(
    STAMPS,
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.sampled_from([0, 8]),
    st.booleans(),
    st.booleans(),
    st.binary(max_size=40),
)
def test_what_numpy_reads_is_decoded_identically(stamp, version, method, streamed, zip64, comment):
    kind, arrays = stamp
    members = bands(arrays, version, kind.names)
    blob = npz(members, method, streamed=streamed, zip64=zip64, comment=comment)
    expected = by_numpy(blob, kind)
    reason, pixels = decoded(blob, kind)
    if isinstance(expected, np.ndarray):
        assert reason is None
        assert pixels.tobytes() == expected.tobytes()
    else:
        assert reason is RejectReason.NONFINITE


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans(), st.sampled_from(KINDS))
def test_noise_is_refused(data, signed, kind):
    assert decoded(b"PK\x03\x04" + data if signed else data, kind)[0] is not None


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_truncated_anywhere_never_decodes(kind):
    blob = saved(noise(shape=kind.shape), names=kind.names)
    for length in [*range(0, 200), *range(200, len(blob), 997), *range(len(blob) - 200, len(blob))]:
        assert decoded(blob[:length], kind)[0] is not None


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_flipped_bit_anywhere_is_harmless_or_found(kind):
    pixels = noise(21, shape=kind.shape)
    blob = saved(pixels, names=kind.names)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(blob), 400).tolist():
        reason, out = decoded(patched(blob, at, bytes([blob[at] ^ (1 << at % 8)])), kind)
        assert reason is not None or np.array_equal(out, pixels)


def test_reasons_have_a_meaning_and_a_name_of_their_own():
    assert len({reason.value for reason in RejectReason}) == len(RejectReason)
    for reason in RejectReason:
        assert reason.value == reason.name.lower()
        assert reason.__doc__
        assert RejectReason(str(reason)) is reason
