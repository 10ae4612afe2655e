"""Everything an audit may look at: the run, the dataset, scores, evaluation, probes, and others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.configfile import load_config
from lensprep.dataset import Dataset, Geometry, ShardInfo
from lensprep.dataset.layout import COUNTERFACTUAL, REAL
from lensprep.dataset.sidecar import is_counterfactual, join_tables
from lensprep.errors import ProjectError, ScoresError, StorageError
from lensprep.store import Uri, exists, file_sha256, is_remote, local_path
from lenstrain.audit.finding import NotRunError
from lenstrain.config import Config
from lenstrain.evaluation.origins import judge_origins, part_of
from lenstrain.evaluation.scores import Scores, read_scores
from lenstrain.pages.page import METRICS_NAME, PROBE_NAME, PROBE_PAGE, REPORT_NAME
from lenstrain.probes.words import not_run
from lenstrain.scoretable import read_metadata
from lenstrain.training.checkpoint import BEST, load_checkpoint
from lenstrain.training.runlog import CHECKPOINTS, CONFIG


@dataclass(frozen=True, kw_only=True, slots=True)
class Supplied:
    """Files that the caller names; others are looked for in the run folder and next to it."""

    scores: Uri | None = None
    """Scores table of the test split."""
    evaluation: Uri | None = None
    """Folder that `lenstrain evaluate` wrote."""
    calibration_scores: Uri | None = None
    """Scores that the evaluation was calibrated on, if they were moved since."""
    probe: Uri | None = None
    """probe.json, or the folder it lies in."""
    seed_scores: tuple[Uri, ...] = ()
    """Scores of the same split by runs with other seeds."""
    left_out: tuple[str, ...] = ()
    """``COLUMN=VALUE:SCORES`` by runs that were trained without that value."""
    real: Uri | None = None
    """Scores of real lenses: a table with ``logit``. Without it, the dataset's own are judged."""
    confusers: Uri | None = None
    """Scores of objects that look like lenses: a table with ``kind`` and ``logit``. Of kinds that
    it lacks, the dataset's own real rows are judged."""


