"""The whole program on a small dataset: what it leaves, what it refuses, and how it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from lensprep.configfile import load_config, to_mapping, to_toml
from lensprep.dataset import PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.errors import CheckpointError, ConfigError, DatasetError, StorageError
from lenstrain.config import Config
from lenstrain.training.checkpoint import load_checkpoint, load_model
from lenstrain.training.distributed import Context
from lenstrain.training.resume import differing
from lenstrain.training.run import build_run
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import NonFiniteLossError, close_interval, train, train_epoch
from tests.boards import Board
from tests.datasets import tiny_dataset
from tests.lenstrain.training.waits import HostReads

CPU = Context(device=torch.device("cpu"))

TIMES = ("samples_per_s", "data_wait_share", "validation_seconds")


def records(run):
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def stop_at(step, number=signal.SIGTERM):
    """A progress callback that sends this process a signal after a step of the first epochs."""
    seen = 0

    def progress(event):
        nonlocal seen
        if event.stage == "train":
            seen += 1
            if seen == step:
                os.kill(os.getpid(), number)

    return progress


def raise_at(stage, count):
    """A progress callback that ends the run there and then, as a kill would."""
    seen = iter(range(1, 1000))

    def progress(event):
        if event.stage == stage and next(seen) == count:
            raise InterruptedError

    return progress


def assert_equal(first, second, path=""):
    """Bit-equal states, whatever they are nested in; times are not part of a state."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    else:
        assert first == second, path


@pytest.fixture(scope="module")
def finished(dataset, make_config, tmp_path_factory):
    """A straight run of two epochs of eight steps, with everything that has a state."""
    config = make_config("optim.ema_decay=0.9", "model.dropout=0.2")
    out = tmp_path_factory.mktemp("run") / "straight"
    return config, out, train(dataset, config, out)


def test_a_run_folder_holds_what_it_promises(finished, dataset):
    config, out, result = finished
    assert result["status"] == "completed"
    assert (result["epochs"], result["step"]) == (2, 16)
    assert load_config(Config, out / "config.toml") == config
    environment = json.loads((out / "environment.json").read_text())
    assert environment["dataset_id"] == Dataset.open(dataset).dataset_id
    assert environment["steps_per_epoch"] == 8
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    kinds = [(r["kind"], r["step"]) for r in records(out)]
    intervals = [("interval", s) for s in (3, 6, 9, 12, 15)]
    assert sorted(kinds) == sorted([*intervals, ("epoch", 8), ("epoch", 16)])
    checkpoints = {path.name for path in (out / "checkpoints").iterdir()}
    assert {"last.pt", "best.pt", "best-nll.pt", "previous.pt"} <= checkpoints
    assert not list(out.rglob("*.partial"))


def test_tensorboard_shows_the_same_numbers(finished):
    _, out, _ = finished
    shown = Board(out / "tensorboard").scalars()["epoch/auroc"]
    epochs = [r for r in records(out) if r["kind"] == "epoch"]
    for (step, value), record in zip(shown, epochs, strict=True):
        assert step == record["step"]
        assert value == pytest.approx(record["auroc"], rel=1e-6)


def test_a_checkpoint_says_what_it_is(finished, dataset):
    config, out, _ = finished
    content = load_checkpoint(out / "checkpoints" / "last.pt")
    manifest = Dataset.open(dataset).manifest
    assert content["dataset_id"] == manifest.dataset_id
    assert content["normalization"] == manifest.normalization.to_dict()
    assert content["label_map"] == manifest.label_map
    assert content["epoch"] == 2
    assert content["scheduler"] == {"updates": 16, "total_updates": 16}
    assert content["config"]["optim"]["ema_decay"] == config.optim.ema_decay
    assert content["loader"]["epoch"] == 2
    model, meta = load_model(out / "checkpoints" / "best.pt")
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2,)
    assert meta["metrics"]["auroc"] == records(out)[-1]["best_auroc"]


