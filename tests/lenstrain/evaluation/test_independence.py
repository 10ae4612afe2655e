"""A threshold is promised only where the scores it was chosen on have nothing to do with these."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenstrain.evaluation.independence import judge_calibration_split
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import BARE, make_table

QUICK = EvaluationOptions(
    resamples=20, fprs=(0.1,), completeness_fprs=(0.1,), completeness_axes=(("theta_e_arcsec",),)
)
HASHES = [f"{row:032x}" for row in range(1200)]
OTHER_HASHES = [f"other{row}" for row in range(1200)]
VALIDATION = {"seed": 1, "split": ["val"] * 1200}


def judged(judged_on, chosen_on):
    """The split's entry, whether the threshold is guaranteed, and all notes."""
    scores, reference = read_scores(judged_on), read_scores(chosen_on)
    entries = measure(scores, reference, QUICK, lambda stage, done: None).entries
    split = judge_calibration_split(scores, reference)
    assert entries["calibration_split"] == split.to_entry()
    promised = entries["thresholds"][0]
    assert promised["threshold"] is not None
    assert promised["guaranteed"] == entries["calibration_split"]["independent"]
    assert promised["reason"] == "; ".join(split.reasons)
    return split, promised, " ".join(note["text"] for note in entries["notes"])


def test_another_split_of_other_regions_gives_a_promise(write_scores):
    path = write_scores("val.parquet", pixel_hash=OTHER_HASHES, **BARE, **VALIDATION)
    split, promised, notes = judged(write_scores(pixel_hash=HASHES, **BARE), path)
    assert promised["guaranteed"]
    assert split.reasons == []
    assert (split.split, split.trained_on) == ("val", False)
    assert (split.shared_keys, split.shared_images, split.shared_regions) == (0, 0, 0)
    label = make_table(**VALIDATION)["label"].to_numpy()
    assert split.n_negative == split.n_negative_unique == (label == 0).sum()
    assert split.n_regions == 40
    assert split.scores_sha256 == read_scores(path).sha256
    assert "No threshold is guaranteed" not in notes


@pytest.mark.parametrize("metadata", [None, {"split": "train"}])
def test_scores_that_the_finder_was_trained_on_promise_nothing(write_scores, metadata):
    column = None if metadata else ["val"] * 600 + ["train"] * 600
    path = write_scores("train.parquet", metadata, **BARE, seed=1, split=column)
    split, promised, notes = judged(write_scores(**BARE), path)
    assert split.trained_on is True
    assert promised["reason"] == "the finder was trained on the calibration split"
    assert f"No threshold is guaranteed: {promised['reason']}." in notes


def test_the_same_table_promises_nothing(write_scores):
    path = write_scores(**BARE)
    split, promised, _ = judged(path, path)
    assert split.shared_keys == 1200
    assert promised["reason"] == (
        "1,200 stamps are in the judged scores too; 40 regions are in the judged scores too"
    )


def test_a_copy_under_other_names_is_known_by_its_pixels(write_scores):
    columns = BARE | {"key": [f"copy {row}" for row in range(1200)], "split": ["val"] * 1200}
    elsewhere = np.arange(1200) % 40 + 5000
    copy = write_scores("copy.parquet", pixel_hash=HASHES, **(columns | {"region_id": elsewhere}))
    split, promised, _ = judged(write_scores(pixel_hash=HASHES, **BARE), copy)
    assert (split.shared_keys, split.shared_images, split.shared_regions) == (0, 1200, 0)
    assert promised["reason"] == "1,200 images are in the judged scores too"


def test_a_copy_without_pixels_is_known_by_its_sky(write_scores):
    names = [f"copy {row}" for row in range(1200)]
    copy = write_scores("copy.parquet", key=names, split=None, **BARE)
    split, promised, _ = judged(write_scores(**BARE), copy)
    assert (split.shared_keys, split.shared_images, split.shared_regions) == (0, 0, 40)
    assert promised["reason"] == "40 regions are in the judged scores too"
    assert (split.split, split.trained_on) == (None, None)


def test_some_rows_of_one_region_are_enough_to_withdraw_it(write_scores):
    region = np.where(np.arange(1200) < 3, 7, np.arange(1200) % 40 + 1000)
    path = write_scores("val.parquet", region_id=region, **BARE, **VALIDATION)
    split, promised, _ = judged(write_scores(**BARE), path)
    assert split.shared_regions == 1
    assert not promised["guaranteed"]


def test_regions_of_another_type_or_script_are_compared_by_what_they_say(write_scores):
    number = np.arange(1200) % 40
    as_text = write_scores("text.parquet", region_id=[f"{n}" for n in number], **BARE, **VALIDATION)
    assert judged(write_scores(**BARE), as_text)[0].shared_regions == 40
    greek = write_scores("g.parquet", region_id=[f"περιοχή {n}" for n in number], **BARE)
    other = write_scores(
        "h.parquet", region_id=[f"περιοχή {n + 39}" for n in number], **BARE, **VALIDATION
    )
    assert judged(greek, other)[0].shared_regions == 1


def test_columns_of_a_dictionary_are_compared_too(write_scores):
    hashes = pa.array(HASHES).dictionary_encode()
    copy = {"key": [f"copy {row}" for row in range(1200)], "region_id": np.arange(1200) % 40 + 5000}
    one = write_scores(pixel_hash=hashes, **BARE)
    other = write_scores("copy.parquet", pixel_hash=hashes, **(BARE | copy), split=["val"] * 1200)
    assert judged(one, other)[0].shared_images == 1200


def test_a_split_that_no_table_names_is_your_word(write_scores):
    path = write_scores("val.parquet", **BARE, seed=1, split=None)
    split, promised, notes = judged(write_scores(**BARE), path)
    assert split.trained_on is None
    assert promised["guaranteed"]
    assert "whether the finder was trained on them cannot be checked" in notes


def test_null_hashes_and_splits_are_nothing_in_common(write_scores):
    nothing = pq.read_table(write_scores())["key"].to_pylist()
    path = write_scores(
        "val.parquet", pixel_hash=[None] * 1200, **BARE, seed=1, split=[None, "val"] * 600
    )
    split, _, _ = judged(write_scores(pixel_hash=[None, *nothing[1:]], **BARE), path)
    assert split.shared_images == 0
    assert split.split == "val"
