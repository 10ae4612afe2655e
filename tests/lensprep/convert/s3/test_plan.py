"""Into an object store: what is there stays, one of two writers wins, resume repeats nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.errors import BudgetError, ChangedError, DatasetError, ProjectError
from lensprep.inspection.verify import verify
from tests.lensprep.convert.conversions import CONFIG
from tests.lensprep.convert.s3.conversions import begin_and_stop, contents, unfinished


def test_what_is_there_is_left_alone(tree, s3, whole):
    store = s3.store()
    store.write("thesis.tex", b"precious")
    with pytest.raises(DatasetError, match=r"but other files\. Choose another folder"):
        convert(str(tree), s3.uri, CONFIG, options=s3.options(), resume=True)
    assert contents(s3) == {"thesis.tex": b"precious"}
    store.delete("thesis.tex")
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    with pytest.raises(DatasetError, match="finished dataset already"):
        convert(str(tree), s3.uri, CONFIG, options=s3.options())
    assert contents(s3) == contents(whole)


def test_resume_of_what_is_finished_is_done(tree, whole, s3, proxy, tmp_path):
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    options, kept = s3.options(endpoint_url=proxy.url), tmp_path / "kept"
    convert(
        str(tree), s3.uri, CONFIG, workers=1, options=options, resume=True, keep_local=str(kept)
    )
    assert not proxy.count("PUT ") + proxy.count("POST ")
    assert contents(kept) == contents(s3) == contents(whole)
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="made with seed = 0, not 9"):
        convert(str(tree), s3.uri, other, options=options, resume=True)
    assert contents(s3) == contents(whole)


def test_after_too_many_rejects_the_corrected_conversion_works(tree, whole, s3):
    strict = ConvertConfig(shard_rows=4, seed=9, max_reject_rate=0.0)
    with pytest.raises(BudgetError, match="empty_blob 1"):
        convert(str(tree), s3.uri, strict, workers=1, options=s3.options())
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert contents(s3) == contents(whole)


def test_of_two_that_begin_at_once_one_makes_the_dataset(tree, whole, s3):
    ready = threading.Barrier(2)

    def make(seed):
        config = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=seed)
        try:
            return convert(
                str(tree), s3.uri, config, workers=1, options=s3.options(),
                announce=lambda *_: ready.wait(),
            )["dataset_id"]  # fmt: skip
        except ProjectError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(make, (0, 1)))
    (loser,) = [result for result in results if isinstance(result, ProjectError)]
    (winner,) = [result for result in results if isinstance(result, str)]
    assert "has just begun" in str(loser)
    assert Dataset.open(s3.uri, s3.options()).dataset_id == winner
    assert verify(s3.uri, against=str(tree), sample=None, options=s3.options(), workers=1)["ok"]


def test_a_manifest_that_somebody_else_put_there_stays(tree, s3):
    def intrude(phase, done, total):
        if phase == "shards":
            s3.store().write("manifest.json", b"{}")

    with pytest.raises(ChangedError, match="other content"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options(), progress=intrude)
    assert s3.store().read("manifest.json") == b"{}"


def test_a_shard_of_somebody_else_is_not_replaced(tree, s3):
    def intrude(phase, done, total):
        if phase == "decode":
            s3.store().write("train/train-000000.tar", b"other")

    with pytest.raises(DatasetError, match=r"train-000000\.tar already exists.*--resume"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options(), progress=intrude)
    assert s3.store().read("train/train-000000.tar") == b"other"
    with pytest.raises(DatasetError):
        Dataset.open(s3.uri, s3.options())


def test_one_that_another_finished_meanwhile_says_so(tree, whole, s3):
    finished = []

    def finish(phase, done, total):
        if phase == "shards" and not finished:
            finished.append(
                convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
            )

    with pytest.raises(DatasetError, match="finished by another conversion meanwhile"):
        convert(str(tree), s3.uri, CONFIG, workers=1, progress=finish, options=s3.options())
    assert contents(s3) == contents(whole)


def test_resume_is_asked_for_repeats_nothing_and_refuses_other_settings(
    tree, whole, s3, proxy, monkeypatch
):
    begin_and_stop(tree, s3)
    before = {entry.name: entry.version for entry in s3.store().entries()}
    shards = [name for name in before if name.endswith(".tar")]
    assert len(shards) == 2
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.runs.RUN_ROWS", 32)
        with pytest.raises(DatasetError, match="begun with run_rows = 16, not 32"):
            convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), s3.uri, other, workers=1, resume=True, options=s3.options())
    options = s3.options(endpoint_url=proxy.url)
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=options)
    writes = [line.split()[1] for line in proxy.requests if line.startswith(("PUT", "POST"))]
    assert not [line for line in writes if "/run-" in line]
    assert not [line for line in writes for name in shards if line.endswith(name)]
    assert len(writes) == len(set(writes))
    assert writes[-1].endswith("manifest.json")
    assert contents(s3) == contents(whole)


def test_what_killed_uploads_left_is_aborted(tree, whole, s3):
    begin_and_stop(tree, s3, "decode")
    store = s3.store()
    for name in ("train/train-000000.tar", ".work/run-000005-000.run"):
        store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key(name))
    assert len(unfinished(s3)) == 2
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
    assert unfinished(s3) == []
    assert contents(s3) == contents(whole)