def test_a_ring_is_learnt(dataset, make_config, tmp_path):
    config = make_config("train.epochs=8", "optim.lr=5e-3", "model.width=16")
    result = train(dataset, config, tmp_path / "run")
    assert result["best_value"] > 0.9
    losses = [r["train_loss"] for r in records(tmp_path / "run") if r["kind"] == "epoch"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_a_run_that_is_cut_off_and_resumed_ends_in_the_same_bits(finished, dataset, tmp_path, step):
    config, straight, _ = finished
    out = tmp_path / "cut"
    first = train(dataset, config, out, progress=stop_at(step))
    assert first["status"] == "interrupted"
    assert first["signal"] == signal.SIGTERM
    assert first["step"] == step
    note = json.loads((out / "interrupted.json").read_text())
    assert note == {"signal": "SIGTERM", "step": step}
    second = train(dataset, config, out, resume=True)
    assert second["status"] == "completed"
    assert not (out / "interrupted.json").exists()
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (straight, out))
    for content in (one, two):
        del content["versions"], content["git_commit"]
    assert_equal(one, two)
    assert records(straight) == records(out)


def test_a_run_cut_off_while_it_validates_goes_on_with_that_validation(finished, dataset, tmp_path):
    config, straight, _ = finished
    out = tmp_path / "cut"

    def progress(event):
        if event.stage == "validate" and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(dataset, config, out, progress=progress)
    assert first["status"] == "interrupted"
    assert (first["epochs"], first["step"]) == (0, 8)
    assert load_checkpoint(out / "checkpoints" / "last.pt")["loader"]["step"] == 8
    assert train(dataset, config, out, resume=True)["status"] == "completed"
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (straight, out))
    assert_equal(one, two)
    assert records(straight) == records(out)


def test_a_damaged_last_checkpoint_costs_its_steps_and_nothing_else(finished, dataset, tmp_path):
    config, straight, _ = finished
    out = tmp_path / "cut"
    assert train(dataset, config, out, progress=stop_at(11))["step"] == 11
    last = out / "checkpoints" / "last.pt"
    data = bytearray(last.read_bytes())
    data[data.index(load_checkpoint(last)["model"]["head.weight"].numpy().tobytes())] ^= 1
    last.unlink()  # best.pt may be the same file
    last.write_bytes(data)
    with pytest.warns(UserWarning, match="Falling back"):
        again = train(dataset, config, out, resume=True, progress=stop_at(1))
    assert again["step"] == 9  # from the end of the first epoch
    assert load_checkpoint(out / "checkpoints" / "previous.pt")["step"] == 8
    assert train(dataset, config, out, resume=True)["status"] == "completed"
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (straight, out))
    assert_equal(one, two)
    assert records(straight) == records(out)


def scalars(run):
    """What TensorBoard shows of a run: every scalar with its steps and values."""
    shown = Board(run / "tensorboard").scalars()
    return {tag: found for tag, found in shown.items() if not tag.endswith(TIMES)}


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_tensorboard_of_a_resumed_run_shows_what_that_of_a_straight_one_does(
    finished, dataset, tmp_path, how
):
    """Killed after step 9, it goes on from 8, where the epoch's own numbers stand."""
    config, straight, _ = finished
    out = tmp_path / "cut"
    if how == "killed":
        with pytest.raises(InterruptedError):
            train(dataset, config, out, progress=raise_at("train", 9))
    else:
        train(dataset, config, out, progress=stop_at(9))
    assert train(dataset, config, out, resume=True)["status"] == "completed"
    assert scalars(out) == scalars(straight)


def test_an_epoch_that_was_logged_and_not_saved_is_logged_once(finished, dataset, tmp_path):
    """Stopped in a validation, resumed, and killed between the record and the checkpoint."""
    config, straight, _ = finished
    out = tmp_path / "cut"

    def stop(event):
        if event.stage == "validate":
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(dataset, config, out, progress=stop)["status"] == "interrupted"
    with pytest.raises(InterruptedError):
        train(dataset, config, out, resume=True, progress=raise_at("epoch", 1))
    assert train(dataset, config, out, resume=True)["status"] == "completed"
    assert records(straight) == records(out)


