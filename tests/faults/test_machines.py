"""Poor machines: no home, packages that cannot be written, disks that are full, bare terminals."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lensprep.cli import main as lensprep_main
from lenstrain.cli import main as lenstrain_main
from lenstrain.scoring.infer import infer
from tests.datasets import tiny_dataset
from tests.phase4c import tiny_tree
from tests.probes import QUICK_SETS
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NOBODY = 65534
FINDER = (
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16",
    "data.batch_size=12", "eval.batch_size=18", "train.epochs=1", "train.log_every=2",
    "train.device=cpu",
)  # fmt: skip
FINDER_SETS = [part for setting in FINDER for part in ("--set", setting)]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SWEEP = """
[fixed]
{fixed}
[search]
trials = 2
startup_trials = 1
[refit]
top = 1
seeds = [1]
[space]
model.width = [4, 8]
"""

slow = functools.partial(pytest.param, marks=[pytest.mark.slow, pytest.mark.timeout(900)])


def toml_of(settings):
    """Lines of TOML from settings of the command line."""
    pairs = (setting.split("=", 1) for setting in settings)
    return "\n".join(
        f"{key} = {value if value[0] in '[0123456789' else json.dumps(value)}"
        for key, value in pairs
    )


@pytest.fixture(scope="module")
def folder():
    """A folder that every user may enter; those of pytest are their owner's."""
    made = Path(tempfile.mkdtemp(prefix="machines-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def inputs(folder):
    """What the commands read, made on this machine as it is: NAME -> path."""
    from lensprep.configfile import load_config
    from lenstrain.config import Config
    from lenstrain.evaluation.options import EvaluationOptions
    from lenstrain.pages.evaluate import evaluate
    from lenstrain.training.train import train

    tree = tiny_tree(folder / "in", 400)
    dataset = tiny_dataset(folder / "in", {"train": 60, "val": 40, "test": 40}, signal=True)
    run = folder / "in" / "run"
    train(str(dataset), load_config(Config, None, list(FINDER)), run)
    found = {"tree": tree, "dataset": dataset, "run": run, "best": run / "checkpoints" / "best.pt"}
    for split in ("train", "test"):
        found[split] = folder / "in" / f"{split}.parquet"
        infer(found["best"], str(dataset), split=split, out=found[split], device="cpu")
    found["report"] = folder / "in" / "report"
    evaluate(found["test"], found["report"], options=EvaluationOptions(resamples=20, examples=0))
    found["sweep"] = folder / "in" / "sweep.toml"
    found["sweep"].write_text(SWEEP.format(fixed=toml_of(FINDER)))
    return {name: str(path) for name, path in found.items()}


def fill_in(command, **places):
    return [part.format(**places) for part in command]


# --------------------------------------------------------------------- full and read-only disks

OUTPUTS = [
    slow(("lensprep", "inspect", "{dataset}", "--montage", "{disk}/stamps.png")),
    slow(("lensprep", "synth", "{disk}/tree", "--rows", "20", "--workers", "1")),
    slow(("lensprep", "convert", "{tree}", "{disk}/ds", "--workers", "2")),
    slow(("lensprep", "bench", "--rows", "64", "--rounds", "1", "--folder", "{disk}")),
    slow(("lenstrain", "train", "{dataset}", "--out", "{disk}/run", *FINDER_SETS)),
    slow(("lenstrain", "infer", "{best}", "{dataset}", "--out", "{disk}/scores.parquet")),
    slow(("lenstrain", "evaluate", "{test}", "--out", "{disk}/e", "--set", "resamples=20")),
    slow(("lenstrain", "mine", "{train}", "--out", "{disk}/hard.parquet")),
    slow(("lenstrain", "probe", "{best}", "{dataset}", "--out", "{disk}/p", *QUICK_SETS)),
    slow(("lenstrain", "audit", "{run}", "{dataset}", "--out", "{disk}/a")),
    slow(("lenstrain", "export", "{best}", "--out", "{disk}/f.onnx")),
    slow(("lenstrain", "publish", "{run}", "{dataset}", "{report}", "--out", "{disk}/p",
          "--draft")),
    slow(("lenstrain", "sweep", "{dataset}", "--config", "{sweep}", "--study", "{disk}/s.db")),
    slow(("lenstrain", "generalize", "{dataset}", "--out", "{disk}/g", *FINDER_SETS)),
]  # fmt: skip

FULL = 'mount -t tmpfs -o size=64k none "$0"; head -c 1M /dev/zero > "$0/filled" 2> /dev/null'
READ_ONLY = 'mount -t tmpfs -o ro,size=1g none "$0"'


@pytest.fixture(scope="module")
def run_on_disk(folder):
    """Runs a command with a disk of its own, which only it and its children see."""
    disk = folder / "disk"
    disk.mkdir()
    apart = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    if subprocess.run([*apart, "sh", "-c", READ_ONLY, disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")

    def run(make, command):
        return subprocess.run(
            [*apart, "sh", "-c", f'{make}; exec "$@"', disk, sys.executable, *command],
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("make", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("command", OUTPUTS, ids=lambda command: command[1])
def test_an_output_that_cannot_be_written_is_one_line(run_on_disk, inputs, folder, make, command):
    package, *rest = fill_in(command, disk=folder / "disk", **inputs)
    done = run_on_disk(make, ["-m", package, *rest])
    # The last: how much is needed was compared with what is free before anything was begun.
    reasons = ("No space left on device", "Read-only file system", "disk is full", " free")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors, done.stderr
    assert any(reason in done.stderr for reason in reasons), done.stderr


# ------------------------------------------------------------------- nobody, without a home


@pytest.fixture(scope="module")
def run_as_nobody(folder):
    """Runs a command as a user who may write into one folder and has no home.

    The packages are a copy that cannot be written, without the compiled kernels of this machine;
    the terminal knows ASCII only.
    """
    packages, place, home = (folder / name for name in ("packages", "place", "sealed"))
    for name in ("lensprep", "lenstrain"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    place.mkdir()
    home.mkdir()
    for path in (packages, home, *packages.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": f"{packages}:{site}", "HOME": f"{home}/none",
        "TMPDIR": str(place), "OMP_WAIT_POLICY": "PASSIVE", **ASCII,
    }  # fmt: skip
    user = {}
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    python = interpreter(user)

    def run(package, *arguments):
        return subprocess.run(
            [python, "-m", package, *arguments],
            env=environment, cwd=place, capture_output=True, timeout=900, **user,
        )  # fmt: skip

    yield run
    for path in (packages, home, *packages.rglob("*")):
        path.chmod(0o755)


def interpreter(user):
    """One that another user may start: that of an environment can lie in root's home."""
    names = (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin"))
    for name in filter(None, names):
        try:
            subprocess.run([name, "-c", ""], check=True, capture_output=True, cwd="/", **user)
        except (OSError, subprocess.CalledProcessError):
            continue
        return name
    pytest.skip("no interpreter that another user may start")


WALK = [
    ("lensprep", "synth", "tree", "--rows", "300", "--seed", "1"),
    ("lensprep", "check", "tree", "--pixels"),
    ("lensprep", "convert", "tree", "ds", "--shard-rows", "100"),
    ("lensprep", "verify", "ds", "--against", "tree"),
    ("lensprep", "inspect", "ds", "--sample", "0", "--montage", "stamps.png"),
    ("lensprep", "bench", "--rows", "64", "--rounds", "1", "--folder", "."),
    ("lenstrain", "train", "ds", "--out", "run", *FINDER_SETS),
    ("lenstrain", "monitor", "run"),
    ("lenstrain", "infer", "run/checkpoints/best.pt", "ds", "--split", "test",
     "--out", "test.parquet"),
    ("lenstrain", "infer", "run/checkpoints/best.pt", "tree", "--split", "val",
     "--out", "val.parquet"),
    ("lenstrain", "infer", "run/checkpoints/best.pt", "ds", "--split", "train",
     "--out", "train.parquet"),
    ("lenstrain", "evaluate", "test.parquet", "--calibrate-on", "val.parquet", "--out", "report",
     "--set", "resamples=50"),
    ("lenstrain", "mine", "train.parquet", "--out", "hard.parquet"),
    ("lenstrain", "probe", "run/checkpoints/best.pt", "ds", *QUICK_SETS),
    ("lenstrain", "audit", "run", "ds", "--out", "audit"),
    ("lenstrain", "export", "run/checkpoints/best.pt", "--report", "report", "--out",
     "finder.onnx", "--out", "finder.pt2", "--out", "finder.safetensors", "--source", "tree"),
    ("lenstrain", "publish", "run", "ds", "report", "--draft", "--out", "published", "--check"),
    ("lenstrain", "sweep", "ds", "--config", "sweep.toml", "--study", "studies/s.db"),
    ("lenstrain", "generalize", "ds", "--out", "g", "--hold-out", "lens_model", *FINDER_SETS),
    ("lenstrain", "bench", "loader", "ds", "--seconds", "1", "--batch-size", "32"),
    ("lenstrain", "bench", "train", "ds", "--seconds", "1", *FINDER_SETS),
]  # fmt: skip
VERDICT = {"audit": {3, 4}}
"""Statuses that are an answer."""


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(WALK[:2], marks=pytest.mark.slow, id="short"),
        pytest.param(WALK, marks=[pytest.mark.faults, pytest.mark.timeout(5400)], id="whole"),
    ],
)
def test_nobody_without_a_home_walks_the_whole_path(run_as_nobody, folder, steps):
    place = folder / "place"
    (place / "sweep.toml").write_text(SWEEP.format(fixed=toml_of(FINDER)))
    for package, *arguments in steps:
        if arguments[0] == "synth":
            shutil.rmtree(place / "tree", ignore_errors=True)
        done = run_as_nobody(package, *arguments)
        said = done.stderr.decode(errors="replace")
        assert done.returncode in VERDICT.get(arguments[0], {0}), (arguments, said)
        for sign in ("Traceback", "cannot cache", "MPLCONFIGDIR", "not a writable", "Warning: "):
            assert sign not in said, (arguments, said)


# ----------------------------------------------------------------------- without the extra

BARE = """
import json, sys

from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in {missing!r}
        return None if missing else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
from click.testing import CliRunner
import lensprep.cli, lenstrain.cli

programs = {{"lensprep": lensprep.cli.main, "lenstrain": lenstrain.cli.main}}
for line in sys.stdin:
    package, *arguments = json.loads(line)
    done = CliRunner().invoke(programs[package], arguments)
    odd = done.exception is not None and not isinstance(done.exception, SystemExit)
    print(json.dumps([done.exit_code, done.stderr, repr(done.exception) if odd else None]))
"""

HINT = {
    "train": "pip install '.[train]'",
    "synth": "pip install '.[synth]'",
    "dask": "pip install '.[dask]'",
}

COMMANDS = {
    "lensprep synth": (("nothing", "--rows", "5"), "synth"),
    "lensprep check": (("nothing",), None),
    "lensprep counterfactual": (("nothing", "out"), "synth"),
    "lensprep convert": (("nothing", "ds", "--engine", "dask"), "dask"),
    "lensprep verify": (("nothing",), None),
    "lensprep upload": (("nothing", "s3://bucket/a"), None),
    "lensprep download": (("nothing", "ds"), None),
    "lensprep inspect": (("nothing",), None),
    "lensprep survey list": ((), None),
    "lensprep survey show": (("hsc",), None),
    "lensprep bench": (("nothing",), None),
    "lensprep doctor": (("nothing",), None),
    "lenstrain train": (("nothing", "--out", "run"), "train"),
    "lenstrain monitor": (("nothing",), None),
    "lenstrain infer": (("best.pt", "nothing", "--out", "s.parquet"), "train"),
    "lenstrain evaluate": (("s.parquet", "--out", "e"), "train"),
    "lenstrain compare": (("a", "b", "--out", "c"), "train"),
    "lenstrain mine": (("s.parquet", "--out", "h.parquet"), None),
    "lenstrain probe": (("best.pt", "nothing"), "train"),
    "lenstrain audit": (("run", "nothing"), "train"),
    "lenstrain export": (("best.pt", "--out", "f.onnx"), "train"),
    "lenstrain publish": (("run", "nothing", "report", "--out", "p"), "train"),
    "lenstrain sweep": (
        ("nothing", "--config", str(ROOT / "configs" / "sweep.toml"), "--study", "s.db"), "train"),
    "lenstrain generalize": (("{dataset}", "--out", "g"), "train"),
    "lenstrain bench loader": (("nothing",), "train"),
    "lenstrain bench train": (("nothing",), "train"),
    "lenstrain config list": ((), None),
    "lenstrain config show": (("demo",), None),
    "lenstrain doctor": ((), None),
    "lenstrain cache status": (("--dir", "c"), "train"),
    "lenstrain cache fill": (("s3://bucket/a", "--dir", "c"), "train"),
    "lenstrain cache verify": (("--dir", "c"), "train"),
    "lenstrain cache clear": (("--dir", "c"), "train"),
}  # fmt: skip
"""Arguments of every command, and the extra that it asks for where no extra is installed."""


def leaves(name, command):
    below = getattr(command, "commands", None)
    if below is None:
        return [name]
    return [leaf for key, one in below.items() for leaf in leaves(f"{name} {key}", one)]


def test_without_any_extra_every_command_works_or_says_in_one_line_how_to_get_it(tmp_path):
    names = leaves("lensprep", lensprep_main) + leaves("lenstrain", lenstrain_main)
    assert sorted(names) == sorted(COMMANDS)
    dataset = tiny_dataset(tmp_path, {"train": 30, "val": 12, "test": 12}, signal=True)
    asked = [[*name.split(), *fill_in(COMMANDS[name][0], dataset=dataset)] for name in names]
    asked += [["lenstrain", "--version"], *([*name.split(), "--help"] for name in names)]
    from lensprep.extras import EXTRAS

    missing = {module for modules in EXTRAS.values() for module in modules}
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(missing=missing)],
        input="\n".join(map(json.dumps, asked)),
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for arguments, (status, said, odd) in zip(asked, answers, strict=True):
        assert odd is None, (arguments, odd)
        if arguments[-1] in ("--help", "--version"):
            assert status == 0, (arguments, said)
    for name, (status, said, _) in zip(names, answers, strict=False):
        extra = COMMANDS[name][1]
        if extra is not None:
            assert (status, said.count("\n")) == (1, 1), (name, said)
            assert said.startswith("Error: ")
            assert HINT[extra] in said, (name, said)


# -------------------------------------------------------------------- a step that does not end


@pytest.fixture(scope="module")
def long_step(folder):
    """Starts a training whose one step takes minutes, and waits some seconds for the step."""
    dataset = tiny_dataset(folder / "long", {"train": 512, "val": 20, "test": 20}, signal=True)
    started = []

    def start(seconds):
        out = folder / "long" / f"run-{len(started)}"
        settings = ("model.arch=resnet34", "data.batch_size=512", "optim.accumulate=32",
                    "train.device=cpu", "train.epochs=1")  # fmt: skip
        command = [sys.executable, "-m", "lenstrain", "train", str(dataset), "--out", str(out)]
        command += [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        started.append(process)
        wait_until((out / "environment.json").exists)
        time.sleep(seconds)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_ends_a_training_within_a_step_that_takes_minutes(long_step):
    for seconds in (10, 30, 90):
        process = long_step(seconds)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=100)
        assert process.returncode == 75
        if "Interrupted at step 0; saved." not in err:  # it still waited for its data
            break
    assert (
        "No step ended in time to save; --resume continues from the last checkpoint, or anew."
        in err
    )
    assert 20 < time.monotonic() - began < 30  # torchrun kills after 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_twice_ends_a_training_within_a_step_that_takes_minutes(long_step):
    process = long_step(20)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=100)
    assert process.returncode == 130
    assert time.monotonic() - began < 5
