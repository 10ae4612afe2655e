"""The function behind `lenstrain publish --check`: digests compared, a sample scored again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.strictjson import parse_json
from lensprep.errors import ProjectError, StorageError
from lensprep.store import Uri, file_sha256, local_folder
from lensprep.tables.reader import read_table
from lenstrain.export import FORMATS, open_exported
from lenstrain.networks.ensemble import D4Mean
from lenstrain.probes.scoring import TOLERANCE, Scorer
from lenstrain.publish.digests import SUMS, check_sums
from lenstrain.publish.publish import FACTS, FORMAT, FORMAT_VERSION
from lenstrain.publish.sample import OUTPUTS, WEIGHTS, read_sample
from lenstrain.training.checkpoint import load_finder


class OtherScoresError(ProjectError):
    """The finder of a publication does not give the scores that are published."""


def check_publication(uri: Uri, digest: str | None = None) -> dict[str, Any]:
    """Compare every byte of a publication with its digest, and score its sample again.

    Parameters
    ----------
    uri : str or path
        The folder; local or s3://.
    digest : str, optional
        SHA-256 of its SHA256SUMS, as it was quoted elsewhere.

    Returns
    -------
    dict
        ``files``; ``sums_sha256``, which stands for every byte; ``faults``, why it is a draft;
        ``rows`` of the sample; ``largest_difference`` of a logit, of the weights from the scores
        of the test split (``scores``) and of each format from its own outputs when it was
        published.

    Raises
    ------
    StorageError
        If it is no publication, or not as it was published.
    OtherScoresError
        If a logit differs by more than rounding.
    """
    with local_folder(uri) as folder:
        try:
            return _check(folder, digest)
        except ProjectError as error:
            raise type(error)(str(error).replace(str(folder), str(uri))) from error


def _check(folder: Path, digest: str | None) -> dict[str, Any]:
    if not (folder / FACTS).is_file():
        raise StorageError(f"{folder} holds no {FACTS}: `lenstrain publish` did not write it.")
    files, found_digest = check_sums(folder), file_sha256(folder / SUMS)
    if digest is not None and digest.lower() != found_digest:
        raise StorageError(
            f"{folder} is another publication than the one that was quoted: its {SUMS} has SHA-256 "
            f"{found_digest}. Fetch it again."
        )
    facts = parse_json((folder / FACTS).read_bytes())
    if facts["format"] != FORMAT or facts["format_version"] != FORMAT_VERSION:
        raise StorageError(
            f"{folder} has publication format {facts['format_version']!r:.20}; this version reads "
            f"{FORMAT_VERSION}. Use the version of lenstrain that wrote it."
        )
    keys, pixels, flux = read_sample(folder)
    published = read_table(folder / "scores" / "test.parquet", ["key", "logit"])
    table = published.table
    position = pc.index_in(keys, value_set=table["key"].cast(keys.type).combine_chunks())
    if position.null_count:
        raise OtherScoresError(
            f"{folder}: {position.null_count} stamps of the sample have no score."
        )
    model, _, _ = load_finder(folder / f"{WEIGHTS}.safetensors", "cpu")
    scorer = Scorer(D4Mean(model) if published.metadata.get("tta") else model)
    precision = str(published.metadata.get("precision", "float32"))
    stated = table["logit"].take(position).to_numpy()
    found = {"scores": _largest(scorer(pixels), stated, TOLERANCE[precision], f"{folder}: weights")}
    outputs = read_table(folder / OUTPUTS, ["key", "logit"]).table["logit"].to_numpy()
    for suffix in FORMATS:
        name = f"{WEIGHTS}{suffix}"
        logit, _ = open_exported(folder / name)(flux)
        found[name] = _largest(logit, outputs, TOLERANCE["float32"], f"{folder}: {name}")
    return {
        "files": files,
        "sums_sha256": found_digest,
        "faults": facts["faults"],
        "rows": len(keys),
        "largest_difference": found,
    }


def _largest(again: NDArray[Any], stated: NDArray[Any], allowed: float, where: str) -> float:
    """Largest difference of a logit; OtherScoresError if it is more than rounding."""
    difference = np.abs(np.asarray(again, np.float64) - stated)
    wrong = ~(difference <= allowed * np.maximum(1.0, np.abs(again)))
    if wrong.any():
        raise OtherScoresError(
            f"{where} gives other logits than are published for {int(wrong.sum())} of {len(wrong)} "
            f"stamps, by up to {float(difference.max()):.3g}. Do not use it."
        )
    return float(difference.max())
