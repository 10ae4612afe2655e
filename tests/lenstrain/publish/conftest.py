"""A run that is fit to be published, and its publication."""

import pytest
from click.testing import CliRunner

from lensprep.configfile import load_config, to_toml
from lensprep.dataset import NormalizationSpec
from lenstrain.cli import main
from lenstrain.config import Config
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.pages.evaluate import evaluate
from lenstrain.publish.facts import About
from lenstrain.scoring.infer import infer
from lenstrain.training.train import train
from tests.lenstrain.audit.conftest import SPLITS, TINY, make_dataset, make_table
from tests.publications import publication, write_folder, write_metadata

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMITTED = (
    "lenstrain.training.resume.git_commit",
    "lenstrain.publish.fit.git_commit",
    "lenstrain.publish.lineage.git_commit",
)
"""Where the commit of the code is asked for: tests run from changed code too."""
ABOUT = About(
    title="A finder for tests",
    description="Synthetic stamps; of no use.",
    license="CC-BY-4.0",
    authors=("Lovelace, Ada <0000-0002-1825-0097>", "The lens group"),
    publisher="An archive",
    url="https://doi.org/10.5281/zenodo.1234567",
    contact="lenses@example.org",
)
SPEC = NormalizationSpec(
    mode="asinh_survey",
    clip=10.0,
    parameters={"softening_g": 0.0019, "softening_r": 0.0028, "softening_z": 0.0087},
)


@pytest.fixture
def committed(monkeypatch):
    for name in COMMITTED:
        monkeypatch.setattr(name, lambda: COMMIT)


@pytest.fixture(scope="session")
def fit_run(tmp_path_factory):
    """Folder with dataset, run, scores and report, all sound, after the usual commands."""
    folder = tmp_path_factory.mktemp("publish")
    tables = {split: make_table(split, rows=180) for split in SPLITS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in COMMITTED:
            patch.setattr(name, lambda: COMMIT)
        make_dataset(folder / "ds", tables, 64, spec=SPEC)
        train("ds", load_config(Config, None, TINY), "run")
        for split in ("val", "test"):
            infer(
                "run/checkpoints/best.pt", "ds", split=split, out=f"{split}.parquet", device="cpu"
            )
        options = EvaluationOptions(resamples=100, examples=2)
        evaluate("test.parquet", "report", calibrate_on="val.parquet", options=options)
    return folder


@pytest.fixture(scope="session")
def published(fit_run):
    """The same, published there by the command as ``out``; not to be changed."""
    about = fit_run / "about.toml"
    about.write_text(to_toml(ABOUT))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(fit_run)
        for name in COMMITTED:
            patch.setattr(name, lambda: COMMIT)
        result = CliRunner().invoke(main, [
            "publish", "run", "ds", "report", "--out", "out", "--about", str(about), "--check",
            "--json",
        ])  # fmt: skip
    assert result.exit_code == 0, result.output
    (fit_run / "said.json").write_text(result.stdout)
    return fit_run / "out"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with its metadata, made by hand, into which no test writes."""
    root = write_folder(tmp_path_factory.mktemp("described") / "folder")
    write_metadata(root, publication(root))
    return root
