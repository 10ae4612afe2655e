"""The audit for people: a page, a Markdown file, and lines for a terminal."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lensprep.checks.finding import Finding, Severity
from lensprep.configfile import from_mapping
from lensprep.texttable import UNLIMITED
from lenstrain.audit.checklist import CHECKLIST
from lenstrain.audit.config import AuditConfig
from lenstrain.pages import render
from lenstrain.pages.links import name_of
from lenstrain.pages.page import AUDIT_NAME, AUDIT_PAGE

TEXT_NAME = "audit.md"
ITEMS: Final = {item.name: item for item in CHECKLIST}
WEIGHTS: Final[dict[Severity, str]] = {
    "blocker": "Blocker",
    "warn": "Warning",
    "info": "Information",
}
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


def write_report(
    out: Path, content: dict[str, Any], findings: Sequence[Finding], links: Mapping[str, str]
) -> None:
    """Write audit.json, audit.html, with links to other pages of the run, and audit.md."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (out / AUDIT_PAGE).write_text(page(content, findings, links), encoding="utf-8")
    (out / TEXT_NAME).write_text(markdown(content, findings), encoding="utf-8")
    (out / AUDIT_NAME).write_text(text, encoding="utf-8")


def mark(finding: Finding) -> str:
    """The result in a word or two."""
    passed = "passed" if finding.rule else "reported"
    without = "not run" if finding.measured is None else "not judged"
    return {True: passed, False: "FAILED", None: without}[finding.passed]


def pressing(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that keep the verdict from GO, the gravest first."""
    failed = [f for f in findings if f.severity == "blocker" and f.passed is False]
    open_ = [f for f in findings if f.severity == "blocker" and f.passed is None]
    warned = [f for f in findings if f.severity == "warn" and f.passed is False]
    return [*failed, *open_, *warned]


def steps(findings: Sequence[Finding]) -> list[list[Finding]]:
    """The same, those together that are not run for one reason."""
    found: dict[str, list[Finding]] = {}
    for finding in pressing(findings):
        key = finding.item if finding.passed is False else finding.detail
        found.setdefault(key, []).append(finding)
    return list(found.values())


def because(findings: Sequence[Finding]) -> str:
    """What the verdict follows from, in numbers."""
    count = Counter((f.severity, f.passed) for f in findings)
    total = sum(f.severity == "blocker" for f in findings)
    return (
        f"Of {total} blockers {count['blocker', False]} failed and {count['blocker', None]} were "
        f"not run; {count['warn', False]} of {sum(f.severity == 'warn' for f in findings)} "
        "warnings failed."
    )


def page(
    content: Mapping[str, Any], findings: Sequence[Finding], links: Mapping[str, str] | None = None
) -> str:
    """The page, self-contained; `links` are those of `lenstrain.pages.links.links_to`."""
    config = from_mapping(AuditConfig, content["config"])
    rows = [_row(finding, config) for finding in findings]
    groups = [
        {"name": name, "title": title, "findings": [row for row in rows if row["group"] == name]}
        for name, title in TITLES.items()
    ]
    titles = {"run": "Run", "dataset": "Dataset", "dataset_id": "Dataset id",
              "checkpoint": "Checkpoint", "created": "Created", "version": "Version"}  # fmt: skip
    provenance = [(title, content[name]) for name, title in titles.items()]
    provenance += [(name.capitalize(), place) for name, place in content["pages"].items()]
    provenance += [
        (f"SHA-256 of {name.replace('_', ' ')}", value)
        for name, value in content["digests"].items()
        if name != "dataset_id" and value is not None
    ]
    count = Counter(row[name] for row in rows for name in ("css", "severity"))
    return render(
        "audit.html",
        {
            "a": content,
            "run": name_of(content["run"]),
            "meaning": MEANINGS[content["verdict"]],
            "meanings": MEANINGS,
            "because": because(findings),
            "tiles": _tiles(findings),
            "steps": [[_row(finding, config) for finding in step] for step in steps(findings)],
            "groups": [group for group in groups if group["findings"]],
            "results": [(css, name, count[css]) for css, name in (("failed", "failed"),
                        ("none", "not run or judged"), ("passed", "passed"))],
            "weights": [(css, name.lower(), count[css]) for css, name in WEIGHTS.items()],
            "kinds": _kinds({finding.item: finding.measured for finding in findings}),
            "provenance": provenance,
            "links": links or {},
        },
    )  # fmt: skip


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


def _row(finding: Finding, config: AuditConfig) -> dict[str, Any]:
    """A finding as the page shows it."""
    item = ITEMS[finding.item]
    return {
        "name": item.name,
        "group": item.group,
        "title": item.title,
        "mark": mark(finding),
        "css": {True: "passed", False: "failed", None: "none"}[finding.passed],
        "severity": finding.severity,
        "weight": WEIGHTS[finding.severity],
        "context": f"{WEIGHTS[finding.severity]}. Measured: {item.filled(item.measures, config)}. ",
        "text": finding.detail,
        "rule": finding.rule,
        "remedy": finding.remedy,
        "why": item.why,
        "figures": [item.figure],
        "docs": item.docs,
    }


def _tiles(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    count = Counter((f.severity, f.passed) for f in findings)
    weights: dict[Severity, str] = {"blocker": "Blockers", "warn": "Warnings"}
    tiles = []
    for severity, name in weights.items():
        note = f"failed; {count[severity, None]} not run, {count[severity, True]} passed"
        tiles.append({"name": name, "value": count[severity, False], "note": note})
    measured = sum(f.passed is not None for f in findings)
    tiles.append({"name": "Judged", "value": measured, "note": f"of {len(findings)} items"})
    return tiles


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
    lines += ["", "## What stands in the way", ""] if pressing(findings) else []
    for step in steps(findings):
        first, names = step[0], ", ".join(f"`{f.item}`" for f in step)
        weight = WEIGHTS[first.severity].lower()
        text = f"- **{mark(first)}**, {weight}, {names}: {first.detail} {first.remedy}"
        lines.append(text.replace("\n", " ").rstrip())
    for name, title in TITLES.items():
        head = "| Result | Weight | Item | Finding | Passes if |"
        mine = [f for f in findings if f.group == name]
        lines += ["", f"## {title}", "", head, "|---|---|---|---|---|"] if mine else []
        for f in mine:
            cells = (mark(f), f.severity, f"`{f.item}`", f.detail, f.rule)
            row = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def lines(content: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    """The audit for a terminal: what stands in the way, and the verdict last, where it is seen."""
    shown = []
    for step in steps(findings):
        first = step[0]
        shown += _wrapped(f"{mark(first)}, {WEIGHTS[first.severity].lower()}: {_names(step)}", "")
        shown += _wrapped(first.detail, "  ") + _wrapped(first.remedy, "  ")
    aside = [f for f in findings if f.passed is None and f.severity != "blocker"]
    if aside:
        shown += _wrapped(f"not run or judged, without changing the verdict: {_names(aside)}", "")
    verdict = content["verdict"]
    return [*shown, *_wrapped(f"Verdict: {verdict}. {because(findings)} {MEANINGS[verdict]}", "")]


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(f.item for f in findings)


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines that fit the terminal, whole if piped; commands and paths are never broken."""
    whole = re.sub("`[^`]+`", lambda code: code[0].replace(" ", "\0"), text)
    made = textwrap.wrap(
        whole,
        shutil.get_terminal_size((UNLIMITED, 25)).columns,
        initial_indent=indent,
        subsequent_indent=indent or "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in made]
