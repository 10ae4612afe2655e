"""Every location that a command takes may be in an object store, or is refused before any work."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import lensprep.cli
import lenstrain.cli
from lensprep.configfile import load_config, to_mapping
from lensprep.dataset import Dataset
from lensprep.dataset.writer import write_dataset
from lensprep.errors import DatasetError
from lensprep.store import open_store, read_file, send_file
from lensprep.tables.reader import read_table
from lensprep.terminal import LocalPath, Location
from lenstrain.config import Config
from lenstrain.data.weights import read_weights
from lenstrain.evaluation.scores import read_scores
from lenstrain.networks.finder import build_model
from lenstrain.scoring import origins
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import save_checkpoint
from tests.checkpoints import blank_content
from tests.lenstrain.probes.conftest import make_sample
from tests.probes import QUICK_SETS
from tests.s3server import Place

NO_PLACES = {
    "catalog_columns",
    "dataset_ids",
    "digest",
    "columns",
    "drop_columns",
    "encryption",
    "endpoint_url",
    "engine_name",
    "factors",
    "fractions",
    "grade_lens",
    "kinds",
    "kms_key_id",
    "left_out",
    "only",
    "overrides",
    "priors",
    "profile",
    "rates",
    "region",
    "scheduler",
    "split",
    "split_fractions",
    "splits",
    "storage_class",
    "where",
}
"""Options of text that name no file or folder. (Of left_out a part does, which is read as one.)"""
ON_A_DISK = {
    ("lensprep", "bench", "folder"),
    ("lensprep", "convert", "keep_local"),
    ("lensprep", "doctor", "disks"),
    ("lensprep", "download", "dataset"),
    ("lensprep", "upload", "dataset"),
    ("lenstrain", "cache clear", "folder"),
    ("lenstrain", "cache fill", "folder"),
    ("lenstrain", "cache status", "folder"),
    ("lenstrain", "cache verify", "folder"),
    ("lenstrain", "doctor", "disks"),
    ("lenstrain", "infer", "cache_dir"),
    ("lenstrain", "sweep", "study"),
}


def walk(group: click.Command, names: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from walk(command, (*names, name))
    else:
        yield " ".join(names), group


PARAMETERS = [
    pytest.param(program, name, command, parameter, id=f"{program} {name} {parameter.name}")
    for program, main in (
        ("lensprep", lensprep.cli.main),
        ("lenstrain", lenstrain.cli.main),
    )
    for name, command in walk(main)
    for parameter in command.params
]


@pytest.mark.parametrize(("program", "name", "command", "parameter"), PARAMETERS)
def test_every_parameter_that_names_a_place_has_the_type_of_one(program, name, command, parameter):
    kind = parameter.type
    if isinstance(kind, Location | LocalPath):
        assert isinstance(kind, LocalPath) == ((program, name, parameter.name) in ON_A_DISK)
        return
    assert not isinstance(parameter, click.Argument), "an argument names a place"
    assert not isinstance(kind, click.Path | click.File), "click's own type makes s3:/x of s3://x"
    if isinstance(kind, click.types.StringParamType):
        assert parameter.name in NO_PLACES, "say what it names: give it a type, or list it here"


def names_places(command: click.Command) -> bool:
    return any(type(parameter.type) is Location for parameter in command.params)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=f"{main.name} {name}")
        for main in (lensprep.cli.main, lenstrain.cli.main)
        for name, command in walk(main)
        if names_places(command)
    ],
)
def test_what_may_lie_in_a_store_comes_with_the_options_to_reach_it(command):
    assert {"endpoint_url", "profile", "region"} <= {p.name for p in command.params}


# ------------------------------------------------------------------ with a real object store


TINY = ("model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=24")


@pytest.fixture
def store(s3, monkeypatch, tmp_path):
    """A folder in a store, and the variables to reach it; the test runs in an empty folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    monkeypatch.chdir(tmp_path)
    yield s3
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("s3")]
    assert not left, "a store became a folder"


def names(place: Place, folder: str = "") -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [entry.name.removeprefix(prefix) for entry in place.store().entries(prefix)]


