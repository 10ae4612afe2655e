"""The command line: one line for bad input, one object for --json, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import click
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.store.interrupts import PREEMPTED
from lensprep.terminal import ProjectGroup
from lenstrain.cli import main
from lenstrain.cli.cache import _status_lines
from lenstrain.cli.evaluate import _evaluate_lines, _of_whom
from lenstrain.cli.options import report
from lenstrain.pages.headline import light_remarks, remarks, summary
from tests.datasets import tiny_dataset
from tests.scoretables import make_mixed
from tests.waiting import wait_until
from tests.widths import assert_fits, at_every_width, set_width

SETTINGS = [
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16",
    "data.batch_size=12", "train.epochs=1", "train.device=cpu",
    "train.pictures=false",
]  # fmt: skip
SETS = [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    rows = {"train": 48, "val": 30, "test": 30}
    return str(tiny_dataset(folder, rows, shard_rows=32, signal=True))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli-run") / "run"
    result = invoke("train", dataset, "--out", str(out), *SETS, "--json")
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout)


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"lenstrain {command} " in result.output


def test_train_prints_one_object_on_standard_output(run):
    out, result = run
    assert result["status"] == "completed"
    assert result["best"] == str(out / "checkpoints" / "best.pt")
    assert result["step"] == 4


def test_progress_is_on_standard_error_and_the_result_on_standard_output(dataset, tmp_path):
    result = invoke("train", dataset, "--out", str(tmp_path / "run"), *SETS)
    assert result.exit_code == 0
    assert "epoch 1/1" in result.stderr
    (line,) = result.stdout.splitlines()
    assert line.endswith("best.pt")


def test_the_whole_path_from_training_to_a_report(run, dataset, tmp_path):
    out, _ = run
    scores = tmp_path / "test.parquet"
    checkpoint = str(out / "checkpoints" / "best.pt")
    result = invoke("infer", checkpoint, dataset, "--split", "test", "--out", str(scores), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == 30
    folder = tmp_path / "report"
    result = invoke(
        "evaluate", str(scores), "--out", str(folder), "--set", "resamples=100",
        "--set", 'completeness_axes=[["theta_e_arcsec"]]', "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["n"] == 30
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "optim.lrr=1"],
            "key 'optim.lrr'. Did you mean 'optim.lr'",
        ),
        (["--set", "optim.lr=fast"], "optim.lr must be of type float"),
        (["--set", "optim.lr"], "write it as section.key=value"),
        (["--config", "none.toml"], "none.toml: no such configuration file"),
        (["--config", "far/configs/v100.toml"], "v100 comes with lenstrain: name it without"),
    ],
)
def test_a_bad_configuration_gives_one_line_and_no_run_folder(
    dataset, tmp_path, arguments, message
):
    out = tmp_path / "run"
    result = invoke("train", dataset, "--out", str(out), *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_bad_datasets_and_folders_give_one_line(run, dataset, tmp_path):
    out, _ = run
    (tmp_path / "empty").mkdir()
    cases = [
        (["train", str(tmp_path / "none"), "--out", str(tmp_path / "r")], "no such dataset"),
        (["train", str(tmp_path / "empty"), "--out", str(tmp_path / "r")], "has no manifest.json"),
        (["train", dataset, "--out", str(out), *SETS], "continue with --resume"),
        (["infer", "none.pt", dataset, "--out", str(tmp_path / "s.csv")], "no such checkpoint"),
        (["evaluate", str(tmp_path / "none"), "--out", str(tmp_path / "e")], str(tmp_path)),
    ]
    for arguments, message in cases:
        result = invoke(*arguments)
        assert result.exit_code == 1, arguments
        assert message in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_usage_errors_exit_with_2(dataset):
    assert invoke("train", dataset).exit_code == 2
    assert invoke("train", dataset, "--outt", "x").exit_code == 2
    assert invoke("nonsense").exit_code == 2


def test_a_wrong_key_is_answered_without_importing_torch(dataset, tmp_path):
    code = (
        "import sys; from lenstrain.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "train", dataset, "--out", "x", "--set", "modell.arch=a"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_130_and_one_line(number):
    @click.group(cls=ProjectGroup)
    def program():
        pass

    @program.command()
    def wait():
        signal.raise_signal(number)
        time.sleep(5)

    done = CliRunner().invoke(program, ["wait"])
    assert (done.exit_code, done.output) == (130, "Stopped.\n")


def cut_off_here(arguments, number, ready):
    """Exit status and standard error of a command that this process is sent a signal in."""
    over = threading.Event()

    def send():
        wait_until(lambda: over.is_set() or ready())
        if not over.is_set():
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        done = invoke(*arguments)
    finally:
        over.set()
        sender.join()
    return done.exit_code, done.stderr


def cut_off_in_a_process(arguments, number, ready):
    """The same of a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lenstrain", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(ready)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cut_off", [cut_off_here, pytest.param(cut_off_in_a_process, marks=pytest.mark.slow)]
)
def test_sigterm_saves_exits_with_its_own_code_and_resume_finishes(dataset, tmp_path, cut_off):
    out = tmp_path / "run"
    command = ["train", dataset, "--out", str(out), *SETS]
    command += ["--set", "train.epochs=2000", "--set", "train.patience=0"]
    code, err = cut_off(command, signal.SIGTERM, (out / "checkpoints" / "last.pt").exists)
    assert code == PREEMPTED
    assert "Continue with --resume" in err
    lines = out / "metrics.jsonl"
    before = len(lines.read_text().splitlines())
    code, _ = cut_off(
        [*command, "--resume"],
        signal.SIGINT,
        lambda: len(lines.read_text().splitlines()) > before + 2,
    )
    assert code == 130
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == sorted(steps)
    assert len(steps) > before + 2


