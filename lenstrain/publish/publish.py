"""The function behind `lenstrain publish`: one folder with all that a finder is, by digest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from scipy import special

import lenstrain
from lensprep.configfile import to_mapping
from lensprep.dataset import MANIFEST_NAME, Dataset
from lensprep.dataset.absence import no_run
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.dataset.sidecar import is_counterfactual
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import ProjectError, StorageError
from lensprep.store import (
    Uri,
    check_folder,
    exists,
    file_sha256,
    is_remote,
    join_uri,
    local_file,
    local_folder,
    local_path,
    uri_suffix,
    written_folder,
)
from lensprep.tables.reader import read_table
from lensprep.tables.writer import write_table
from lenstrain.audit.audit import check_stamps, is_looked_at
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.export import FLUX_WORDS, export_all
from lenstrain.pages.links import pages_of
from lenstrain.pages.page import AUDIT_NAME, CARD_NAME, METRICS_NAME
from lenstrain.publish.cards import FRONT_PAGES, write_cards, write_front
from lenstrain.publish.copied import copy_folders, mark_draft
from lenstrain.publish.crate import CRATE_NAME, crate
from lenstrain.publish.croissant import CROISSANT_NAME, croissant
from lenstrain.publish.digests import SUMS, files_of, write_sums
from lenstrain.publish.facts import About, Item, Party, Publication, license_url
from lenstrain.publish.fit import check_about, find_faults, find_table
from lenstrain.publish.lineage import CATALOGUE, lineage, list_items
from lenstrain.publish.sample import SAMPLE_ROWS, write_sample
from lenstrain.scoring.ledger import LEDGER
from lenstrain.training.runlog import CONFIG, ENVIRONMENT, METRICS_FILE

FACTS: Final = "publication.json"
"""This file marks a folder as a publication."""
PRIVATE: Final = ("host", "process")
"""Of the environment of a training, what is nobody's business."""
FORMAT: Final = "lenstrain-publication"
FORMAT_VERSION: Final = 1

Progress = Callable[[str, float], None]
"""Called with what begins, and the share of the work that is done."""


class NotFitError(ProjectError):
    """The run is not fit to be published; the message says why, and what to do."""


