"""Several processes on the CPU, started by torchrun as a user would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lensprep.configfile import to_toml
from lensprep.dataset import Dataset
from lensprep.errors import ConfigError
from lenstrain.data import StampLoader
from lenstrain.networks.finder import build_model
from lenstrain.training import distributed
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.distributed import (
    Context,
    LostProcessError,
    choose_device,
    is_lost,
    launch_id,
    process_group,
)
from lenstrain.training.resume import is_own_restart
from lenstrain.training.run import check_input
from lenstrain.training.train import train
from lenstrain.training.validate import score_split
from tests.waiting import wait_until

# Group norm, because batch norm sees a process's part of the batch; no dropout, whose draws differ.
SAME = ("model.norm=group", "optim.ema_decay=0.9")


def slow(test):
    """Minutes, and many times that on a busy machine."""
    return pytest.mark.slow(pytest.mark.timeout(1500)(test))


def launch(processes, dataset, config, out, *options, agent=(), **popen):
    path = Path(out).with_suffix(".toml")
    path.write_text(to_toml(config))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), *agent, "-m", "lenstrain", "train", dataset, "--config", str(path),
        "--out", str(out), *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def launch_tasks(processes, dataset, config, folder, *tasks):
    """Start `ranks.py` on several processes; gives (status, standard error)."""
    path = folder / "config.toml"
    path.write_text(to_toml(config))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), "-m", "tests.lenstrain.training.ranks", dataset, path, folder, *tasks,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stderr


def results(folder, task, processes):
    return [json.loads((folder / f"{task}-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone_scores(dataset, make_config):
    torch.manual_seed(5)
    model = build_model(make_config(*SAME).model).eval()
    loader = StampLoader(dataset, "val", 18, shuffle=None)
    return score_split(model, loader, 40, Context(device=torch.device("cpu")))


def assert_same_sorted_logits(alone, found):
    logits, labels = alone
    assert len({tuple(each["logits"]) for each in found}) == 1  # every process has all of them
    assert found[0]["labels"] == labels.tolist()
    other = np.array(found[0]["logits"], np.float32)
    np.testing.assert_allclose(other, logits, rtol=1e-6, atol=1e-6)  # row by row, by position
    np.testing.assert_allclose(np.sort(other), np.sort(logits), rtol=1e-6, atol=1e-6)


def assert_same_bits(one, other):
    first, second = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (one, other))
    for part in ("model", "ema"):
        for name, value in first[part].items():
            assert torch.equal(second[part][name], value), name
    for a, b in zip(first["rng"], second["rng"], strict=True):
        assert torch.equal(a["torch"], b["torch"])
    assert len({tuple(each["torch"].tolist()) for each in first["rng"]}) == 2  # each its own


@pytest.mark.slow
def test_two_processes_decide_as_one_and_none_waits_for_ever(
    alone_scores, dataset, make_config, tmp_path
):
    """Same sorted logits; resumed to the same bits; one decision to stop; one state to go on from;
    one without data, or with an error, ends all.
    """
    config = make_config(*SAME, "train.log_every=1", "train.timeout_minutes=5")
    status, err = launch_tasks(
        2, dataset, config, tmp_path,
        "scores", "resumed", "stop", "state", "refused", "away", "unreadable", "fail",
    )  # fmt: skip
    found = results(tmp_path, "scores", 2)
    assert_same_sorted_logits(alone_scores, found)
    for result in results(tmp_path, "resumed", 2):
        assert result == {"cut": ["interrupted", 5], "whole": ["completed", 16]}
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")
    for result in results(tmp_path, "stop", 2):
        assert (result["status"], result["epochs"]) == ("stopped", 2)
        assert result["validation"] == results(tmp_path, "stop", 2)[0]["validation"]
    for result in results(tmp_path, "state", 2):
        assert result == {"step": 16, "run": str(tmp_path / "cut"), "made": False}
    for result in results(tmp_path, "refused", 2):
        assert "exists and is not empty" in result["error"]
    for result, number in zip(results(tmp_path, "away", 2), (None, 15), strict=True):
        assert (result["status"], result["signal"], result["step"]) == ("interrupted", number, 3)
    main, other = results(tmp_path, "unreadable", 2)
    assert (main["status"], main["step"]) == ("interrupted", 3)
    assert other == {"error": "the store of process 1 is gone"}
    for run in ("away", "unreadable"):
        assert load_checkpoint(tmp_path / run / "checkpoints" / "last.pt")["step"] == 3
    assert status != 0
    assert "ZeroDivisionError: an error of process 1" in err
    assert not list(tmp_path.glob("fail-*.json"))


@slow
def test_one_process_without_memory_ends_all_and_the_last_checkpoint_stays(
    dataset, make_config, tmp_path
):
    """In the second of two epochs of 8 steps; process 0 waits for the other in its step."""
    status, err = launch_tasks(2, dataset, make_config(*SAME), tmp_path, "memory")
    assert status != 0
    assert "OutOfMemoryError: Training with data.batch_size=12 ran out of memory on this" in err
    assert not list(tmp_path.glob("memory-*.json"))
    assert load_checkpoint(tmp_path / "memory" / "checkpoints" / "last.pt")["step"] == 8


@slow
def test_three_processes_score_every_row_once(alone_scores, dataset, make_config, tmp_path):
    """40 rows in batches of 18 on three processes: the last one is mostly filled."""
    status, err = launch_tasks(3, dataset, make_config(*SAME), tmp_path, "scores")
    assert status == 0, err
    assert_same_sorted_logits(alone_scores, results(tmp_path, "scores", 3))


def finish(process, timeout=1200):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def records(run, kind):
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def assert_same_course(one, many):
    for kind, names in (
        ("interval", ("loss", "lr", "grad_norm")),
        ("epoch", ("train_loss", "nll", "auroc")),
    ):
        first, second = records(one, kind), records(many, kind)
        assert [r["step"] for r in first] == [r["step"] for r in second]
        for a, b in zip(first, second, strict=True):
            for name in names:
                assert b[name] == pytest.approx(a[name], rel=2e-4), (kind, name)


def test_two_processes_take_the_same_course_as_one(dataset, make_config, tmp_path):
    config = make_config(*SAME)
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    train(dataset, config, alone)
    status, out, err = finish(launch(2, dataset, config, pair, "--json"), timeout=240)
    assert status == 0, err
    assert json.loads(out)["status"] == "completed"  # one object, from the first process
    assert_same_course(alone, pair)
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (alone, pair))
    assert one["loader"] == two["loader"]
    assert len(two["rng"]) == 2
    for name, value in one["ema"].items():
        torch.testing.assert_close(two["ema"][name], value, rtol=1e-3, atol=1e-4)


@slow
def test_three_processes_take_the_same_course_as_one(dataset, make_config, tmp_path):
    config = make_config(*SAME, "optim.accumulate=2")
    train(dataset, config, tmp_path / "alone")
    status, _, err = finish(launch(3, dataset, config, tmp_path / "three"))
    assert status == 0, err
    assert_same_course(tmp_path / "alone", tmp_path / "three")


@slow
def test_a_run_of_three_processes_goes_on_with_two_and_then_one(dataset, make_config, tmp_path):
    """Cut off in mid-epoch on three processes, resumed on two, finished on one."""
    config = make_config(*SAME, "train.epochs=60", "train.log_every=1")
    train(dataset, config, tmp_path / "alone")
    out = tmp_path / "many"
    done = 0
    for processes in (3, 2):
        process = launch(processes, dataset, config, out, "--resume", start_new_session=True)
        lines = out / "metrics.jsonl"
        deadline = time.monotonic() + 600
        while not lines.exists() or len(lines.read_text().splitlines()) <= done + 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        finish(process)
        state = load_checkpoint(out / "checkpoints" / "last.pt")
        assert len(state["rng"]) == processes
        assert state["step"] >= done
        done = state["step"]
    assert 0 < done < 480
    train(dataset, config, out, resume=True)
    assert_same_course_loosely(tmp_path / "alone", out)


def assert_same_course_loosely(one, many):
    """Rounding grows over hundreds of steps; a lost or repeated batch would show at once."""
    first, second = records(one, "interval"), records(many, "interval")
    assert [r["step"] for r in second] == [r["step"] for r in first]
    for a, b in zip(first[:60], second[:60], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-2)


@slow
def test_when_one_process_is_killed_all_end_and_say_so(dataset, make_config, tmp_path):
    config = make_config(*SAME, "train.epochs=100000", "train.timeout_minutes=0.5")
    out = tmp_path / "run"
    process = launch(2, dataset, config, out, start_new_session=True)
    wait_until((out / "checkpoints" / "last.pt").exists)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    status, _, err = finish(process)
    assert status != 0
    assert "SIGKILL" in err or "exitcode" in err
    for child in children:
        assert not Path(f"/proc/{child}").exists()


@slow
def test_bad_input_ends_all_processes_and_leaves_nothing(dataset, make_config, tmp_path):
    config = make_config("data.batch_size=13")
    status, _, err = finish(launch(2, dataset, config, tmp_path / "run"))
    assert status != 0
    assert "cannot be divided among 2 processes" in err
    assert not (tmp_path / "run").exists()


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, "


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
        "[127.0.0.1]:10895",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [10.0.0.2]:25266: "
        "Connection reset by peer",
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms "
        "for recv operation to complete",
        "Application timeout caused pair closure",
        "wait timeout after 300000ms, keys: /attempt-0/seat1",
        "The client socket has timed out after 60000ms while trying to connect to (node1, 29500).",
        "Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown "
        "or crash?",
        "[PG ID 0 PG GUID 0(default_pg) Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=31, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for "
        "600029 milliseconds before timing out.",
        "NCCL communicator was aborted on rank 1.",
        NCCL + "remote process exited or there was a network error, NCCL version 2.21.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer n2",
        NCCL + "internal error - please report this issue to the NCCL developers, NCCL version "
        "2.14.3\nncclInternalError: Internal check failed.\nLast error:\n"
        "Net : Connection closed by remote peer user<50260>",
    ],
)  # fmt: skip
def test_a_process_that_has_gone_is_known_by_what_gloo_and_nccl_say(message):
    assert is_lost(RuntimeError(message))


@pytest.mark.parametrize(
    "message",
    [
        NCCL + "invalid argument, NCCL version 2.28.9\nncclInvalidArgument: Invalid value for an "
        "argument.\nLast error:\nBroadcast : invalid root 2 (root should be in the 0..2 range)",
        NCCL + "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.28.9\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device ac000",
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
        "Cuda failure 2 'out of memory'",
        NCCL + "unhandled system error, NCCL version 2.21.5\nncclSystemError: System call (e.g. "
        "socket, malloc) or external library call failed or device error. \nLast error:\n"
        "Error while creating shared memory segment /dev/shm/nccl-OQzaVd (size 9637888)",
        "Tensors must be CUDA and dense, but NCCL was asked for a CPU tensor",
        "The server socket has failed to listen on any local network address. port: 29500, "
        "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        "CUDA error: device-side assert triggered",
        "CUDA error: the launch timed out and was terminated",
    ],
)  # fmt: skip
def test_an_error_that_merely_names_nccl_or_a_time_is_no_lost_process(message):
    assert not is_lost(RuntimeError(message))


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("[gloo/pair.cc:534] Connection closed by peer [::1]:9\nframe #0", LostProcessError,
         r"Process 0 of 1 gave up: .* 5 minutes \(.*closed by peer \[::1\]:9\)\. .* Go on\.$"),
        (NCCL + "invalid usage\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device a",
         ConfigError, "Process 0 of 1 has no GPU of its own"),
        (NCCL + "invalid argument, NCCL version 2.28.9", RuntimeError, "^NCCL error in"),
    ],
)  # fmt: skip
def test_what_ends_a_group_is_told_as_what_it_is(monkeypatch, message, kind, words):
    def fail():
        with process_group("cpu", 5.0, "Go on.") as context:
            assert context.grouped
            raise RuntimeError(message)

    kept = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(kept, 0, 1)]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(kind, match=words) as caught:
        fail()
    assert type(caught.value) is kind


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_an_error():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no GPU"):
        choose_device("cuda")


def test_batch_statistics_over_processes_are_refused_on_a_cpu(dataset, make_config):
    config = make_config("train.sync_batchnorm=true")
    pair = Context(device=torch.device("cpu"), world_size=2)
    with pytest.raises(ConfigError, match="sync_batchnorm works on GPUs only"):
        check_input(Dataset.open(dataset), config, pair)
    check_input(Dataset.open(dataset), config, Context(device=torch.device("cpu")))


def test_only_the_start_that_made_a_folder_goes_on_with_it_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    made_by = json.dumps({"launch": launch_id()})
    (tmp_path / "environment.json").write_text(made_by)
    assert not is_own_restart(tmp_path)  # not a restart
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_own_restart(tmp_path)
    assert not is_own_restart(tmp_path / "elsewhere")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert not is_own_restart(tmp_path)


def test_restarted_processes_find_nothing_of_their_dead_predecessors(monkeypatch):
    """The store of torchrun outlives a restart; in it lie the addresses of the dead."""
    kept, given = dist.HashStore(), []
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(kept, 0, 1)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **named: given.append(named))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with process_group("cpu", 1.0) as context:
            assert context.grouped
    before, after = (named["store"] for named in given)
    before.set("address", "here")
    assert before.check(["address"])
    assert not after.check(["address"])


@slow
@pytest.mark.parametrize("turn", range(2))  # what it guards against came in one of several
def test_torchrun_restarts_a_killed_process_and_the_run_goes_on(
    dataset, make_config, tmp_path, turn
):
    config = make_config(*SAME, "train.epochs=40", "train.log_every=1", "train.patience=0")
    out = tmp_path / "run"
    process = launch(2, dataset, config, out, agent=("--max-restarts", "2"))
    wait_until((out / "checkpoints" / "last.pt").exists, 600)
    first = process_of(out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    status, _, err = finish(process)
    assert status == 0, err
    assert process_of(out) != first  # it was started anew
    assert load_checkpoint(out / "checkpoints" / "last.pt")["epoch"] == 40
    train(dataset, config, tmp_path / "alone")
    assert_same_course_loosely(tmp_path / "alone", out)


@slow
def test_a_process_that_does_not_answer_is_given_up_with_a_clear_message(
    dataset, make_config, tmp_path
):
    config = make_config(*SAME, "train.epochs=100000", "train.timeout_minutes=0.1")
    out = tmp_path / "run"
    process = launch(2, dataset, config, out)
    wait_until((out / "checkpoints" / "last.pt").exists, 600)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    status, _, err = finish(process)
    assert status != 0
    assert "gave up: another one has ended, or did not answer within" in err
    assert "within 0.1 minutes" in err
    assert "from the last checkpoint with --resume" in err
    for child in children:
        assert not Path(f"/proc/{child}").exists()


def process_of(run):
    return json.loads((run / "environment.json").read_text())["process"]