def call(main: click.Command, *arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + str(result.exception)
    return result.stdout if status == 0 else result.stderr


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A dataset that probes can be made on, and a checkpoint."""
    folder = tmp_path_factory.mktemp("sample")
    splits = {}
    for number, split in enumerate(("train", "val", "test")):
        made = make_sample(60, seed=number)
        keys = made.table["key"].to_pylist()
        table = made.table.append_column("task_id", pa.array([f"={key}" for key in keys]))
        splits[split] = (made.pixels, table)
    write_dataset(folder / "ds", splits, made.spec, shard_rows=40)
    config = load_config(Config, None, TINY)
    content = blank_content() | {
        "model": build_model(config.model).state_dict(),
        "config": to_mapping(config),
        "normalization": made.spec.to_dict(),
        "label_map": dict(Dataset.open(folder / "ds").manifest.label_map),
        "dataset_id": "trained-on-this",
        "versions": {"torch": "2"},
    }
    save_checkpoint(folder / "best.pt", content)
    return folder


def test_scores_are_made_judged_and_mined_in_a_store(store, sample):
    best = f"{store.uri}/run/checkpoints/best.pt"
    send_file(open_store(f"{store.uri}/run/checkpoints"), sample / "best.pt", "best.pt")
    call(lensprep.cli.main, "upload", sample / "ds", f"{store.uri}/ds")
    where = (best, f"{store.uri}/ds", "--device", "cpu")
    tables = []
    for suffix in (".parquet", ".csv", ".fits", ".vot"):
        out = f"{store.uri}/scores{suffix}"
        call(
            lenstrain.cli.main,
            "infer",
            *where,
            "--split",
            "test",
            "--member",
            best,
            "--out",
            out,
        )
        # CSV does not say who wrote it, and an untrained network gives logits like probabilities.
        tables.append(read_scores(out, scores_are="logit"))
    first, *others = tables
    for other in others:
        assert (other.logits == first.logits).all(), "to the last bit"
        assert (other.labels == first.labels).all()
        assert (other.region == first.region).all()
        for name in first.table.column_names:
            assert other.table[name].to_pylist() == first.table[name].to_pylist(), name
    assert others[1].metadata["checkpoint_sha256"] == first.metadata["checkpoint_sha256"]
    assert b",\"'=" in read_file(f"{store.uri}/scores.csv")  # a task_id that would be a formula
    assert not [name for name in names(store) if ".parts/" in name]
    lines = read_file(f"{store.uri}/run/test_ledger.jsonl").splitlines()
    assert len(lines) == 8  # two members, four times

    train = f"{store.uri}/train.parquet"
    call(lenstrain.cli.main, "infer", *where, "--split", "train", "--out", train)
    for suffix in (".parquet", ".csv.gz", ".fits", ".vot"):
        hard = f"{store.uri}/hard{suffix}"
        call(lenstrain.cli.main, "mine", train, "--out", hard, "--set", "fraction=0.2")
        keys = pa.array(read_table(train).table["key"].to_pylist())
        assert (read_weights(hard, keys) == 4).sum() >= 4


def test_interrupted_scoring_goes_on_from_the_parts_in_the_store(store, sample, monkeypatch):
    send_file(open_store(store.uri), sample / "best.pt", "best.pt")
    monkeypatch.setattr(origins, "PART_ROWS", 16)
    arguments = [f"{store.uri}/best.pt", sample / "ds"]
    kept = {"split": "test", "device": "cpu", "batch_size": 16, "out": f"{store.uri}/s.parquet"}

    def stop(done: int, total: int) -> None:
        if done > 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer(*arguments, progress=stop, **kept)
    assert names(store, ".s.parquet.parts")
    assert "s.parquet" not in names(store)
    result = infer(*arguments, **kept)
    assert result["resumed_rows"] == 32
    assert names(store) == ["best.pt", "s.parquet"]


@pytest.mark.faults  # its figures take seconds
def test_a_report_is_written_into_the_store(store, sample):
    scores = f"{store.uri}/scores.fits"
    call(lenstrain.cli.main, "infer", sample / "best.pt", sample / "ds", "--out", scores)
    report = f"{store.uri}/report"
    settings = ("--out", report, "--set", "resamples=100")
    call(lenstrain.cli.main, "evaluate", f"{store.uri}/scores.fits", *settings)
    assert {"metrics.json", "report.html", "completeness.parquet"} <= set(names(store, "report"))
    metrics = json.loads(read_file(f"{report}/metrics.json"))
    assert metrics["provenance"]["scores"] == f"{store.uri}/scores.fits"


@pytest.mark.faults  # its figures take 15 s
def test_a_probe_goes_beside_its_checkpoint_in_the_store(store, sample):
    send_file(open_store(f"{store.uri}/run/checkpoints"), sample / "best.pt", "best.pt")
    best = f"{store.uri}/run/checkpoints/best.pt"
    options = ("--json", "--device", "cpu", *QUICK_SETS)
    content = json.loads(call(lenstrain.cli.main, "probe", best, sample / "ds", *options))
    assert content["report"] == f"{store.uri}/run/probe/probe.html"
    assert content["checkpoint"] == best
    assert {"probe.html", "probe.json", "figures/d4.csv"} <= set(names(store, "run/probe"))


@pytest.mark.faults  # decoders of their own take seconds to start
def test_stamps_that_must_be_decoded_are_read_from_the_store(store, sample, tmp_path):
    pytest.importorskip("lenstronomy")
    send_file(open_store(store.uri), sample / "best.pt", "best.pt")
    best, tree = f"{store.uri}/best.pt", f"{store.uri}/tree"
    call(lensprep.cli.main, "synth", tree, "--rows", 24, "--regions", 3, "--workers", 1)
    call(
        lenstrain.cli.main,
        "infer",
        best,
        tree,
        "--out",
        f"{store.uri}/tree.csv",
        "--workers",
        1,
    )
    assert read_table(f"{store.uri}/tree.csv").table.num_rows > 0

    cutouts, report = open_store(f"{store.uri}/cutouts"), f"{store.uri}/report"
    rng = np.random.default_rng(0)
    lines = ["key,ra,dec,label,region_id"]
    for number in range(12):
        stamp = io.BytesIO()
        np.savez(stamp, cutout=rng.normal(size=(3, 64, 64)).astype(np.float32))
        cutouts.write(f"'=c{number}.npz", stamp.getvalue())
        lines.append(f"''=c{number},{number},1.0,{number % 2},{number // 3}")
    open_store(store.uri).write("positions.csv", "\n".join(lines).encode())
    scores = f"{store.uri}/mine.fits"
    positions = ("--catalog", f"{store.uri}/positions.csv", "--workers", 1)
    call(lenstrain.cli.main, "infer", best, cutouts.uri, *positions, "--out", scores)
    found = read_table(scores)
    assert found.metadata["dataset"] == cutouts.uri
    assert found.metadata["source"]["catalog"] == f"{store.uri}/positions.csv"
    assert found.table["key"][0].as_py() == "'=c0"
    lines = [
        "file,ra,dec",
        *(f"{cutouts.uri}/'=c{number}.npz,{number},1.0" for number in range(12)),
    ]
    open_store(store.uri).write("files.csv", "\n".join(lines).encode())
    again, files = f"{store.uri}/again.csv", ("--catalog", f"{store.uri}/files.csv")
    call(lenstrain.cli.main, "infer", best, cutouts.uri, *files, "--out", again, "--workers", 1)
    assert read_table(again).table["logit"].to_pylist() == pytest.approx(
        found.table["logit"].to_pylist()
    )
    with pytest.raises(DatasetError, match="it is a folder of cutouts"):
        infer(best, cutouts.uri, out=again)
    call(lenstrain.cli.main, "evaluate", scores, "--out", report, "--set", "resamples=100")
    notes = json.loads(read_file(f"{report}/metrics.json"))["notes"]
    assert not [note for note in notes if "No example stamps" in note["text"]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf"])
def test_a_montage_is_what_its_suffix_says_here_and_in_a_store(store, sample, tmp_path, suffix):
    begin = {"png": b"\x89PNG", "jpg": b"\xff\xd8\xff", "pdf": b"%PDF"}[suffix]
    for out in (tmp_path / f"m.{suffix}", f"{store.uri}/sub/m.{suffix}"):
        call(lensprep.cli.main, "inspect", sample / "ds", "--montage", out, "--count", 4)
        assert read_file(out).startswith(begin)


def test_a_synthetic_tree_is_made_in_a_store_with_its_marker(store):
    pytest.importorskip("lenstronomy")
    out = f"{store.uri}/tree"
    arguments = ("synth", out, "--rows", 24, "--regions", 3, "--workers", 1)
    made = json.loads(call(lensprep.cli.main, *arguments, "--json"))
    assert made["out"] == out
    assert any(name.endswith("/_SUCCESS") for name in names(store, "tree"))
    assert json.loads(call(lensprep.cli.main, "check", out, "--json"))["rows"] == 24
    assert "is not empty" in call(lensprep.cli.main, *arguments, status=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cache", "fill", "DS", "--dir", "STORE/cache"),
        ("cache", "status", "--dir", "STORE/cache"),
        ("infer", "x.pt", "DS", "--out", "x.parquet", "--cache-dir", "STORE/cache"),
        ("sweep", "DS", "--config", "x.toml", "--study", "STORE/sweep.db"),
        ("train", "DS", "--out", "x", "--set", "data.cache_dir=STORE/cache"),
        ("infer", "x.pt", "DS", "--out", "STORE/x.txt"),
        ("infer", "x.pt", "DS", "--out", "STORE/x"),
        ("mine", "x.parquet", "--out", "x.json"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_any_work(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"STORE": "s3://bucket", "DS": "s3://bucket/ds"}
    given = [re.sub("STORE|DS", lambda found: places[found[0]], text) for text in arguments]
    result = CliRunner().invoke(lenstrain.cli.main, given)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    option = next(each for each in ("--dir", "--cache-dir", "--study", "cache_dir", "--out")
                   if any(each in text for text in arguments))  # fmt: skip
    assert option in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["m.svg", "m", "s3://bucket/m.txt"])
def test_a_picture_of_another_kind_is_refused_before_anything_is_read(out):
    line = call(lensprep.cli.main, "inspect", "/nowhere", "--montage", out, status=2)
    assert ".png, .jpg, .jpeg, .pdf" in line


def test_a_place_that_refuses_is_told_before_the_scoring(sample, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "s.parquet", tmp_path / "file" / "deep" / "s.csv"):
        line = call(
            lenstrain.cli.main,
            "infer",
            tmp_path / "no.pt",
            sample / "ds",
            "--out",
            out,
            status=1,
        )
        assert "file is a file" in line  # and not that there is no such checkpoint