def test_a_run_killed_before_its_checkpoint_had_all_names_gives_it_them(
    finished, dataset, tmp_path
):
    """last.pt was written, and best.pt was still that of an earlier epoch."""
    config, run, _ = finished
    out = shutil.copytree(run, tmp_path / "killed")
    last = load_checkpoint(out / "checkpoints/last.pt")
    own = [n for n, e in last["stopper"]["best_epoch"].items() if e == last["epoch"]]
    assert own
    names = [f"best-{name}.pt" for name in own]
    for name in names:
        (out / "checkpoints" / name).write_bytes(b"an earlier one")
    train(dataset, config, out, resume=True)
    for name in names:
        assert load_checkpoint(out / "checkpoints" / name)["step"] == last["step"]


def test_nothing_waits_between_two_lines_of_the_log(dataset, make_config, tmp_path):
    """The whole loop, with loader, augmentation, several parts, average and signals."""
    config = make_config(
        "train.log_every=1000", "optim.ema_decay=0.9", "optim.accumulate=2", "data.shift_px=2"
    )
    run = build_run(Dataset.open(dataset), config, tmp_path, CPU, lambda event: None)
    train_epoch(run, StopSignals())
    run.epochs_done += 1  # the optimiser's first step has made its state
    with HostReads() as reads:
        train_epoch(run, StopSignals())
    assert run.learner.steps == 16
    assert reads.found == []
    with HostReads() as reads:
        close_interval(run)
    assert reads.found  # the one wait of an interval
    run.close()


def test_equal_seeds_give_equal_runs_and_others_do_not(finished, dataset, make_config, tmp_path):
    config, straight, _ = finished
    overrides = ("optim.ema_decay=0.9", "model.dropout=0.2", "train.seed=1")
    train(dataset, config, tmp_path / "same", announce=True)  # which leaves no trace in it
    train(dataset, make_config(*overrides), tmp_path / "other")
    one, same = (
        load_checkpoint(r / "checkpoints" / "last.pt") for r in (straight, tmp_path / "same")
    )
    assert_equal(one, same)
    assert records(tmp_path / "same") == records(straight)
    assert records(tmp_path / "other") != records(straight)


def test_a_finished_run_is_not_trained_again(finished, dataset):
    config, out, result = finished
    before = (out / "checkpoints" / "last.pt").read_bytes()
    again = train(dataset, config, out, resume=True)
    assert again["status"] == "completed"
    assert again["best_value"] == result["best_value"]
    assert again["validation"] == result["validation"]
    assert (out / "checkpoints" / "last.pt").read_bytes() == before


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(dataset, make_config, tmp_path):
    # With a rate this small nothing moves the ranking, so that the second epoch is no gain.
    config = make_config(
        "train.epochs=9", "train.patience=2", "optim.lr=1e-12", "optim.min_lr=1e-13",
        "optim.weight_decay=0", "model.norm=group",
    )  # fmt: skip
    result = train(dataset, config, tmp_path / "run")
    assert result["status"] == "stopped"
    assert result["epochs"] == 3
    assert result["best_epoch"] == 1
    again = train(dataset, config, tmp_path / "run", resume=True)
    assert (again["status"], again["epochs"]) == ("stopped", 3)


