"""The lineage of a publication: what each file is, and which command made what from what."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow.parquet as pq

import lenstrain
from lensprep.errors import ProjectError
from lensprep.store import file_sha256
from lensprep.tables.known import known_column
from lenstrain.audit.evidence import Evidence
from lenstrain.publish.digests import files_of
from lenstrain.publish.facts import FOLDER, Column, Item, Step
from lenstrain.scoring.ledger import LEDGER, read_ledger
from lenstrain.training.checkpoint import git_commit

SOURCE, DATASET, CHECKPOINT = "#source", "#dataset", "#checkpoint"
"""What lies outside of the folder."""

CATALOGUE: Final = (
    "key", "ra", "dec", "logit", "label", "split", "region_id", "task_id", "brickname",
    "lens_model", "theta_e_arcsec", "src_dmag", "arc_snr", "psfsize_r", "psfdepth_r", "ebv",
    "origin", "kind", "counterfactual",
)  # fmt: skip
"""Columns of scores that catalogues and Croissant have; parquet has all."""

_TITLES: Final = {
    "README.md": "Front page, as text",
    "index.html": "Front page",
    "model_card.md": "Model card: use, data, figures, limits",
    "dataset_card.md": "Dataset card: rows, account, normalisation, source",
    "LICENSE": "Licence",
    "CITATION.cff": "How to cite this",
    "publication.json": "What was published when, and what was compared",
    "croissant.json": "Croissant 1.1 metadata of scores, completeness and sample",
    "weights/finder.safetensors": "Weights, with all that the finder needs to be built",
    "weights/finder.onnx": "The finder for ONNX runtimes, normalisation inside",
    "weights/finder.pt2": "The finder for torch.export, normalisation inside",
    "scores/sample.parquet": "What the exported finder gives for the sample",
    "scores/catalogue": "Catalogue of the test split, no counterfactuals: positions, probabilities",
    "scores/test": "Scores of the test split, as they were evaluated",
    "scores/val": "Scores of the split that calibration and thresholds were fitted on",
    "completeness/": "Completeness in cells, at each threshold",
    "report/report.html": "Report of the evaluation",
    "report/metrics.json": "Every figure of the report",
    "report/selection_function": "Selection function: table, model and evaluator",
    "report/figures/": "Figure of the report, or its numbers",
    "report/": "Part of the report",
    "audit/audit.html": "Audit of the run",
    "audit/": "Part of the audit",
    "probe/probe.html": "Shortcut probes",
    "probe/": "Part of the probes",
    "run/config.toml": "Configuration of the training",
    "run/environment.json": "Machine, versions and commit of the training",
    "run/metrics.jsonl": "Course of the training",
    "run/test_ledger.jsonl": "Every opening of the test split",
    "dataset/manifest.json": "Every shard of the dataset with its digest, and the account of rows",
    "sample/manifest.json": "Manifest of the sample, which is a dataset by itself",
    "sample/": "Sample of the test split",
}
"""By the start of a path; the first that fits."""

_MEDIA_TYPES: Final = {
    ".cff": "application/yaml",
    ".csv": "text/csv",
    ".fits": "application/fits",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".py": "text/x-python",
    ".tar": "application/x-tar",
    ".toml": "application/toml",
    ".vot": "application/x-votable+xml",
    "": "text/plain",
}


def list_items(folder: Path, evidence: Evidence) -> tuple[Item, ...]:
    """Every file of a folder, and what lies outside of it."""
    manifest, content = evidence.dataset.manifest, evidence.checkpoint_path
    source = manifest.source
    outside = (
        Item(
            id=SOURCE,
            title="Source files of the dataset, by the digest of their listing",
            sha256=source.get("digest"),
            bytes=source.get("bytes"),
            media_type=_MEDIA_TYPES[".parquet"],
        ),
        Item(
            id=DATASET,
            title="The dataset of shards, known by its id",
            sha256=manifest.dataset_id,
            bytes=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
            media_type=_MEDIA_TYPES[".tar"],
        ),
        Item(
            id=CHECKPOINT,
            title="The checkpoint of the training that the weights were taken from",
            sha256=evidence.checkpoint_sha256,
            bytes=content.stat().st_size,
        ),
    )
    return (*outside, *(_item(folder, name) for name in files_of(folder)))


def _item(folder: Path, name: str) -> Item:
    path = folder / name
    title = next((text for start, text in _TITLES.items() if name.startswith(start)), name)
    kind = _MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
    columns: list[Column] = []
    if path.suffix == ".parquet":
        schema = pq.read_schema(path)
        wanted = {*CATALOGUE, "probability"} if "key" in schema.names else {*schema.names}
        for field in schema:
            if field.name not in wanted:
                continue
            known = known_column(field.name)
            columns.append(Column(field.name, str(field.type), known.description, known.unit))
    return Item(
        id=name,
        title=title,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        media_type=kind,
        columns=tuple(columns),
    )


def lineage(evidence: Evidence, created: str, names: Sequence[str]) -> tuple[Step, ...]:
    """The commands from the source files to the folder of these items."""
    manifest, metrics = evidence.dataset.manifest, evidence.evaluation
    provenance = metrics["provenance"]

    def inside(*starts: str) -> tuple[str, ...]:
        return tuple(name for name in names if name.startswith(starts))

    scores = inside("scores/test.parquet", "scores/val.parquet")
    content = evidence.checkpoint
    trained = dict(content["versions"]) | _commit(content["git_commit"])
    now = {"lenstrain": lenstrain.__version__} | _commit(git_commit())
    weights, ledger = inside("weights/"), f"run/{LEDGER}"
    return (
        Step(id="convert", title="Convert the source files to shards", software=manifest.versions,
             inputs=(SOURCE,), outputs=(DATASET, *inside("dataset/"))),
        Step(id="train", title="Train the finder", software=trained, inputs=(DATASET,),
             outputs=(CHECKPOINT, *(n for n in inside("run/") if n != ledger))),
        Step(id="infer", title="Score the stamps", software=trained, ended=_opened(evidence),
             inputs=(CHECKPOINT, DATASET), outputs=(*scores, *inside(ledger))),
        Step(id="evaluate", title="Measure how good the scores are",
             software=provenance["versions"], ended=provenance["created"], inputs=scores,
             outputs=inside("report/")),
        Step(id="export", title="Write the finder for other programs", software=now, ended=created,
             inputs=(CHECKPOINT, *inside("report/metrics.json")), outputs=weights),
        Step(id="publish", title="Put the folder together", software=now, ended=created,
             inputs=(*scores, *inside("report/metrics.json"), *weights), outputs=(FOLDER,)),
    )  # fmt: skip


def _commit(commit: str | None) -> dict[str, str]:
    return {} if commit is None else {"commit": commit}


def _opened(evidence: Evidence) -> str | None:
    """When the test split was scored, by the ledger."""
    with suppress(ProjectError):
        for line in read_ledger(evidence.run) or []:
            if evidence.checkpoint_sha256 in line["members"]:
                return str(line["opened"])
    return None
