"""GPUs that this machine lacks: torch's answers about them are given, what follows is real."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lensprep.errors import ConfigError
from lenstrain.training.distributed import choose_device
from lenstrain.training.gpus import (
    BUILD_FOR_OLD_GPUS,
    Seat,
    can_run,
    check_seats,
    find_seat,
)

CUDA_13 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
"""torch 2.14.1+cu130."""
CUDA_12_8 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
"""torch 2.7.1+cu128."""
CUDA_12_6 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
"""torch 2.7.1+cu126."""
CUDA_12_1 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
"""torch 2.4.1+cu121."""


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), CUDA_13, False),  # V100
        ((7, 0), CUDA_12_8, False),
        ((7, 0), CUDA_12_6, True),
        ((6, 1), CUDA_12_6, True),  # GTX 1080: code for 6.0
        ((6, 1), CUDA_13, False),
        ((3, 7), CUDA_12_6, False),  # K80
        ((7, 5), CUDA_13, True),
        ((8, 0), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # L4, RTX 4090: code for 8.6
        ((9, 0), CUDA_13, True),
        ((10, 3), CUDA_13, True),  # B300: code for 10.0
        ((12, 0), CUDA_12_1, False),  # RTX 5090, and no PTX
        ((12, 1), CUDA_12_8, True),
        ((13, 0), CUDA_12_8, True),  # not built yet; PTX of 12.0
        ((13, 0), CUDA_13, False),
        ((8, 0), "sm_86", False),  # code for a later minor version
        ((8, 0), "compute_86", False),
        ((9, 0), "compute_80", True),
        ((9, 0), "sm_90a", True),
        ((10, 0), "sm_90a compute_90a", False),  # for 9.0 alone
        ((10, 3), "compute_100f", True),
        ((12, 0), "compute_100f", False),  # for 10.x alone
        ((9, 0), "gfx90a", False),
    ],
)
def test_a_gpu_runs_code_of_its_generation_and_any_older_ptx(capability, built_for, runs):
    assert can_run(capability, built_for.split()) is runs


@pytest.fixture
def with_gpus(monkeypatch):
    """Has torch answer as if GPUs were there."""

    def give(count=1, capability=(9, 0), name="H100", built_for=CUDA_13, cuda="13.0"):
        taken = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_arch_list", built_for.split)
        monkeypatch.setattr(torch.cuda, "set_device", taken.append)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return taken

    return give


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_v100_is_refused_with_a_build_to_install(with_gpus, device):
    taken = with_gpus(capability=(7, 0), name="Tesla V100-SXM2-16GB")
    with pytest.raises(ConfigError) as caught:
        choose_device(device)
    text = str(caught.value)
    assert "no code for GPU 0 (Tesla V100-SXM2-16GB, compute capability 7.0)" in text
    assert "built for sm_75, sm_80, sm_86, sm_90, sm_100, sm_120" in text
    assert BUILD_FOR_OLD_GPUS in text
    assert "--device cpu" in text
    assert "\n" not in text
    assert not taken
    assert choose_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_too_new_is_not_sent_to_an_old_build(with_gpus):
    with_gpus(capability=(12, 0), name="RTX 5090", built_for=CUDA_12_1)
    with pytest.raises(ConfigError, match=r"capability 12\.0.*pytorch\.org/get-started") as caught:
        choose_device("auto")
    assert "cu126" not in str(caught.value)


@pytest.mark.parametrize(
    "answers",
    [
        {"capability": (7, 0), "built_for": CUDA_12_6, "cuda": "12.6"},
        {"built_for": "gfx90a gfx942", "cuda": None},  # AMD
        {"built_for": ""},  # torch does not say
    ],
)
def test_a_gpu_that_may_run_is_taken(with_gpus, answers):
    taken = with_gpus(**answers)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert taken == [torch.device("cuda", 0)]


def test_the_build_for_old_gpus_has_the_versions_that_are_pinned_and_is_in_the_guide():
    root = Path(__file__).parents[3]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.M))
    for package in ("torch", "torchvision"):
        assert f" {package}=={pinned[package]}+cu126 " in BUILD_FOR_OLD_GPUS
    assert BUILD_FOR_OLD_GPUS in (root / "docs" / "how-to" / "train.md").read_text()


@pytest.mark.parametrize(
    ("number", "there", "expected"),
    [(0, 1, 0), (3, 1, 0), (0, 4, 0), (3, 4, 3)],
)
def test_a_process_takes_its_number_or_the_only_gpu_that_it_sees(
    with_gpus, monkeypatch, number, there, expected
):
    with_gpus(there)
    monkeypatch.setenv("LOCAL_RANK", str(number))
    assert choose_device("cuda") == torch.device("cuda", expected)


def test_a_process_beyond_the_gpus_that_it_sees_is_refused(with_gpus, monkeypatch):
    with_gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ConfigError, match="has no GPU of its own: PyTorch finds 2"):
        choose_device("auto")


def test_processes_with_gpus_of_their_own_are_accepted():
    check_seats([Seat("a", "1"), Seat("a", "2"), Seat("b", "3"), Seat("b", "4")])
    check_seats([Seat("a", "cpu")] * 3)
    check_seats([Seat("a", "")] * 2)  # torch does not say: NCCL will


@pytest.mark.parametrize(
    ("seats", "words"),
    [
        (["a1", "a1"], "Process 1 has no GPU .* on a .* process 0.*--nproc-per-node 1"),
        (["a1", "a2", "a1", "a2"], "Process 2 has no GPU .* on a .* process 0.*--nproc-per-node 2"),
        (["a1", "a2", "b3", "b3"], "Process 3 has no GPU .* on b .* process 2.*--nproc-per-node 1"),
        (["a1", "b1"], "Process 1 has no GPU"),  # containers with names of their own
        (["a1", "bcpu"], "Process 1 finds no GPU on b, but process 0 has one"),
        (["acpu", "acpu", "a1"], "Process 0 finds no GPU on a, but process 2 has one"),
    ],
)
def test_processes_that_share_a_gpu_or_lack_one_are_refused(seats, words):
    with pytest.raises(ConfigError, match=words):
        check_seats([Seat(seat[0], seat[1:]) for seat in seats])


def test_a_gpu_is_known_by_what_it_is_and_not_by_its_number(monkeypatch):
    uuid = "1b0c1b8e-0000-0000-0000-000000000001"
    answer = SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: answer)
    assert find_seat(torch.device("cuda", 0)).gpu == uuid
    del answer.uuid  # an older version of torch
    assert find_seat(torch.device("cuda", 0)).gpu == ""
    assert find_seat(torch.device("cpu")).gpu == "cpu"


def test_processes_that_share_a_gpu_all_end_and_others_join(tmp_path):
    """Four groups of two processes, one after the other, in one start by torchrun."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.lenstrain.training.seats", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert (first[0], second[0]) == ("cuda:0 of [0, 1]", "cuda:0 of [0, 1]")
    assert (first[1], second[1]) == ("cuda:0 of [0, 1]", "cuda:1 of [0, 1]")
    assert first[2] == second[2]
    assert "Process 1 has no GPU of its own" in first[2]
    assert first[3] == second[3]
    assert "Process 1 finds no GPU" in first[3]
