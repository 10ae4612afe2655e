"""What people read of a publication: cards, front page, licence and citation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lensprep.dataset import DECALS, Geometry
from lensprep.errors import count_text, size_text
from lenstrain.evaluation.operating import primary_threshold
from lenstrain.pages.card import card_context
from lenstrain.pages.headline import light_remarks, remarks, summary
from lenstrain.pages.page import render
from lenstrain.publish.facts import FOLDER, About, Party, Publication, license_url

FRONT_PAGES: Final = ("index.html", "README.md")
FIGURES: Final = "report/figures/"
_FEW: Final = 3
"""Most files of one folder that are named in the lineage."""


def write_cards(folder: Path, publication: Publication, facts: Mapping[str, Any]) -> None:
    """Write model card, dataset card, licence and citation; `facts` is publication.json's."""
    about, manifest = publication.about, publication.manifest
    model = card_context(publication.metrics) | {
        "about": about,
        "weights": facts["weights"],
        "unit": unit_of_flux(manifest.geometry),
    }
    dataset = {
        "about": about,
        "manifest": manifest,
        "geometry": manifest.geometry,
        "unit": unit_of_flux(manifest.geometry),
        "normalization": manifest.normalization,
        "splits": manifest.splits,
        "account": manifest.account,
        "source": manifest.source,
        "options": ", ".join(
            f"{name} {value}" for name, value in manifest.config.items() if value is not None
        ),
        "versions": manifest.versions,
    }
    _write(folder / "model_card.md", render("model_card.md", model))
    _write(folder / "dataset_card.md", render("dataset_card.md", dataset))
    _write(folder / "LICENSE", licence(about))
    _write(folder / "CITATION.cff", citation(publication))


def write_front(folder: Path, publication: Publication, facts: Mapping[str, Any]) -> None:
    """Write the front page, as HTML and as Markdown."""
    members = [item for item in publication.items if item.is_inside]
    publisher = publication.about.publisher
    context = {
        "p": publication,
        "about": publication.about,
        "people": publication.about.people,
        "title": publication.title,
        "facts": facts,
        "figures": summary(publication.metrics),
        "remarks": remarks(publication.metrics),
        "publisher": Party.parse(publisher).name if publisher else "",
        "steps": [
            (step, _gathered(step.inputs), _gathered(step.outputs)) for step in publication.steps
        ],
        "members": [(item, size_text(item.bytes or 0)) for item in members],
        "figures_as_files": sum(item.id.startswith(FIGURES) for item in members),
        "names": {item.id for item in members},
        "geometry": publication.manifest.geometry,
        "unit": unit_of_flux(publication.manifest.geometry),
        "cut": primary_threshold(publication.metrics),
        "metrics": publication.metrics,
        "calibration": publication.metrics["calibration"],
        "light": light_remarks(publication.metrics),
        "has_real": bool(publication.metrics["known_lenses"])
        or "real" in publication.metrics.get("origins", {}),
    }
    for name, template in zip(FRONT_PAGES, ("publication.html", "publication.md"), strict=True):
        _write(folder / name, render(template, context))


def unit_of_flux(geometry: Geometry) -> str:
    """The unit of a pixel, in words."""
    unit = "nanomaggies" if geometry.zero_point == DECALS.zero_point else "flux"
    return f"{unit} per pixel (AB zero point {geometry.zero_point:g})"


def _gathered(names: Sequence[str]) -> list[str]:
    """Names for a table: those of one folder together if they are many."""
    folders = Counter(name.partition("/")[0] for name in names if "/" in name)
    large = {folder for folder, files in folders.items() if files > _FEW}
    shown = {
        f"{folder}/ ({count_text(folders[folder], 'file')})" if folder in large else name: None
        for name in names
        for folder in [name.partition("/")[0]]
    }
    return ["this folder" if name == FOLDER else name for name in shown]


def licence(about: About) -> str:
    """Which licence holds for what; the texts are SPDX's."""
    if not about.license:
        return "No licence is named: without one nobody may use this.\n"
    data = about.data_license or about.license
    return (
        f"SPDX-License-Identifier: {about.license}\n\n"
        f"Weights, scores, tables, figures and texts: {about.license}.\n"
        f"Stamps (sample/, and the dataset it was drawn from): {data}.\n"
        + "".join(
            f"Text of {name}: {license_url(name)}\n"
            for name in dict.fromkeys((about.license, data))
        )
    )


def citation(publication: Publication) -> str:
    """CITATION.cff, 1.2.0. YAML holds JSON, so that no text can break it."""
    about = publication.about
    people = [
        {"family-names": person.family, "given-names": person.given}
        | ({"orcid": person.url} if person.url else {})
        if person.family
        else {"name": person.name}
        for person in about.people
    ]
    said = {
        "cff-version": "1.2.0",
        "message": "A draft, not fit to be cited."
        if publication.is_draft
        else "If you use these weights, scores or tables, please cite them.",
        "title": publication.title,
        "type": "dataset",
        "authors": people or [{"name": "not named"}],
        "version": about.version,
        "date-released": publication.created[:10],
        "license": about.license,
        "url": about.url,
        "abstract": publication.description,
        "keywords": list(about.keywords),
    }
    lines = [
        f"{name}: {json.dumps(text, ensure_ascii=False)}" for name, text in said.items() if text
    ]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