def test_one_region_gives_no_interval_and_no_traceback(tmp_path):
    rows = "\n".join(f"k{i};{i % 2};0,{(i * 7) % 10 + i % 2:02d};5" for i in range(40))
    scores = tmp_path / "own.csv"
    scores.write_text(f"objid;is_lens;logit;region_id\n{rows}\n")
    out = tmp_path / "report"
    arguments = ["evaluate", str(scores), "--out", str(out), "--set", "resamples=50"]
    arguments += ["--columns", "id=objid,label=is_lens"]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "all 40 values of logit lie between 0 and 1" in result.stderr
    result = invoke(*arguments, "--scores-are", "probability")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"(?m)^AUROC +0.680 +no interval +one region$", result.stdout)
    notes = json.loads((out / "metrics.json").read_text())["notes"]
    assert "Column logit: probability, as --scores-are says." in [note["text"] for note in notes]


def test_options_of_a_catalogue_need_one(tmp_path):
    arguments = ["evaluate", "s.parquet", "--out", str(tmp_path / "r")]
    result = invoke(*arguments, "--catalog-column", "ra=RA")
    assert result.exit_code == 2
    assert "needs --catalog" in result.stderr
    result = invoke(*arguments, "--catalog", "c.csv", "--catalog-column", "redshift=z")
    assert result.exit_code == 1
    assert "write it as NAME=COLUMN" in result.stderr


def test_scores_of_two_precisions_are_not_calibrated_on_each_other(run, dataset, tmp_path):
    checkpoint = str(run[0] / "checkpoints" / "best.pt")
    for split, precision in (("test", "float32"), ("val", "bf16")):
        result = invoke(
            "infer", checkpoint, dataset, "--split", split, "--precision", precision, "--device",
            "cpu", "--out", str(tmp_path / f"{split}.parquet"), "--json",
        )  # fmt: skip
        assert json.loads(result.stdout)["precision"] == precision, result.stderr
    result = invoke(
        "evaluate", str(tmp_path / "test.parquet"), "--calibrate-on", str(tmp_path / "val.parquet"),
        "--out", str(tmp_path / "report"),
    )  # fmt: skip
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]  # after warnings of such a small network's logits
    assert said.startswith("Error: ")
    assert "val.parquet was scored in bf16 and" in said
    assert "test.parquet in float32" in said
    assert not (tmp_path / "report").exists()