def poison(root, split, row):
    """Put a NaN into the centre of a stored stamp, below any check of the conversion."""
    shard = Dataset.open(root).split(split).shards[0]
    path = Path(root) / shard.name
    nan = np.array([np.nan], "<f2").tobytes()
    with path.open("r+b") as file:
        file.seek(row * RECORD_STRIDE + PAYLOAD_OFFSET + 2 * (32 * 64 + 32))
        file.write(nan)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(make_config, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 60, "val": 20}, shard_rows=64)
    poison(root, "train", 17)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"nonfinite\.json"):
        train(str(root), make_config("train.log_every=1"), out)
    rows = json.loads((out / "nonfinite.json").read_text())["rows"]
    assert len(rows) == 12
    bad = [row for row in rows if not row["finite_pixels"]]
    assert [row["index"] for row in bad] == [17]
    keys = Dataset.open(root).read_sidecar("train", ["key"])["key"].to_pylist()
    assert bad[0]["key"] == keys[17]
    assert not list((out / "checkpoints").iterdir())  # nothing was saved after it


def test_no_checkpoint_is_written_after_a_bad_loss_even_between_lines(make_config, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 60, "val": 20}, shard_rows=64)
    poison(root, "train", 17)
    config = make_config("train.log_every=100", "train.checkpoint_minutes=1e-9")
    with pytest.raises(NonFiniteLossError):
        train(str(root), config, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    if last.exists():
        state = load_checkpoint(last)["model"]
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


@pytest.mark.parametrize("key", ["optim.lr=1e-3", "data.batch_size=6", "train.epochs=5"])
def test_a_run_is_not_resumed_with_another_configuration(finished, dataset, key):
    config, out, _ = finished
    name = key.split("=")[0]
    changed = load_config(Config, out / "config.toml", [key])
    with pytest.raises(CheckpointError, match=rf"was started with {name} = "):
        train(dataset, changed, out, resume=True)
    assert load_config(Config, out / "config.toml") == config


def test_a_run_begun_before_a_key_was_added_is_resumed_with_its_default(finished):
    config, _, _ = finished
    now = to_mapping(config)
    before = now | {"data": {key: value for key, value in now["data"].items() if key != "d4"}}
    assert list(differing(before, now)) == []
    changed = now | {"data": now["data"] | {"d4": not now["data"]["d4"]}}
    assert list(differing(before, changed)) == [
        ("data.d4", now["data"]["d4"], not now["data"]["d4"])
    ]


def test_a_run_is_not_resumed_on_another_dataset(finished, tmp_path):
    config, out, _ = finished
    rows = {"train": 90, "val": 40}
    other = tiny_dataset(tmp_path, rows, shard_rows=32, signal=True, seed=9)
    with pytest.raises(CheckpointError, match="was trained on dataset"):
        train(str(other), config, out, resume=True)


def test_bad_input_is_refused_and_leaves_no_run_folder(dataset, make_config, tmp_path):
    out = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (str(tmp_path / "none"), make_config(), DatasetError, "no such dataset"),
        (str(empty), make_config(), DatasetError, "has no manifest.json"),
        (dataset, make_config("data.where=no_such_column > 1"), Exception, "no_such_column"),
        (
            dataset,
            make_config("data.where=label == 0 or theta_e_arcsec > 9"),
            ConfigError,
            "no lens left with data.where = 'label == 0 or theta_e_arcsec > 9'",
        ),
        (dataset, make_config("data.limit=1"), ConfigError, "no lens left with data.limit = 1"),
        (dataset, make_config("model.weights=/no/such.pt"), CheckpointError, "no such checkpoint"),
        (dataset, make_config("data.batch_size=100", "data.drop_last=true"), ConfigError, "batch"),
    ]
    for uri, config, error, message in cases:
        with pytest.raises(error, match=message):
            train(uri, config, out)
        assert not out.exists()


