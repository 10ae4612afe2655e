"""A small world in which the commands of the documentation run: data, a run, its scores.

world = World(folder)                 synthetic rows, a dataset of them, a trained network, scores
sandbox = Sandbox(folder, world)      an empty folder for a page, in which its commands run in turn
sandbox.run(shown)                    one command, in this process; its result

A path that a page names is one of the sandbox: ``/data/phase4c`` is ``SANDBOX/data/phase4c``, and
``s3://lenses/v1`` a folder of the object store. What a command reads is there already if an earlier
command of the page wrote it; otherwise it is taken from the world, by the parameter that names it.
What it writes is removed first, since pages show alternatives.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner, Result

from lensprep.cli import main as lensprep
from lensprep.source.survey import load_survey
from lensprep.store import exists, is_remote, open_store, split_uri
from lenstrain.cli import main as lenstrain
from tests.phase4c import tiny_pixels
from tests.snippets import PROGRAMS, ROOT, Shown, blocks, parsed
from tests.surveytree import write_survey_tree

SMALL_NETWORK = (
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=32",
    "data.batch_size=16", "train.epochs=1", "train.device=cpu", "train.amp=off",
    "train.compile=false", "optim.accumulate=1",
)  # fmt: skip
SMALLER: dict[str, tuple[str, ...]] = {
    "lenstrain train": SMALL_NETWORK,
    "lenstrain evaluate": ("resamples=50", "selection_resamples=20"),
    "lenstrain compare": ("resamples=50",),
    "lenstrain probe": (
        "per_class=20", "injections=5", "baseline_rows=40", "attribution=2", "resamples=50",
    ),
}  # fmt: skip
"""Settings added to a command, so that it takes seconds; its own options are not changed."""

OUTPUTS = {
    "lensprep synth": "out",
    "lensprep counterfactual": "out",
    "lensprep convert": "dataset work keep_local",
    "lensprep upload": "destination",
    "lensprep download": "dataset",
    "lensprep check": "rejects",
    "lensprep inspect": "montage",
    "lenstrain cache fill": "folder",
    "lenstrain train": "out",
    "lenstrain infer": "out cache_dir",
    "lenstrain evaluate": "out",
    "lenstrain compare": "out",
    "lenstrain mine": "out",
    "lenstrain probe": "out",
    "lenstrain audit": "out",
    "lenstrain export": "out",
}
"""Parameters that name what a command writes."""


class World:
    """What the commands read, made once by the commands themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tree, light, data = self["phase4c"], self["counterfactuals"], self["dataset"]
        self._do(lensprep, "synth", tree, "--rows", "160", "--seed", "1", "--regions", "16")
        self._do(lensprep, "counterfactual", tree, light, "--share", "0.5", "--workers", "1")
        self._do(lensprep, "convert", tree, light, data, "--workers", "1")
        write_cutouts(self.folder)
        survey = load_survey(ROOT / "configs" / "surveys" / "hsc.toml")
        write_survey_tree(self.folder / "hsc", survey)
        sets = [part for setting in SMALL_NETWORK for part in ("--set", setting)]
        self._write_lenses()
        self._do(lenstrain, "train", data, "--out", self["run"], *sets)
        best = self["run/checkpoints/best.pt"]
        for split in ("train", "val", "test"):
            out = self[f"run/{split}.parquet"]
            self._do(lenstrain, "infer", best, data, "--split", split, "--out", out)
        scores, val = self["run/test.parquet"], self["run/val.parquet"]
        options = ("--calibrate-on", val, "--set", "resamples=50", "--out", self["report"])
        self._do(lenstrain, "evaluate", scores, *options)
        files = [self[f"finder{suffix}"] for suffix in (".onnx", ".pt2", ".safetensors")]
        outs = [part for file in files for part in ("--out", file)]
        self._do(lenstrain, "export", best, "--report", self["report"], "--rows", "8", *outs)
        np.save(self["flux.npy"], tiny_pixels(8))

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def _do(self, program: click.Command, *arguments: str) -> None:
        result = CliRunner().invoke(program, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    def _write_lenses(self) -> None:
        """A catalogue of lenses that are known, and expected: those of the test split."""
        test = pq.read_table(self["dataset/test/test-000000.parquet"])
        lenses = {
            "name": test["key"].to_pylist(), "ra": test["ra"].to_numpy(),
            "dec": test["dec"].to_numpy(), "grading": ["confident"] * len(test),
            "theta_e_arcsec": np.full(len(test), 0.8), "psfsize_r": test["psfsize_r"].to_numpy(),
            "arc_snr": np.full(len(test), 20.0), "src_dmag": np.full(len(test), 1.5),
        }  # fmt: skip
        Table(lenses).write(self["known.csv"])


def write_cutouts(folder: Path) -> None:
    """Cutouts in FITS, as the Legacy Survey serves them, and tables of them."""
    rng, cutouts = np.random.default_rng(1), folder / "cutouts"
    cutouts.mkdir(parents=True)
    objects = Table({
        "file": [f"J{i:04d}.fits" for i in range(60)],
        "ra": rng.uniform(0, 360, 60),
        "dec": rng.uniform(-60, 60, 60),
        "label": np.arange(60) % 2,
        "theta_e_arcsec": np.arange(60) % 2 * 1.0,
    })  # fmt: skip
    for name, pixels in zip(objects["file"], tiny_pixels(60), strict=True):
        fits.writeto(cutouts / name, np.pad(pixels, ((0, 0), (8, 8), (8, 8)), "reflect"))
    objects.write(folder / "objects.csv")
    objects["objid"], objects["is_lens"] = objects["file"], objects["label"]
    objects[["file", "objid", "ra", "dec", "is_lens"]][::2].write(folder / "negatives.fits")
    objects[["file", "objid", "ra", "dec", "label"]][1::2].write(folder / "lenses.csv")


@dataclass
class Sandbox:
    """A folder in which the commands of one page run; be in it when they do."""

    folder: Path
    world: World
    store: str | None = None
    """URI of a folder of an object store, in place of ``s3://``."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "configs").symlink_to(ROOT / "configs")

    def here(self, word: str) -> str:
        """A word of a command, or a text, with the paths that it names in the sandbox."""
        word = re.sub(r"s3a?:/", self.store or "s3:/", word)
        return re.sub(r"(?<![\w.:/-])/(?=(data|nvme|shared)/)", f"{self.folder}/", word)

    def run(self, shown: Shown) -> Result:
        """Run one command: what it reads is there, and what it writes is not."""
        context = parsed(shown)
        name = context.command_path
        self._prepare(name, context.params, shown)
        places = {p.name for p in context.command.params if isinstance(p.type, click.Path)}
        resume = context.params.get("resume", False)
        for key, value in context.params.items():
            for path in value if isinstance(value, tuple) else [value]:
                if path is None or key not in places or key == "store":
                    continue
                path = self.here(str(path))
                if key in OUTPUTS.get(name, "").split():
                    if not resume:
                        _remove(path)
                elif key == "disks":
                    Path(path).mkdir(parents=True, exist_ok=True)
                elif key == "survey":  # a name, or a file of one's own
                    if path.endswith(".toml") and not _is_there(path):
                        shutil.copy(ROOT / "configs" / "surveys" / path, path)
                elif not _is_there(path):
                    self._provide(path, self._source(key, path, context.params))
        words = [self.here(word) for word in shown.arguments]
        words += [part for setting in SMALLER.get(name, ()) for part in ("--set", setting)]
        return CliRunner().invoke(PROGRAMS[shown.program], words)

    def provide(self, path: str, name: str) -> None:
        """Put something of the world where a page has it."""
        self._provide(self.here(path), self.world[name])

    def _prepare(self, name: str, given: Mapping[str, Any], shown: Shown) -> None:
        """Make what only a command before this one can have made."""
        before: tuple[str, ...] = ()
        if name == "lensprep verify" and given["against"]:
            cutouts = [word for folder in given["folders"] for word in ("--cutouts", folder)]
            before = ("lensprep", "convert", *given["against"], given["dataset"], *cutouts)
        elif name.startswith("lenstrain cache ") and name != "lenstrain cache fill":
            before = ("lenstrain", "cache", "fill", "s3://lenses/v1", "--dir", str(given["folder"]))
        place = str(given.get("folder", given.get("dataset")))
        if before and not _is_there(self.here(place)):
            result = self.run(Shown(shown.place, before))
            assert result.exit_code == 0, result.output

    def run_program(self, shown: Shown) -> subprocess.CompletedProcess[str]:
        """Run a program that the page shows, and whose first line says how it is started."""
        script = shown.arguments[0]
        (text,) = (
            block.text
            for block in blocks()
            if block.page == shown.page and block.language == "python" and script in block.text
        )
        Path(script).write_text(text)
        for name in shown.arguments[1:-1]:
            if not _is_there(name):
                self._provide(name, self.world[name])
        return subprocess.run([sys.executable, *shown.arguments], capture_output=True, text=True)

    def _source(self, key: str, path: str, given: Mapping[str, Any]) -> str:
        """What of the world a parameter means."""
        if "checkpoint" in given and given.get("catalog") and key in ("dataset", "catalog"):
            return self.world["cutouts" if key == "dataset" else "objects.csv"]
        if key in ("src", "against", "source"):
            if path.endswith((".csv", ".fits")):
                return self.world[Path(path).name]
            if "hsc" in path:
                return self.world["hsc"]
            return self.world["counterfactuals" if "counterfactuals" in path else "phase4c"]
        if key in ("scores", "calibrate_on", "compare_with", "catalog_scores", "left_out"):
            name = next((s for s in ("val", "train") if Path(path).stem == s), "test")
            return self.world[f"run/{name}.parquet"]
        found = {
            "dataset": "dataset", "uri": "dataset", "location": "dataset", "folders": "cutouts",
            "checkpoint": "run/checkpoints/best.pt", "run": "run", "runs": "run", "places": "run",
            "catalog": "known.csv", "population": "known.csv", "report_folder": "report",
            "check": "finder.onnx",
        }  # fmt: skip
        return self.world[found[key]]

    def _provide(self, path: str, source: str) -> None:
        """Put files of the world where a page has them; a checkpoint brings its run."""
        if "/checkpoints/" in path:
            path, source = path.partition("/checkpoints/")[0], self.world["run"]
        if not is_remote(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if Path(source).is_dir() else shutil.copy
            copy(source, path)
        elif Path(source).is_dir():
            for file in filter(Path.is_file, Path(source).rglob("*")):
                name = file.relative_to(source).as_posix()
                open_store(path).write(name, file.read_bytes())
        else:
            folder, name = split_uri(path)
            open_store(folder).write(name, Path(source).read_bytes())


def _is_there(path: str) -> bool:
    return exists(path) or open_store(path).has_any() if is_remote(path) else Path(path).exists()


def _remove(path: str) -> None:
    """Remove a file or a folder with all in it, if there is one."""
    if is_remote(path):
        store = open_store(path)
        for entry in store.entries():
            store.delete(entry.name)
    elif Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
