"""Into an object store: the bytes of a local conversion, wherever source and work lie."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.errors import BudgetError, ConfigError, InputError
from lensprep.inspection.verify import verify
from lensprep.source.tree import Source
from lensprep.store.arrow import remote_filesystem
from lensprep.store.s3 import S3Store
from tests.lensprep.convert.conversions import CONFIG
from tests.lensprep.convert.s3.conversions import (
    contents,
    put_tree,
    unfinished,
    without_groups,
    without_source,
)
from tests.phase4c import tiny_counterfactuals, tiny_tree, write_tree


def test_it_is_the_dataset_that_a_local_conversion_makes(tree, whole, s3, tmp_path):
    report = convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert report["accepted"] == 119
    assert report["rejected"] == {"empty_blob": 1}
    assert contents(s3) == contents(whole)  # manifest and rejects.parquet too; no work is left
    assert verify(s3.uri, against=str(tree), sample=None, options=s3.options(), workers=1)["ok"]
    assert unfinished(s3) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_tree_in_the_store_is_read_as_one_on_a_disk(tree, table, s3):
    """Columns in folders, files that a job left, and the first rows that are rejected."""
    store = S3Store(f"{s3.uri}-source", s3.options())
    for psf_bin in range(4):
        part = table.filter(pc.equal(table["psf_bin"], psf_bin)).drop_columns(["psf_bin"])
        sink = io.BytesIO()
        pq.write_table(part, sink, row_group_size=8)
        store.write(f"psf_bin={psf_bin}/part-0.parquet", sink.getvalue())
    source = Source.open(store.uri, filesystem=remote_filesystem(s3.uri, s3.options()))
    found = [t for file in source.files for t in source.iter_file(file, ["task_id", "psf_bin"])]
    expected = table.select(["task_id", "psf_bin"]).sort_by("task_id")
    assert pa.concat_tables(found).sort_by("task_id").equals(expected)
    strict = ConvertConfig(max_reject_rate=0.0)
    with pytest.raises(BudgetError, match=r"The first: psf_bin=\d/part-0\.parquet, .*: empty_blob"):
        convert(store.uri, s3.uri, strict, workers=1, options=s3.options())
    convert(store.uri, s3.uri, CONFIG, workers=1, options=s3.options())
    (fault,) = verify(s3.uri, against=str(tree), options=s3.options(), workers=1)["faults"]
    assert f"names another source than {tree}: {store.uri} with 4 files, 120 rows" in fault["what"]
    store.write("_temporary/0/task_2/psf_bin=3/part-0.parquet", b"")
    with pytest.raises(InputError, match="holds _temporary: the job that writes it is running"):
        convert(store.uri, s3.uri, CONFIG, workers=1, resume=True, options=s3.options())


def test_two_workers_from_a_source_in_the_store(tree, whole, s3):
    source = S3Store(f"{s3.uri}-source", s3.options())
    put_tree(source, tree)
    report = convert(source.uri, s3.uri, CONFIG, workers=2, options=s3.options())
    assert report["dataset_id"] == Dataset.open(whole).dataset_id
    assert report["read_again"] == 8  # the row group with the empty blob
    assert without_source(contents(s3)) == without_source(contents(whole))


@pytest.mark.parametrize("kind", ["local work", "remote work of a local dataset"])
def test_the_work_may_lie_elsewhere(tree, whole, s3, tmp_path, kind):
    work = str(tmp_path / "work") if kind == "local work" else f"{s3.uri}-work"
    place = s3 if kind == "local work" else tmp_path / "ds"
    uri = s3.uri if kind == "local work" else str(place)
    seen = []

    def look(phase, done, total):
        if phase == "decode" and done == total:
            seen.extend(f.name for f in tmp_path.rglob("*.dat"))
            seen.extend(e.name for e in S3Store(f"{s3.uri}-work", s3.options()).entries())

    convert(str(tree), uri, CONFIG, workers=1, work=work, progress=look, options=s3.options())
    runs = [name for name in seen if name.endswith((".dat", ".run"))]
    assert len(runs) >= 8
    assert contents(place) == contents(whole)
    assert contents(tmp_path / "work") == {}
    assert S3Store(f"{s3.uri}-work", s3.options()).entries() == []


def test_large_shards_and_runs_go_in_parts(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 4096)
    tree = tiny_tree(tmp_path / "src", 400, region_split="train", hive=False)
    config = ConvertConfig(shard_rows=400)
    convert(str(tree), s3.uri, config, workers=1, options=s3.options())
    store = s3.store()
    answer = store.client.head_object(Bucket="bucket", Key=store.key("train/train-000000.tar"))
    assert answer["ETag"].endswith('-3"')
    assert unfinished(s3) == []
    convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    assert contents(s3) == contents(tmp_path / "ds")


def test_the_command_says_what_goes_where_and_asks_for_class_and_encryption(tree, s3, tmp_path):
    command = ["convert", tree, s3.uri, "--shard-rows", 20, "--max-reject-rate", 1, "--workers", 1]
    more = ["--storage-class", "STANDARD_IA", "--encryption", "AES256", "--work", tmp_path / "w"]
    done = CliRunner().invoke(
        main, [*map(str, [*command, *more]), "--endpoint-url", s3.server.http]
    )
    assert done.exit_code == 0, done.stderr
    assert f"in {s3.uri} (object store)" in done.stderr
    assert f"in {tmp_path}/w/lensprep-" in done.stderr
    assert f"{s3.uri}: 119 stamps" in done.stdout
    store = s3.store()
    for name in ("train/train-000000.tar", "rejects.parquet", "manifest.json"):
        answer = store.client.head_object(Bucket=store.bucket, Key=store.key(name))
        assert answer["StorageClass"] == "STANDARD_IA"
        assert answer["ServerSideEncryption"] == "AES256"
    wrong = CliRunner().invoke(
        main, ["convert", str(tree), str(tmp_path / "ds"), "--encryption", "AES256"]
    )
    assert wrong.exit_code == 2
    assert "s3://" in wrong.stderr


def test_the_work_is_encrypted_and_of_the_common_class(tree, s3):
    seen = []

    def look(phase, done, total):
        if not seen:
            store = s3.store()
            name = next(e.name for e in store.entries(".work/") if e.name.endswith(".run"))
            seen.append(store.client.head_object(Bucket=store.bucket, Key=store.key(name)))

    options = s3.options(storage_class="STANDARD_IA", encryption="AES256")
    convert(str(tree), s3.uri, CONFIG, workers=1, progress=look, options=options)
    assert seen[0]["ServerSideEncryption"] == "AES256"
    assert seen[0].get("StorageClass", "STANDARD") == "STANDARD"


def test_a_tree_on_a_disk_and_one_in_a_store_are_one_source(tree, table, s3, tmp_path):
    made = tiny_counterfactuals(table, pairs=10)
    extra = write_tree(tmp_path / "made", made, files_per_split=1)
    convert([str(tree), str(extra)], str(tmp_path / "ds"), CONFIG, workers=1)
    store = S3Store(f"{s3.uri}-source/made", s3.options())
    put_tree(store, extra)
    report = convert([store.uri, str(tree)], s3.uri, CONFIG, workers=1, options=s3.options())
    assert report["accepted"] == 119 + 20
    files, local = contents(s3), contents(tmp_path / "ds")
    assert without_groups(without_source(files)) == without_groups(without_source(local))
    against = [str(tree), store.uri]
    again = verify(s3.uri, against=against, sample=None, options=s3.options(), workers=1)
    assert (again["ok"], again["compared"]) == (True, 139)
    with pytest.raises(ConfigError, match="is named twice"):
        convert([store.uri, f"{store.uri}/"], str(tmp_path / "x"), CONFIG, options=s3.options())