def test_a_split_of_one_class_is_refused(make_config, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 20, "val": 1})
    with pytest.raises(DatasetError, match="split 'val' has no lenses"):
        train(str(root), make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_and_not_touched(dataset, make_config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty"):
        train(dataset, make_config(), out)
    with pytest.raises(StorageError, match="not the folder of a run"):
        train(dataset, make_config(), out, resume=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        train(dataset, make_config(), tmp_path / "file")


def test_resume_of_a_folder_that_is_not_there_starts_the_run(dataset, make_config, tmp_path):
    result = train(dataset, make_config("train.epochs=1"), tmp_path / "new", resume=True)
    assert result["status"] == "completed"


def test_training_on_a_part_and_balanced(dataset, make_config, tmp_path):
    config = make_config("train.epochs=1", "data.limit=30", "data.sampling=balanced")
    result = train(dataset, config, tmp_path / "run")
    assert result["step"] == 3


def test_options_of_precision_and_layout_run_on_a_cpu(dataset, make_config, tmp_path):
    for number, overrides in enumerate(
        [
            ("train.amp=bf16",),
            ("train.channels_last=false", "data.d4=false", "data.shift_px=2"),
            ("loss.name=focal", "loss.label_smoothing=0.1", "optim.accumulate=3"),
        ]
    ):
        out = tmp_path / str(number)
        result = train(dataset, make_config("train.epochs=1", *overrides), out)
        assert np.isfinite(result["validation"]["nll"])


def test_fp16_on_a_cpu_is_refused_before_the_folder_is_made(dataset, make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"a step can take minutes\. Set train\.amp=auto"):
        train(dataset, make_config("train.amp=fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_compiled_run_takes_the_plain_course_and_is_resumed_to_the_same_bits(
    dataset, make_config, tmp_path
):
    overrides = ("optim.ema_decay=0.9", "optim.accumulate=2", "train.compile=true")
    config = make_config(*overrides)
    plain, straight, cut = (tmp_path / name for name in ("plain", "straight", "cut"))
    train(dataset, make_config(*overrides[:2]), plain)
    train(dataset, config, straight)
    assert train(dataset, config, cut, progress=stop_at(5))["step"] == 5
    assert train(dataset, config, cut, resume=True)["status"] == "completed"
    states = [load_checkpoint(run / "checkpoints" / "last.pt") for run in (plain, straight, cut)]
    assert_equal(states[1], states[2])
    assert states[0]["model"].keys() == states[1]["model"].keys()  # no trace of the compiler
    for a, b in zip(records(plain), records(straight), strict=True):
        for name in a.keys() & {"loss", "grad_norm", "train_loss", "nll", "auroc"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3), name
    model, _ = load_model(straight / "checkpoints" / "best.pt")
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2,)
    # A plain run may continue with the compiled one's checkpoint, and the other way round.
    assert train(dataset, make_config(*overrides[:2]), straight, resume=True)["step"] == 16


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_any_moment_and_resumed_ends_in_the_same_bits(dataset, make_config, tmp_path):
    """SIGKILL at random times, resumed until done, against a straight run."""
    config = make_config(
        "train.epochs=6", "train.checkpoint_minutes=1e-9", "optim.ema_decay=0.9",
        "model.dropout=0.2",
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    command = [sys.executable, "-m", "lenstrain", "train", dataset, "--config", str(path)]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run([*command, "--out", str(straight)], check=True, timeout=600)
    generator = np.random.default_rng(1)
    kills = 0
    while True:
        process = subprocess.Popen([*command, "--out", str(killed), "--resume"])
        begun = time.monotonic()
        # Wait until it has got somewhere, then a random moment longer.
        progress = killed / "checkpoints" / "last.pt"
        before = progress.stat().st_mtime_ns if progress.exists() else 0
        while process.poll() is None and time.monotonic() - begun < 300:
            if progress.exists() and progress.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(float(generator.uniform(0, 0.3)))
        if process.poll() is None and kills < 6:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.wait(timeout=600) == 0
        break
    assert kills >= 3
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (straight, killed))
    for content in (one, two):
        del content["git_commit"]
    assert_equal(one, two)
    assert records(straight) == records(killed)
    resolved = tomllib.loads((killed / "config.toml").read_text())
    assert resolved["train"]["epochs"] == 6
