"""The audit for people: a page, a Markdown file, and lines for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensprep.checks.finding import Finding, Severity
from lenstrain.pages import render

JSON_NAME = "audit.json"
PAGE_NAME = "audit.html"
TEXT_NAME = "audit.md"

TITLES = {
    "data": "The data",
    "loader": "The loader",
    "run": "The run",
    "scores": "The scores",
    "science": "The science",
}
MEANINGS = {
    "GO": "Every blocker passed and no warning failed.",
    "CONDITIONAL": "Every blocker passed, but warnings failed: quote them with every figure.",
    "NO-GO": "A blocker failed or was not run: figures of this run cannot be relied on yet.",
}
_LONGEST = 220


def write_report(out: Path, content: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Write audit.json, audit.html and audit.md."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (out / PAGE_NAME).write_text(page(content, findings), encoding="utf-8")
    (out / TEXT_NAME).write_text(markdown(content, findings), encoding="utf-8")
    (out / JSON_NAME).write_text(text, encoding="utf-8")


def mark(finding: Finding) -> str:
    """The result in a word or two."""
    return {True: "passed", False: "FAILED", None: "not run"}[finding.passed]


def pressing(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that keep the verdict from GO, the gravest first."""
    failed = [f for f in findings if f.severity == "blocker" and f.passed is False]
    open_ = [f for f in findings if f.severity == "blocker" and f.passed is None]
    warned = [f for f in findings if f.severity == "warn" and f.passed is False]
    return [*failed, *open_, *warned]


def page(content: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """The page, self-contained."""
    rows = [_row(finding) for finding in findings]
    groups = [
        {"title": title, "findings": [row for row in rows if row["group"] == name]}
        for name, title in TITLES.items()
    ]
    provenance = [(name, content[name]) for name in ("run", "dataset", "dataset_id", "checkpoint",
                                                     "created", "version")]  # fmt: skip
    provenance += [
        (f"SHA-256 of {name.replace('_', ' ')}", value)
        for name, value in content["digests"].items()
        if name != "dataset_id" and value is not None
    ]
    return render(
        "audit.html",
        {
            "a": content,
            "meaning": MEANINGS[content["verdict"]],
            "tiles": _tiles(findings),
            "first": [_row(finding) for finding in pressing(findings)],
            "groups": [group for group in groups if group["findings"]],
            "kinds": _kinds({finding.item: finding.measured for finding in findings}),
            "provenance": provenance,
        },
    )


def _kinds(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of counterfactuals: what passes of each kind, and how pairs are ranked."""
    passing = (measured.get("counterfactuals") or {}).get("kinds", {})
    pairs = measured.get("pairs") or {"resolved": {}, "unresolved": {}}
    names = dict.fromkeys([*passing, *pairs["resolved"]])
    return [
        {"kind": name, "passing": passing.get(name)}
        | {group: pairs[group].get(name) for group in ("resolved", "unresolved")}
        for name in names
    ]


def _row(finding: Finding) -> dict[str, Any]:
    css = {True: "passed", False: "failed", None: "none"}[finding.passed]
    return finding.to_dict() | {
        "css": css,
        "mark": mark(finding),
        "measured_text": spell(finding.measured),
        "threshold_text": spell(finding.threshold),
    }


def _tiles(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    count = Counter((f.severity, f.passed) for f in findings)
    weights: dict[Severity, str] = {"blocker": "Blockers", "warn": "Warnings"}
    tiles = []
    for severity, name in weights.items():
        note = f"failed; {count[severity, None]} not run, {count[severity, True]} passed"
        tiles.append({"name": name, "value": count[severity, False], "note": note})
    measured = sum(f.passed is not None for f in findings)
    tiles.append({"name": "Measured", "value": measured, "note": f"of {len(findings)} items"})
    return tiles


def spell(value: Any) -> str:
    """A measured value in one short line."""
    text = _spell(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spell(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_spell(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(content: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """The audit as Markdown, for an issue or a repository."""
    lines = [
        f"# Audit: {content['verdict']}",
        "",
        MEANINGS[content["verdict"]],
        "",
        f"- Run: `{content['run']}`",
        f"- Dataset: `{content['dataset']}` ({content['dataset_id'][:12]})",
        f"- Purpose: {content['purpose']}",
        f"- Created: {content['created']}",
    ]
    for name, title in TITLES.items():
        head = "| Result | Weight | Item | Finding | Measured | Threshold |"
        mine = [f for f in findings if f.group == name]
        lines += ["", f"## {title}", "", head, "|---|---|---|---|---|---|"] if mine else []
        for f in mine:
            cells = (mark(f), f.severity, f"`{f.item}`", f.detail, spell(f.measured),
                     spell(f.threshold))  # fmt: skip
            row = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def lines(content: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    """The audit for a terminal: the verdict last, where it is seen."""
    shown = [f"{mark(f):8} {f.severity:8} {f.item:20} {f.detail}" for f in findings]
    counts = _tiles(findings)
    total = ", ".join(f"{tile['name'].lower()}: {tile['value']} {tile['note']}" for tile in counts)
    return [*shown, total, f"Verdict: {content['verdict']}. {MEANINGS[content['verdict']]}"]
