"""Out of memory, for real: more is asked for than a process can address, which fails at once."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from lensprep.errors import OutOfMemoryError
from lenstrain.bench.train import run_train_bench
from lenstrain.cli.group import main
from lenstrain.scoring.infer import infer
from lenstrain.training import train as program
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.memory import enough_memory, is_out_of_memory
from lenstrain.training.train import train

CPU = torch.device("cpu")
ENDLESS = "data.memory_budget_gb=1e12"
"""The loader refuses large batches itself, by a budget of its own."""


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**18)]
)
def test_what_torch_numpy_and_python_raise_is_recognised(ask):
    with (
        pytest.raises(OutOfMemoryError, match=r"^Asking ran out of memory on this mach") as found,
        enough_memory("Asking", CPU, "Ask for less."),
    ):
        ask()
    assert str(found.value).endswith(" Ask for less.")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("NCCL error in: x:93, unhandled cuda error\nCuda failure 2 'out of memory'"),
        pa.ArrowMemoryError("malloc of size 4096 failed"),
    ],
)  # fmt: skip
def test_what_a_gpu_and_arrow_say_is_recognised(error):
    assert is_out_of_memory(error)


def test_another_error_goes_through_unchanged():
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), enough_memory("", CPU, ""):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError("the word out of memory, said by something else"))


def test_an_error_of_a_gpu_names_it_and_one_of_the_host_the_machine(monkeypatch):
    class Gpu:
        name, total_memory = "Tesla V100-SXM2-16GB", 16_900_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    where = {"Tried to allocate 20.00 GiB": r"cuda:1 \(Tesla V100-SXM2-16GB, 16\.9 GB; nvidia-smi",
             "DefaultCPUAllocator: can't allocate memory": "this machine"}  # fmt: skip
    for message, name in where.items():
        with (
            pytest.raises(OutOfMemoryError, match=f"ran out of memory on {name}"),
            enough_memory("Training", torch.device("cuda", 1), "Set less."),
        ):
            raise RuntimeError(f"CUDA out of memory. {message}")


def test_a_batch_that_does_not_fit_is_one_line_and_leaves_nothing(dataset, tmp_path):
    sets = ("model.arch=resnet_small", "data.batch_size=100000000000000", ENDLESS)
    options = [word for each in sets for word in ("--set", each)]
    out = tmp_path / "run"
    done = CliRunner().invoke(main, ["train", dataset, "--out", str(out), *options])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: Training with data.batch_size=100000000000000 ran out of memory")
    assert "800000000000000 bytes more were asked for. Set data.batch_size lower, or" in line
    assert "optim.accumulate=2" in line
    assert not out.exists()


def test_a_run_goes_on_from_its_checkpoint_after_a_step_that_did_not_fit(
    dataset, make_config, tmp_path, monkeypatch
):
    config, steps, usual = make_config("optim.accumulate=2"), iter(range(100)), program.train_step

    def greedy(*args):
        if next(steps) == 9:
            torch.empty(10**15)
        usual(*args)

    monkeypatch.setattr(program, "train_step", greedy)
    with pytest.raises(OutOfMemoryError, match=r"or optim\.accumulate=4"):
        train(dataset, config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 8
    assert train(dataset, config, tmp_path / "run", resume=True)["step"] == 16


def test_validation_scoring_and_the_bench_say_what_did_not_fit(dataset, make_config, tmp_path):
    large = 10**13
    with pytest.raises(OutOfMemoryError, match=r"^Validating with eval\.batch_size=1000.*Set eval"):
        train(dataset, make_config(f"eval.batch_size={large}", ENDLESS), tmp_path / "run")
    with pytest.raises(OutOfMemoryError, match=r"^Training with data\.batch_size=1000"):
        run_train_bench(dataset, make_config(f"data.batch_size={large}", ENDLESS), seconds=0.1)
    best = train(dataset, make_config("train.epochs=1"), tmp_path / "sound")["best"]
    with pytest.raises(OutOfMemoryError, match=r"^Scoring 1000.* smaller --batch-size\.$"):
        infer(best, dataset, out=tmp_path / "s.parquet", batch_size=large, memory_budget_gb=1e12)
    assert not list(tmp_path.glob("s.parquet"))
