"""Write a finder for others, and prove that it is the one that was trained.

    export("runs/a/checkpoints/best.pt", ["finder.onnx", "finder.pt2"], report="report")

Every file is written under another name, read back, compared with the checkpoint on stamps of a
dataset, and only then moved into place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, Geometry, NormalizationSpec
from lensprep.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    NotFoundError,
    ScoresError,
    StorageError,
)
from lensprep.store import Uri, check_file, join_uri, read_file, written_file
from lenstrain.export.compare import LOGIT_TOLERANCE, Difference, compare
from lenstrain.export.exported import FORMATS, Exported, format_of, open_exported
from lenstrain.export.network import FluxFinder
from lenstrain.export.stamps import decoded, restored
from lenstrain.networks.weights import require_geometry, trained_geometry
from lenstrain.scoring.origins import DatasetOrigin, spell
from lenstrain.training.checkpoint import load_finder, versions
from lenstrain.training.portable import map_of

_METRICS: Final = "metrics.json"
_MOST_METRICS: Final = 1 << 28
_KEPT: Final = (
    "normalization", "geometry", "label_map", "dataset_id", "step", "epoch", "versions",
    "git_commit",
)  # fmt: skip
"""What a checkpoint says of itself, and its exports too."""
_PLACES: Final = {"data": ("cache_dir", "sample_weights"), "model": ("weights",)}
"""Settings that name places on the machine of the training."""

FLUX_WORDS: Final = {
    "source": "decoded from the source",
    "restored": "restored from the shards",
    "measured anew": "restored from the shards, its statistics measured anew",
}
"""What flux a comparison was on, in words."""

Progress = Callable[[int, int], None]
"""Called with stamps done and stamps in all."""


def export(
    checkpoint: Uri,
    out: Uri | Sequence[Uri] = (),
    *,
    report: Uri | None = None,
    dataset: Uri | None = None,
    source: Sequence[Uri] = (),
    split: str = "test",
    rows: int | None = None,
    check: Uri | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a finder with its normalisation and calibration, each file compared with the original.

    Parameters
    ----------
    checkpoint : str or path
        From `lenstrain train`, or a ``.safetensors`` of this function; averaged weights if the run
        kept an average. This and all other locations may be local or s3://.
    out : str or path, or a sequence of them
        Files to write, each ``.safetensors``, ``.onnx`` or ``.pt2``.
    report : str or path, optional
        Folder of `lenstrain evaluate` on scores of this checkpoint: its calibration makes the
        probabilities, and if those scores are means over D4, so are the logits.
    dataset : str or path, optional
        Where to take stamps for the comparison; by default the dataset of the training, if it is
        there.
    source : sequence of str or path
        The trees that the dataset was converted from: their stamps are decoded, instead of
        restoring flux from stored pixels.
    split : str
    rows : int, optional
        Stamps to draw at random; all by default.
    check : str or path, optional
        An exported file to compare, instead of writing any. Calibration and mean over D4 are then
        its own if there is no `report`.
    progress : callable, optional

    Returns
    -------
    dict
        ``checkpoint``, ``checkpoint_sha256``, ``calibration`` (or None), ``tta``, ``dataset``,
        ``dataset_id``, ``split``, ``flux`` (``"source"``, ``"restored"``, ``"measured anew"``, or
        None without a comparison), ``tolerance``, ``notes`` (lines), ``seconds``, and ``files``:
        of each ``path``, ``format``, ``runtime``, ``version``, ``bytes``, ``sha256``, ``rows``, and
        ``largest_`` and ``mean_`` ``logit_difference`` and ``probability_difference``.

    Raises
    ------
    CheckpointError
        If the checkpoint, the report or the file to check cannot be used or belong to something
        else; or if a file differs by more than rounding: then none is left behind.
    ConfigError
        If there is nothing to do, or the normalisation is not known to this version.
    DatasetError, ShardError, InputError
        If the stamps cannot be read.
    StorageError
        If a file cannot be written.
    """
    began = time.perf_counter()
    outs = [out] if isinstance(out, str | PathLike) else list(out)
    if bool(outs) == (check is not None) or len({*map(str, outs)}) < len(outs):
        raise ConfigError("Name files to write, each once, or one file to check.")
    for path in outs:
        format_of(path)
        check_file(path)
    model, meta, sha256 = load_finder(checkpoint, "cpu")
    # Of a file that was exported before, the checkpoint that it was made from.
    identity = str(meta.get("checkpoint_sha256", sha256))
    judged = None if report is None else read_report(report, {sha256, identity}, str(checkpoint))
    checked = None if check is None else open_exported(check)
    if checked is not None:
        _require_same(checked, str(check), meta, identity, str(checkpoint), judged)
    chosen = judged or ({} if checked is None else checked.facts)
    facts = {name: meta[name] for name in _KEPT} | {
        "config": portable_config(meta["config"]),
        "calibration": chosen.get("calibration"),
        "tta": chosen.get("tta", False),
        "checkpoint_sha256": identity,
        "exported_with": versions(),
        **_description(Geometry.from_dict(meta["geometry"]), chosen.get("calibration")),
    }
    data, notes = _open_dataset(checkpoint, meta, dataset, split, source)
    if facts["calibration"] is not None and facts["calibration"].get("at_bound"):
        notes.append(
            "The classes hardly overlap in the scores that the calibration was fitted on, or it "
            "found no information: do not trust the probabilities."
        )
    with ExitStack() as drafts:
        files: list[tuple[Uri, Exported]] = []
        if checked is not None and check is not None:
            files.append((check, checked))
        finder = FluxFinder(model, facts)
        for path in outs:
            draft = drafts.enter_context(written_file(path))
            format_of(path).write(draft, finder, facts)
            files.append((path, open_exported(draft)))
        differences = [Difference(one) for _, one in files]
        flux = None
        if data is not None:
            flux = _compare(model, data, split, source, rows, differences, facts, progress)
            for (path, _), difference in zip(files, differences, strict=True):
                difference.require_small(str(path), str(checkpoint))
    return {
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": identity,
        "calibration": facts["calibration"],
        "tta": facts["tta"],
        "dataset": None if data is None else data.uri,
        "dataset_id": None if data is None else data.dataset_id,
        "split": split,
        "flux": flux,
        "tolerance": LOGIT_TOLERANCE,
        "notes": notes,
        "files": [
            {"path": str(path), "format": one.format, "runtime": one.runtime,
             "version": one.version, "bytes": one.bytes, "sha256": one.sha256,
             **difference.to_dict()}
            for (path, one), difference in zip(files, differences, strict=True)
        ],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def export_all(
    checkpoint: Uri, folder: Uri, name: str = "finder", **options: Any
) -> dict[str, Any]:
    """Write a finder in every format into a folder; options and errors are those of `export`."""
    return export(checkpoint, [join_uri(folder, name + suffix) for suffix in FORMATS], **options)


def _description(geometry: Geometry, calibration: Mapping[str, Any] | None) -> dict[str, Any]:
    """What goes in and what comes out, for people and for readers that know nothing of us."""
    nanomaggies = geometry.zero_point == 22.5
    unit = "nanomaggy" if nanomaggies else f"flux of zero point {geometry.zero_point:g}"
    how = "not calibrated" if calibration is None else f"calibrated, {calibration['kind']}"
    return {
        "input": {
            "name": "flux",
            "dtype": "float32",
            "shape": ["batch", *geometry.shape],
            "axes": ["stamp", "band", "row", "column"],
            "bands": list(geometry.bands),
            "unit": f"{unit} per pixel",
        },
        "outputs": {
            "logit": "float32, as in the tables of scores; NaN of a stamp that cannot be used",
            "probability": f"float32, that it is a lens; {how}",
        },
    }


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a training without the places on its machine."""
    return {
        section: {n: v for n, v in entries.items() if n not in _PLACES.get(section, ())}
        for section, entries in config.items()
    }


def read_report(report: Uri, digests: set[str], checkpoint: str) -> dict[str, Any]:
    """Calibration (or None) and ``tta`` of a report of `lenstrain evaluate`.

    Parameters
    ----------
    report : str or path
        Its folder.
    digests : set of str
        Any of which is the checkpoint's.
    checkpoint : str
        Its name in messages.

    Raises
    ------
    ScoresError
        If it is no report, or one of scores that are not this checkpoint's alone.
    """
    where = join_uri(report, _METRICS)
    try:
        content = json.loads(read_file(where, most=_MOST_METRICS))
        scored = content["provenance"]["scores_metadata"]
        calibration, tta = content["calibration"], scored.get("tta", False)
        if calibration is not None:
            slope, offset = map_of(calibration)
            calibration = {
                "kind": str(calibration["kind"]), "slope": slope, "offset": offset,
                "at_bound": bool(calibration["at_bound"]), "n": int(calibration["n"]),
            }  # fmt: skip
        members = scored.get("members") or [scored]
        found = [member.get("checkpoint_sha256") for member in members]
    except NotFoundError:
        raise ScoresError(
            f"{report} holds no {_METRICS}: `lenstrain evaluate` writes one."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DatasetError):
        raise ScoresError(
            f"{where} is no report of lenstrain. `lenstrain evaluate` writes one."
        ) from None
    if len(found) > 1:
        raise ScoresError(
            f"{report} is of mean logits of {len(found)} checkpoints, which no exported finder "
            f"gives. Score {checkpoint} alone, and evaluate that."
        )
    if found[0] not in digests:
        which = "a checkpoint" if found[0] is None else f"one of SHA-256 {found[0]!s:.12}"
        raise ScoresError(
            f"{report} is not of scores of {checkpoint}, but of {which}. Give its own report."
        )
    return {"calibration": calibration, "tta": tta is True}


def _require_same(
    found: Exported,
    where: str,
    meta: Mapping[str, Any],
    identity: str,
    checkpoint: str,
    judged: Mapping[str, Any] | None,
) -> None:
    """Refuse, with CheckpointError, a file that says to be of something else."""
    facts = found.facts
    trained = trained_geometry(meta, checkpoint)
    require_geometry(trained, Geometry.from_dict(facts["geometry"]), checkpoint, where)
    ours, theirs = (NormalizationSpec.from_dict(one["normalization"]) for one in (meta, facts))
    if ours.to_dict() != theirs.to_dict():
        raise CheckpointError(
            f"{where} normalises by {spell(theirs)}, but {checkpoint} was trained with "
            f"{spell(ours)}. Export it again."
        )
    if facts["checkpoint_sha256"] != identity:
        raise CheckpointError(
            f"{where} was made from another checkpoint, of SHA-256 "
            f"{facts['checkpoint_sha256']:.12}, than {checkpoint}, of {identity:.12}."
        )
    if judged is not None and any(facts[name] != judged[name] for name in ("calibration", "tta")):
        raise CheckpointError(
            f"{where} was made with another report: its calibration or mean over D4 differs. "
            "Export it again."
        )


def _open_dataset(
    checkpoint: Uri,
    meta: Mapping[str, Any],
    dataset: Uri | None,
    split: str,
    source: Sequence[Uri],
) -> tuple[Dataset | None, list[str]]:
    """The dataset to compare on, if there is one, and lines that say what was not done."""
    if dataset is None:
        dataset = meta.get("dataset") or None
        try:
            found = None if dataset is None else Dataset.open(dataset).dataset_id
        except (DatasetError, StorageError):
            found = None
        if dataset is None or found != meta["dataset_id"]:
            if source:
                raise ConfigError(
                    "The dataset of the training is not there, and only its rows can be found in "
                    "the source. Name a copy of it with --dataset."
                )
            return None, [
                f"Nothing was compared: the dataset of the training, {meta['dataset_id'][:12]}, is "
                "not there. Name a copy of it with --dataset."
            ]
    # What scoring would refuse: stamps, normalisation or labels of another kind.
    DatasetOrigin(dataset, split, 1).check(dict(meta), str(checkpoint))
    data = Dataset.open(dataset)
    if not data.split(split).rows:
        raise DatasetError(f"{data.uri}: split {split} is empty. Compare on another with --split.")
    notes = []
    if not source and data.manifest.normalization.by_stamp:
        notes.append(
            "Flux was restored from stored pixels, and its statistics measured anew, for the "
            "checkpoint too. --source compares on the raw stamps."
        )
    return data, notes


def _compare(
    model: Any,
    data: Dataset,
    split: str,
    source: Sequence[Uri],
    rows: int | None,
    differences: Sequence[Difference],
    facts: Mapping[str, Any],
    progress: Progress | None,
) -> str:
    """Compare files on a split; where the flux was taken from."""
    chosen = _draw(data.split(split).rows, rows)
    spec = data.manifest.normalization
    anew = not source and spec.by_stamp is True
    stamps = decoded(data, split, chosen, source) if source else restored(data, split, chosen)
    done = 0
    for more in compare(model, spec, stamps, differences, tta=facts["tta"], anew=anew):
        done += more
        if progress is not None:
            progress(done, len(chosen))
    return "source" if source else "measured anew" if anew else "restored"


def _draw(total: int, rows: int | None) -> NDArray[np.int64]:
    """Positions in a split, ascending: all, or some at random, the same every time."""
    if rows is None or rows >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, rows, replace=False))