@dataclass
class Evidence:
    """What was found; each file is read on first use.

    A property raises `NotRunError` if there is nothing to read; the message says how to supply it.
    """

    run: Path
    dataset: Dataset
    supplied: Supplied = field(default_factory=Supplied)
    run_checks: bool = False
    """Whether the short trainings are allowed."""
    copied: bool = False
    """Whether `run` is a local copy of a remote run: files next to the copy are not the run's."""
    made: dict[str, Any] = field(default_factory=dict, repr=False)
    """What one item computed and another needs too, by name."""

    @property
    def geometry(self) -> Geometry:
        """What the dataset's stamps have in common."""
        return self.dataset.manifest.geometry

    @cached_property
    def config(self) -> Config:
        """Configuration of the run."""
        path = self.run / CONFIG
        if not path.is_file():
            raise NotRunError(f"{self.run} has no {CONFIG}: it is not the folder of a run.")
        return load_config(Config, path)

    @property
    def checkpoint_path(self) -> Path:
        """The best checkpoint."""
        path = self.run / CHECKPOINTS / BEST
        if not path.is_file():
            raise NotRunError(
                f"{path}: no such file. A run writes it after the first epoch with a finite metric."
            )
        return path

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """Content of the best checkpoint."""
        return load_checkpoint(self.checkpoint_path)

    @cached_property
    def checkpoint_sha256(self) -> str:
        """Digest of the best checkpoint."""
        return file_sha256(self.checkpoint_path)

    @cached_property
    def scores(self) -> Scores:
        """Scores of the test split by the run's best checkpoint."""
        if self.supplied.scores is not None:
            found = read_scores(self.supplied.scores)
            self._same_checkpoint(found.metadata.get("checkpoint_sha256"), found.path)
            return found
        for path in self._near("*.parquet"):
            if self._is_mine(read_metadata(path)):
                return read_scores(path)
        raise NotRunError(
            f"There are no scores of the test split by this run's best.pt {self._searched}. Make "
            "them with `lenstrain infer --split test`, or name them with --scores."
        )

    @property
    def judged(self) -> Scores:
        """The rows of `scores` that the evaluation's headline is of: one origin's, as a rule."""
        return judge_origins(self.scores, None, self._pooled).scores

    @property
    def judged_calibration(self) -> Scores:
        """The rows of `calibration` that its thresholds were chosen on."""
        if len(self.calibration.origins) == 1:
            return self.calibration
        origin = judge_origins(self.scores, None, self._pooled).origin
        return self.calibration if origin is None else part_of(self.calibration, origin)

    @property
    def _pooled(self) -> bool:
        """Whether the evaluation pools origins; no if there is none yet."""
        with suppress(NotRunError):
            return self.evaluation.get("origin", "") is None
        return False

    def judged_of(self, other: Scores) -> Scores:
        """The rows of another run's scores that are `judged` here."""
        judged = self.judged
        if judged.n == other.n:
            return other
        return other.where(
            pc.is_in(other.table["key"], value_set=judged.table["key"].combine_chunks()).to_numpy()
        )

    def own_real(self, label: int) -> NDArray[np.int64]:
        """Real rows of a class in the scores, ascending; none that the network was trained on."""
        try:
            scores = self.scores
        except NotRunError:
            return np.empty(0, np.int64)
        chosen = (scores.labels == label) & scores.is_of(REAL)
        if scores.has("split"):
            chosen &= pc.fill_null(pc.not_equal(scores.table["split"], "train"), True).to_numpy()
        elif scores.metadata.get("split") == "train":
            chosen[:] = False
        return np.flatnonzero(chosen)

    def own_words(self, rows: NDArray[np.int64]) -> str:
        """Say that these own rows were judged."""
        split = self.scores.metadata.get("split", "test")
        return f"Judged: the {len(rows):,} real ones of the dataset itself, in {split}."

    def given(self, option: str, label: int) -> str:
        """Say that rows given with an option were judged, and which own ones were not."""
        own = len(self.own_real(label))
        left = f", not the {own:,} real ones of the dataset itself" if own else ""
        return f"Judged: those of {option}{left}."

    @cached_property
    def evaluation_folder(self) -> Path:
        """Folder of the evaluation of those scores."""
        named = self.supplied.evaluation
        if named is not None:
            folder = local_path(named)
            sha256 = _scores_metadata(folder / METRICS_NAME).get("checkpoint_sha256")
            self._same_checkpoint(sha256, folder)
            return folder
        for path in self._near(f"*/{METRICS_NAME}"):
            with suppress(NotRunError):
                if self._is_mine(_scores_metadata(path)):
                    return path.parent
        raise NotRunError(
            f"There is no evaluation of this run's test scores {self._searched}. Make it with "
            "`lenstrain evaluate --calibrate-on`, or name it with --evaluation."
        )

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Content of metrics.json."""
        return _read_json(self.evaluation_folder / METRICS_NAME, _EVALUATION)

    @cached_property
    def calibration(self) -> Scores:
        """Scores that the evaluation's thresholds and calibration were fitted on."""
        provenance = self.evaluation["provenance"]
        stated, sha256 = provenance["calibrate_on"], provenance["calibrate_on_sha256"]
        if stated is None:
            raise NotRunError(
                "The evaluation was not calibrated on another split. Evaluate with "
                "`--calibrate-on`."
            )
        named = self.supplied.calibration_scores
        if named is not None:
            found = read_scores(named)
            if found.sha256 != sha256:
                raise NotRunError(f"{named} is not the table that the evaluation calibrated on.")
            return found
        for path in (stated, *self._near("*.parquet")):
            with suppress(ProjectError, OSError):
                if file_sha256(path) == sha256:
                    return read_scores(path)
        raise NotRunError(
            f"{stated}, which the evaluation was calibrated on, was moved or changed. Name it with "
            "--calibration-scores."
        )

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of the files that a verdict rests on, None if missing, and the dataset's id."""

        def digest(read: Callable[[], str]) -> str | None:
            try:
                return read()
            except ProjectError:
                return None

        return {
            "dataset_id": self.dataset.dataset_id,
            "config": digest(lambda: file_sha256(self.run / CONFIG)),
            "checkpoint": digest(lambda: self.checkpoint_sha256),
            "scores": digest(lambda: self.scores.sha256),
            "calibration_scores": digest(lambda: self.calibration.sha256),
            "metrics": digest(lambda: file_sha256(self.evaluation_folder / METRICS_NAME)),
        }

    @cached_property
    def completeness(self) -> pa.Table:
        """Cells of completeness.parquet."""
        path = self.evaluation_folder / "completeness.parquet"
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise NotRunError(f"{path} cannot be read: {error}. Evaluate again.") from error

    @property
    def probe_path(self) -> Path:
        """Where probe.json is, or would be."""
        path = local_path(self.supplied.probe or self.run / "probe")
        return path / PROBE_NAME if path.is_dir() else path

    @property
    def pages(self) -> dict[str, Path]:
        """The pages of report and probes that the audit is of, those that there are."""
        found = {}
        with suppress(ProjectError):
            found["report"] = self.evaluation_folder / REPORT_NAME
        with suppress(ProjectError):
            if self.probe:
                found["probe"] = self.probe_path.parent / PROBE_PAGE
        return found

    @cached_property
    def probe(self) -> dict[str, Any]:
        """Content of probe.json for the run's best checkpoint."""
        path = self.probe_path
        if not path.is_file():
            if self.supplied.probe is not None:
                raise NotRunError(f"{self.supplied.probe} holds no {PROBE_NAME}.")
            raise NotRunError(
                f"Not probed. Run `lenstrain probe {self.run}/{CHECKPOINTS}/{BEST} "
                f"{self.dataset.uri}`."
            )
        content = _read_json(path, {"probes": {}, "readings": {}})
        if content.get("checkpoint_sha256") != self.checkpoint_sha256:
            raise NotRunError(f"{path} was made from another checkpoint. Probe this one again.")
        return content

    def probed(self, name: str) -> dict[str, Any]:
        """One result of the probes."""
        entry: dict[str, Any] | None = self.probe["probes"].get(name)
        if entry is None:
            raise NotRunError(f"The probe {name} could not be run. {not_run(self.probe, name)}")
        if "reason" in entry:
            raise NotRunError(f"The probe {name} could not be run: {entry['reason']}")
        return entry

    def frozen_threshold(self) -> dict[str, Any]:
        """The first frozen threshold of the evaluation, with its rates."""
        for entry in self.evaluation["completeness_thresholds"]:
            if entry.get("threshold") is not None:
                return dict(entry)
        raise NotRunError("The evaluation has no frozen threshold.")

    def other_scores(self, path: Uri) -> Scores:
        """Scores of another run; the same rows as `scores`."""
        found = read_scores(path)
        if set(found.table["key"].to_pylist()) != set(self.scores.table["key"].to_pylist()):
            raise ScoresError(
                f"{path} has other rows than {self.scores.path}: score the same split."
            )
        return found

    def sidecar(self, split: str, columns: Sequence[str], *, everything: bool = False) -> pa.Table:
        """Sidecar columns of a split; NotRunError if one is missing.

        Counterfactuals are no independent images, so their rows are left out unless `everything`
        is wanted.
        """
        self._require(columns)
        table = self.dataset.read_sidecar(split, list(columns))
        return table if everything else table.take(pa.array(self.rows_of(split)))

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Positions in a split of the rows that are no counterfactuals."""
        if COUNTERFACTUAL not in self.columns:
            return np.arange(self.dataset.split(split).rows)
        return np.flatnonzero(
            ~is_counterfactual(self.dataset.read_sidecar(split, [COUNTERFACTUAL]))
        )

    def all_sidecars(self, columns: Sequence[str], *, everything: bool = False) -> pa.Table:
        """Sidecar columns of all splits, one split after the other, each as `sidecar` has it."""
        tables = [self.sidecar(split, columns, everything=everything) for split in self.splits]
        return join_tables(tables, f"{self.dataset.uri}: the sidecars")

    def _require(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.columns:
                raise NotRunError(
                    f"The sidecars have no column {name!r}. Convert the source again with it, "
                    "if it has one."
                )

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the first sidecar."""
        if not self.splits:
            raise NotRunError("The dataset is empty.")
        return self.dataset.columns(self.splits[0])

    @property
    def splits(self) -> list[str]:
        """Splits that have rows."""
        return [name for name, split in self.dataset.manifest.splits.items() if split.rows]

    @cached_property
    def rows(self) -> int:
        """Rows of all splits that are no counterfactuals."""
        return sum(len(self.rows_of(split)) for split in self.splits)

    def sampled(self, columns: Sequence[str], rows: int) -> pa.Table:
        """At least `rows` rows (if there are) of some columns, spread evenly over all shards.

        Rows lie in a shuffled order, so every k-th row of a shard is a random sample.
        """
        step = max(1, self.rows // rows)
        tables = [t.take(_every(step, t)) for _, t, _ in self._sidecars(columns)]
        return join_tables(tables, f"{self.dataset.uri}: the sidecars")

    def sampled_pixels(
        self, columns: Sequence[str], rows: int
    ) -> tuple[pa.Table, NDArray[np.float16]]:
        """At most about `rows` rows, spread evenly, with their stored pixels (n, bands, S, S).

        Counterfactuals are among them: a finder is trained on their pixels too.
        """
        total = sum(self.dataset.split(split).rows for split in self.splits)
        step = max(1, -(-total // rows))
        return self._chosen(columns, lambda table: _every(step, table), everything=True)

    def grouped_pixels(
        self, group: str, columns: Sequence[str], rows: int, seed: int
    ) -> tuple[pa.Table, NDArray[np.float16]]:
        """Every row of some bricks or regions, drawn until `rows` are reached, and their pixels.

        `group` is the one of `columns` that names the brick or region of a row.
        """
        counted = self.all_sidecars([group])[group].value_counts()
        order = np.random.default_rng(seed).permutation(len(counted))
        ends = np.cumsum(counted.field("counts").to_numpy()[order])
        chosen = counted.field("values").take(order[: int(np.searchsorted(ends, rows)) + 1])
        return self._chosen(
            columns, lambda t: np.flatnonzero(pc.is_in(t[group], value_set=chosen).to_numpy())
        )

    def _chosen(
        self,
        columns: Sequence[str],
        choose: Callable[[pa.Table], NDArray[np.int64]],
        everything: bool = False,
    ) -> tuple[pa.Table, NDArray[np.float16]]:
        """Rows of every shard that `choose` picks from its sidecar, with their pixels."""
        self._require(columns)
        tables, pixels = [], []
        for shard, table, rows in self._sidecars(columns, everything):
            index = choose(table)
            if len(index):
                tables.append(table.take(index))
                pixels.append(self.dataset.read_shard_pixels(shard, rows[index]))
        return join_tables(tables, f"{self.dataset.uri}: the sidecars"), np.concatenate(pixels)

    def _sidecars(
        self, columns: Sequence[str], everything: bool = False
    ) -> Iterator[tuple[ShardInfo, pa.Table, NDArray[np.int64]]]:
        """Every shard, rows of its sidecar as `sidecar` chooses them, and their positions."""
        marked = [name for name in [COUNTERFACTUAL] if name in self.columns]
        for split in self.splits:
            for shard in self.dataset.split(split).shards:
                names = list(dict.fromkeys([*columns, *marked]))
                table = self.dataset.read_shard_sidecar(shard, names)
                made = is_counterfactual(table)
                rows = np.arange(len(made)) if everything else np.flatnonzero(~made)
                yield shard, table.select(list(columns)).take(pa.array(rows)), rows

    def _near(self, pattern: str) -> list[Path]:
        """Files in the run folder and, on a disk, next to it, newest first."""
        folders = [self.run] if self.copied else [self.run, self.run.parent]
        found = [path for folder in folders for path in folder.glob(pattern)]
        return sorted(found, key=lambda path: -path.stat().st_mtime)

    @property
    def _searched(self) -> str:
        return "in the run folder" if self.copied else "in the run folder or next to it"

    def _is_mine(self, metadata: dict[str, Any]) -> bool:
        """Whether scores are of the test split by this run's best checkpoint."""
        if metadata.get("split") != "test":
            return False
        return bool(metadata.get("checkpoint_sha256") == self.checkpoint_sha256)

    def _same_checkpoint(self, sha256: str | None, path: Uri) -> None:
        if sha256 is not None and sha256 != self.checkpoint_sha256:
            raise NotRunError(f"{path} was not made from {self.run}'s best.pt.")


_EVALUATION = {
    "provenance": {"scores_metadata": {}},
    "auroc": {},
    "tpr_at_fpr": {},
    "completeness_thresholds": [],
}
"""What is read of metrics.json, by its kind."""


def _scores_metadata(metrics: Path) -> dict[str, Any]:
    found: dict[str, Any] = _read_json(metrics, _EVALUATION)["provenance"]["scores_metadata"]
    return found


def _every(step: int, table: pa.Table) -> NDArray[np.int64]:
    return np.arange(0, table.num_rows, step)


class _Report(dict[str, Any]):
    """An object in the JSON of a report; a missing key is a fault of the file."""

    where: Path

    def __missing__(self, key: str) -> Any:
        raise NotRunError(
            f"{self.where} has no {key}: another version wrote it, or it is damaged. Make it again."
        )


def _read_json(path: Path, form: dict[str, Any]) -> _Report:
    """Read a report; the entries that `form` names must be of the type that they have there."""

    def report(content: dict[str, Any]) -> _Report:
        found = _Report(content)
        found.where = path
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=report)
    except OSError as error:
        raise NotRunError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise NotRunError(f"{path} is not JSON: {error}.") from error
    _require_form(content, form, path)
    return cast(_Report, content)


def _require_form(content: Any, form: Any, path: Path, name: str = "It") -> None:
    if not isinstance(content, type(form)):
        raise NotRunError(f"{path} is no report of ours: {name} is {content!r:.40}. Make it again.")
    for key in form:
        _require_form(content[key], form[key], path, key)


def check_supplied(supplied: Supplied) -> None:
    """Check that every file that was named is there.

    Raises
    ------
    StorageError
        If one is not.
    ProjectError
        If a left-out value is not of the form ``COLUMN=VALUE:SCORES``.
    """
    tables = (supplied.scores, supplied.calibration_scores, supplied.real, supplied.confusers,
              *supplied.seed_scores)  # fmt: skip
    for table in tables:
        if table is None or exists(table) or (not is_remote(table) and local_path(table).is_dir()):
            continue  # a table may be a folder of part files
        raise StorageError(f"{table}: no such file.")
    for report in (supplied.evaluation, supplied.probe):
        if report is not None and not local_path(report).exists():
            raise StorageError(f"{report}: no such file or folder.")
    for text in supplied.left_out:
        parse_left_out(text)


def parse_left_out(text: str) -> tuple[str, str, str]:
    """Split ``COLUMN=VALUE:SCORES``.

    Raises
    ------
    ProjectError
        If it is not of that form, or the file is not there.
    """
    head, colon, tail = text.partition(":")
    column, equals, value = head.partition("=")
    if not (colon and equals and column and value and tail):
        raise ProjectError(f"--left-out {text!r}: write it as COLUMN=VALUE:SCORES.")
    if not exists(tail):
        raise StorageError(f"{tail}: no such file.")
    return column, value, tail