def test_infer_takes_an_ensemble_and_embeddings(run, dataset, tmp_path):
    import pyarrow.parquet as pq

    out, _ = run
    checkpoints = [str(out / "checkpoints" / f"{name}.pt") for name in ("best", "last")]
    scores = tmp_path / "s.parquet"
    result = invoke(
        "infer", checkpoints[0], dataset, "--member", checkpoints[1], "--embeddings", "--tta",
        "--out", str(scores),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    names = pq.read_schema(scores).names
    assert {"logit", "logit_0", "logit_1", "embedding_0", "embedding_1"} <= set(names)
    assert "30 rows scored" in result.stdout


def test_evaluate_says_how_often_each_kind_passes():
    def kind(value):
        return {"pass_rate": {"value": value}, "factor": 1.0}

    lensed = {"pass_rate": {"value": 0.9}}
    made = {
        "name": "FPR 0.01",
        "fpr_upper": 0.012,
        "kinds": {"unlensed": kind(0.02), "companion": kind(0.41), "lensed": lensed},
        "pairs": {"words": "Below theta_E / PSF = 0.5 this finder cannot tell a lens from light."},
    }
    assert light_remarks({"counterfactuals": made}) == [
        "Counterfactuals that pass at the threshold for FPR 1% (non-lenses: at most 1.20%): "
        "unlensed 2.0%, companion 41.0%",
        made["pairs"]["words"],
    ]
    assert "(" not in light_remarks({"counterfactuals": made | {"fpr_upper": None}})[0]
    bare = {"counterfactuals": made | {"kinds": {}}}
    assert light_remarks(bare) == [made["pairs"]["words"]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation of real and simulated rows against a better model, with known lenses."""
    folder = tmp_path_factory.mktemp("evaluated")
    mixed = make_mixed(simulated=400)
    pq.write_table(mixed, folder / "s.parquet")
    better = pc.add(mixed["logit"], pc.multiply(mixed["label"].cast("float32"), 3.0))
    place = mixed.schema.get_field_index("logit")
    better = mixed.set_column(place, "logit", better.cast("float32"))
    pq.write_table(better, folder / "better.parquet")
    settings = ["resamples=50", 'completeness_axes=[["psfsize_r"]]', "examples=0",
                "fprs=[0.1,0.001]", "completeness_fprs=[0.1,0.001]"]  # fmt: skip
    settings = [part for setting in settings for part in ("--set", setting)]
    result = invoke(
        "evaluate", str(folder / "better.parquet"), "--compare", str(folder / "s.parquet"),
        "--out", str(folder / "out"), *settings, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@at_every_width
def test_evaluate_prints_the_operating_point_and_fits(evaluated, monkeypatch, capsys, columns):
    set_width(monkeypatch, columns)
    report(evaluated, _evaluate_lines(evaluated), as_json=False)
    said = capsys.readouterr().out
    names = ["AUROC", "Completeness at FPR 10%", "Purity, 1 lens in 1,000", "Gain in AUROC"]
    assert_fits(said, columns, *names, "Real lenses found", "Gain at FPR 10%")
    assert re.search(r"(?m)^figure +value +95% interval", said)
    if columns is not None:
        return
    cut = evaluated["completeness_thresholds"][0]["tpr"]
    ends = f"[{100 * cut['low']:.1f}%, {100 * cut['high']:.1f}%]"
    row = rf"(?m)^Completeness at FPR 10% +{100 * cut['value']:.1f}% +{re.escape(ends)}"
    assert re.search(row, said)
    gain = evaluated["comparison"]["auroc"]
    value, ends = f"{gain['value']:+.4f}", f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
    assert re.search(rf"(?m)^Gain in AUROC +{re.escape(value)} +{re.escape(ends)}", said)


def test_evaluate_says_what_the_data_cannot_support(evaluated):
    said = remarks(evaluated)
    assert any(line.startswith("No operating point for FPR 0.1%: needs 2,995") for line in said)
    rates = {rate: entry | {"supported": False, "reason": "needs more"}
             for rate, entry in evaluated["tpr_at_fpr"].items()}  # fmt: skip
    none = remarks(evaluated | {"tpr_at_fpr": rates})
    assert any(line.startswith("No false-positive rate is supported") for line in none)


@at_every_width
def test_status_of_a_cache_fits(monkeypatch, capsys, columns):
    uri = "s3://a-bucket-of-a-long-name/datasets/lenses/of-version-1/all"
    one = {"dataset_id": "0f" * 32, "shards": 1, "of": None, "bytes": 10**9, "coming": 0,
           "in_use": False, "last_used": 0.0, "uri": uri}  # fmt: skip
    set_width(monkeypatch, columns)
    held = {"datasets": [one], "dir": "/nvme", "bytes": 10**9, "free_bytes": 0}
    report(held, _status_lines(held), as_json=False)
    assert_fits(capsys.readouterr().out, columns, uri, "0f0f0f0f0f0f", "1 of ?", "1.0 GB")


def test_evaluate_says_whose_its_figures_are(evaluated):
    assert _of_whom(evaluated).endswith("; simulated rows")
    assert _of_whom(evaluated | {"origin": None}).endswith("; all origins pooled")
    figures = {figure.name: figure for figure in summary(evaluated)}
    real = evaluated["origins"]["real"]["recall"][0]["all"]
    assert figures["Real lenses found"].value == f"{real['k']} of 80"
    assert figures["Real or simulated lenses"].value == "n/a"
    assert "infer --embeddings" in figures["Real or simulated lenses"].note