def publish(
    run: Uri,
    dataset: Uri,
    report: Uri,
    out: Uri,
    *,
    about: About | None = None,
    scores: Uri | None = None,
    calibration_scores: Uri | None = None,
    source: Iterable[Uri] = (),
    draft: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a folder that is ready for an archive.

    Parameters
    ----------
    run : str or path
        Run folder of `lenstrain train`; this and all other locations may be local or s3://.
    dataset : str or path
        The dataset that it was trained on.
    report : str or path
        Folder that `lenstrain evaluate` wrote of the test scores of the run's best checkpoint.
    out : str or path
        Folder to write. An earlier publication there is replaced whole; any other non-empty folder
        is refused. Nothing appears there after an error.
    about : About, optional
        What the authors say.
    scores, calibration_scores : str or path, optional
        The tables that the report was made from, if they were moved since.
    source : iterable of str or path
        Trees that the dataset was converted from: the exported files are compared on their stamps.
    draft : bool
        Write a run that is not fit to be published too, and say so on every page.
    progress : callable, optional

    Returns
    -------
    dict
        The content of publication.json, with ``out``, ``files``, ``bytes`` and ``sums_sha256``,
        which stands for every byte of the folder.

    Raises
    ------
    NotFitError
        If the run is not fit to be published, and `draft` is not set.
    ConfigError
        If `about` names a licence or an author that cannot be read.
    CheckpointError
        If the run was trained on other stamps than those of `dataset`.
    ProjectError
        If an exported file gives other scores than the checkpoint; and whatever reading raises.
    """
    about, tell = about or About(), progress or (lambda stage, done: None)
    check_about(about)
    if not exists(join_uri(run, CONFIG)):  # before a whole folder of another kind is copied
        raise StorageError(no_run(run))
    if not exists(join_uri(report, METRICS_NAME)):
        raise StorageError(
            f"{report} holds no {METRICS_NAME}: name a folder of `lenstrain evaluate`."
        )
    check_folder(out, FACTS)
    with ExitStack() as copies:
        folder = copies.enter_context(local_folder(run, wanted=is_looked_at))
        pages = copies.enter_context(local_folder(report))
        evidence = Evidence(
            folder, Dataset.open(dataset), Supplied(evaluation=pages), copied=is_remote(run)
        )
        check_stamps(evidence, str(run))
        provenance = evidence.evaluation["provenance"]
        tables = _find_tables(provenance, run, scores, calibration_scores)
        evidence.supplied = replace(
            evidence.supplied, scores=tables["test"], calibration_scores=tables.get("val")
        )
        tell("Is it fit to be published?", 0.0)
        faults = [
            fault.replace(str(folder), str(run)).replace("RUN", str(run))
            .replace("DATASET", str(dataset))
            for fault in find_faults(evidence, about)
        ]  # fmt: skip
        if faults and not draft:
            raise NotFitError(
                f"{run} is not fit to be published ({len(faults)}): {' | '.join(faults)} | Mend "
                "this, or write a draft with --draft."
            )
        created = datetime.now(UTC).isoformat(timespec="seconds")
        with written_folder(out, FACTS) as target:
            made = _Draft(target, evidence, about, tuple(faults), tables, created)
            facts = _write(made, str(run), pages, source, tell)
    return facts | {"out": str(out)}


def _find_tables(
    provenance: Mapping[str, Any], run: Uri, scores: Uri | None, calibration: Uri | None
) -> dict[str, Uri]:
    """The tables that the report was made from: ``test``, and ``val`` if there is one."""
    near = [] if is_remote(run) else [
        path
        for folder in (local_path(run), local_path(run).absolute().parent)
        for path in folder.glob("*.parquet")
    ]  # fmt: skip
    found = {}
    for name, key, given, option in (
        ("test", "scores", scores, "--scores"),
        ("val", "calibrate_on", calibration, "--calibration-scores"),
    ):
        if provenance[key] is not None:
            stated = given or provenance[key]
            looked = [] if given else near
            found[name] = find_table(stated, provenance[f"{key}_sha256"], looked, option)
    return found


@dataclass(frozen=True)
class _Draft:
    """A folder that is being written, and what it is written from."""

    out: Path
    evidence: Evidence
    about: About
    faults: tuple[str, ...]
    tables: Mapping[str, Uri]
    """Tables of scores by split."""
    created: str

    def copy_run(self) -> None:
        """What the run was told, where it ran, how it went, and how often test was opened."""
        folder = self.out / "run"
        folder.mkdir()
        for name in (CONFIG, METRICS_FILE, LEDGER):
            if (self.evidence.run / name).is_file():
                shutil.copyfile(self.evidence.run / name, folder / name)
        if (path := self.evidence.run / ENVIRONMENT).is_file():
            told = parse_json(path.read_bytes())
            write_json(folder / ENVIRONMENT, {n: told[n] for n in told if n not in PRIVATE})
        (self.out / "dataset").mkdir()
        text = self.evidence.dataset.manifest.to_json()
        (self.out / "dataset" / MANIFEST_NAME).write_text(text, encoding="utf-8")

    def write_tables(self) -> None:
        """Scores as they are, and those of test and completeness in every format."""
        origin = self.origin()
        for split, uri in self.tables.items():
            name = f"scores/{split}{uri_suffix(uri)}"
            (self.out / "scores").mkdir(exist_ok=True)
            with local_file(uri) as path:
                shutil.copyfile(path, self.out / name)
        found = read_table(self.tables["test"])
        if not (path := self.out / "scores" / "test.parquet").exists():
            write_table(path, found.table, found.metadata, origin)
        catalogue = self.catalogue(found.table)
        for suffix in (".fits", ".vot"):
            path = self.out / "scores" / f"catalogue{suffix}"
            write_table(path, catalogue, found.metadata, origin)
        cells = self.evidence.completeness
        (self.out / "completeness").mkdir()
        facts = {"checkpoint_sha256": self.evidence.checkpoint_sha256,
                 "dataset_id": self.evidence.dataset.dataset_id}  # fmt: skip
        for suffix in (".parquet", ".csv", ".fits", ".vot"):
            write_table(self.out / "completeness" / f"completeness{suffix}", cells, facts, origin)

    def catalogue(self, scores: pa.Table) -> pa.Table:
        """What a catalogue has of scores, with the calibrated probability.

        Counterfactuals are no objects of the sky, and not what the calibration was fitted on.
        """
        ordinary = pa.array(~is_counterfactual(scores))
        names = [name for name in CATALOGUE if name in scores.column_names]
        table = scores.filter(ordinary).select([n for n in names if n != COUNTERFACTUAL])
        calibration = self.evidence.evaluation["calibration"]
        if calibration is None:
            return table
        logit = table["logit"].cast(pa.float64()).to_numpy()
        mapped = special.expit(calibration["slope"] * logit + calibration["offset"])
        place = table.column_names.index("logit") + 1
        return table.add_column(place, "probability", pa.array(mapped.astype(np.float32)))

    def origin(self) -> dict[str, str | list[str]]:
        """What a table says of its own origin, under the names of the IVOA's Data Origin."""
        about = self.about
        return {
            "publisher": about.publisher and Party.parse(about.publisher).name,
            "creator": [person.name for person in about.people],
            "contact": about.contact,
            "rights": about.license,
            "rights_uri": about.license and license_url(about.license),
            "reference_url": about.url,
            "article": about.article,
            "citation": self.publication(()).citation,
            "resource_version": about.version,
            "publication_date": self.created[:10],
        }

    def publication(self, items: tuple[Item, ...]) -> Publication:
        """What cards and metadata are written from."""
        return Publication(
            about=self.about,
            created=self.created,
            version=lenstrain.__version__,
            faults=self.faults,
            items=items,
            steps=lineage(self.evidence, self.created, [item.id for item in items]),
            manifest=self.evidence.dataset.manifest,
            metrics=parse_json((self.evidence.evaluation_folder / METRICS_NAME).read_bytes()),
        )


def _write(
    draft: _Draft, run: str, report: Path, source: Iterable[Uri], tell: Progress
) -> dict[str, Any]:
    """Write everything; returns the content of publication.json and the sizes."""
    out, evidence = draft.out, draft.evidence
    pages = {"report": report}
    for name, page in pages_of(run, evidence.checkpoint_sha256).items():
        if name != "report" and not is_remote(page):
            pages[name] = Path(page).parent
    there = {CARD_NAME: report / CARD_NAME}
    if not is_remote(run):
        there["run"] = local_path(run)
    if not is_remote(evidence.dataset.uri):
        there["dataset"] = evidence.dataset.root
    draft.copy_run()
    tell("Tables", 0.1)
    draft.write_tables()
    tell("Weights", 0.2)
    (out / "weights").mkdir()
    exported = export_all(
        evidence.checkpoint_path,
        out / "weights",
        report=report,
        dataset=evidence.dataset.uri,
        source=tuple(source),
        progress=lambda done, rows: tell("Weights", 0.2 + 0.65 * done / rows),
    )
    weights = [
        {"flux": FLUX_WORDS[exported["flux"]]}
        | made
        | {"path": f"weights/{Path(made['path']).name}"}
        for made in exported["files"]
    ]
    tell("Sample", 0.85)
    write_sample(out, evidence.dataset, SAMPLE_ROWS, seed=0)
    tell("Cards", 0.95)
    facts = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": draft.created,
        "version": lenstrain.__version__,
        "faults": list(draft.faults),
        "about": to_mapping(draft.about),
        "dataset_id": evidence.dataset.dataset_id,
        "checkpoint_sha256": evidence.checkpoint_sha256,
        "weights": weights,
        "audit": _verdict(pages["audit"] / AUDIT_NAME) if "audit" in pages else None,
    }
    write_json(out / FACTS, facts)
    write_cards(out, draft.publication(()), facts)
    copy_folders(pages, out, there)
    (out / "report" / CARD_NAME).unlink(missing_ok=True)  # its blanks are filled in the other
    if draft.faults:
        mark_draft(out, files_of(out), draft.faults)
    write_front(out, draft.publication(list_items(out, evidence)), facts)
    if draft.faults:
        mark_draft(out, FRONT_PAGES, draft.faults)
    for name, make in ((CROISSANT_NAME, croissant), (CRATE_NAME, crate)):
        write_json(out / name, make(draft.publication(list_items(out, evidence))))
    write_sums(out)
    names = files_of(out)
    return facts | {
        "files": len(names),
        "bytes": sum((out / name).stat().st_size for name in names),
        "sums_sha256": file_sha256(out / SUMS),
    }


def _verdict(path: Path) -> dict[str, Any]:
    """What the audit decided, and the blockers that did not pass."""
    audit = parse_json(path.read_bytes())
    blockers = [f["item"] for f in audit["findings"]
                if f["severity"] == "blocker" and f["passed"] is not True]  # fmt: skip
    return {"verdict": audit["verdict"], "blockers": blockers}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values for people and programs."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
