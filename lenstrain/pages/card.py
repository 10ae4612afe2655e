"""What the model card says, as plain values that its template reads.

The headings are those of Mitchell et al. 2019 (arXiv:1810.03993).
"""

from collections.abc import Mapping
from typing import Any

from lensprep.dataset import DECALS
from lenstrain.evaluation.operating import primary_threshold
from lenstrain.pages.places import run_name
from lenstrain.scoretable import precision_of, scored_geometry


def card_context(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the card's template reads; `metrics` is the content of metrics.json."""
    provenance = metrics["provenance"]
    meta = provenance["scores_metadata"]
    members = meta.get("members") or ([meta] if "checkpoint_sha256" in meta else [])
    geometry = scored_geometry(meta)
    return {
        "m": metrics,
        "run": run_name(meta, provenance["scores"]),
        "geometry": geometry,
        "survey": "DECaLS" if geometry.survey == DECALS.survey else geometry.survey,
        "tta": bool(meta.get("tta")),
        "precision": precision_of(meta),
        "members": members,
        "options": provenance["options"],
        "architecture": _architecture(members),
        "training": _training(members),
        "normalization": _normalization(meta),
        "scored": _scored(meta, provenance),
        "coverage": f"{100 * metrics['level']:g}%",
        "cut": primary_threshold(metrics),
        "theta": metrics.get("auroc_by_theta_e") or {},
        "warnings": [note["text"] for note in metrics["notes"] if note["severity"] == "warn"],
        "versions": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items()),
    }


def _architecture(members: list[Any]) -> str:
    """Networks in words, such as ``resnet18 (stem fine)``; "not stated" for foreign scores."""
    names = []
    for member in members:
        model = (member.get("config") or {}).get("model")
        if not model:
            continue
        rest = ", ".join(
            f"{name} {value}" for name, value in model.items() if name not in ("arch", "weights")
        )
        names.append(f"{model['arch']} ({rest})")
    return "; ".join(dict.fromkeys(names)) or "not stated in the scores"


def _training(members: list[Any]) -> list[str]:
    """One line for each member: data, epochs, seed."""
    lines = []
    for member in members:
        config = member.get("config") or {}
        parts = [f"dataset `{str(member.get('trained_on', 'unknown'))[:12]}`"]
        if "epoch" in member:
            parts.append(f"epoch {member['epoch']}, step {member.get('step')}")
        where = (config.get("data") or {}).get("where")
        if where:
            parts.append(f"rows `{where}`")
        if "seed" in (config.get("train") or {}):
            parts.append(f"seed {config['train']['seed']}")
        lines.append(", ".join(parts))
    return lines


def _normalization(meta: Mapping[str, Any]) -> str:
    spec = meta.get("normalization")
    if not isinstance(spec, Mapping):
        return "not stated in the scores"
    numbers = "".join(f", {k} {v}" for k, v in (spec.get("parameters") or {}).items())
    return f"{spec.get('mode')}, clipped at {spec.get('clip')}{numbers}"


def _scored(meta: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    source = meta.get("dataset") or provenance["scores"]
    named = meta.get("dataset_id")
    split = meta.get("split")
    text = f"`{source}`"
    text += f" (`{str(named)[:12]}`)" if named else ""
    return text + (f", split {split}" if split else "")
