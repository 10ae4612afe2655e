"""An inspection as text for a terminal: counts, sky, statistics, histograms, one record."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from lensprep.dataset.geometry import join_bands
from lensprep.inspection.inspect import Inspection
from lensprep.texttable import TextTable, unbroken

_BARS: Final = " ▁▂▃▄▅▆▇█"
_SKY: Final = {
    "ra_from_deg": "RA from",
    "ra_to_deg": "to RA",
    "ra_width_deg": "width",
    "dec_from_deg": "Dec from",
    "dec_to_deg": "to Dec",
}
"""Facts of a split's place, all in degrees, and their headings."""
_CLASSES: Final = {"0": "non-lens", "1": "lens"}


def render_text(inspection: Inspection) -> RenderableType:
    """The inspection for a terminal; if a record was asked for, that one alone."""
    if inspection.record is not None:
        return Group(_head(inspection), Text(), _record(inspection.record))
    blocks: list[RenderableType] = [
        _head(inspection),
        _splits(inspection),
        _sky(inspection),
        _statistics(inspection),
        _histograms(inspection),
        _pixels(inspection),
    ]
    spaced = [line for block in blocks for line in (block, Text())]
    return Group(*spaced[:-1])


def _head(inspection: Inspection) -> Text:
    text = Text(f"{inspection.kind} {inspection.location}")
    if inspection.dataset_id is not None:
        text.append(f"\ndataset id {inspection.dataset_id}")
    facts = inspection.manifest
    if facts:
        norm = facts["normalization"]
        text.append(
            f"\nformat {facts['format_version']}, {inspection.survey}, "
            f"bands {join_bands(facts['bands'])}, "
            f"{facts['pixel_scale_arcsec']} arcsec/pixel, {norm['mode']}, "
            f"clipped at {norm['clip']:g}"
        )
        if "uri" in facts["source"]:
            text.append(f"\nfrom {facts['source']['uri']}")
        if "input_rows" in facts["account"]:
            text.append(f"\n{_account(facts['account'])}")
    shape = " x ".join(map(str, inspection.geometry["shape"]))
    text.append(f"\nrecords of {inspection.geometry['stride']:,} bytes, stamps {shape} float16")
    return unbroken(text)


def _account(account: dict[str, Any]) -> str:
    out = {kind: sum(account[kind].values()) for kind in ("filtered", "rejected")}
    return (
        f"{account['input_rows']:,} input rows = {account['accepted']:,} accepted + "
        f"{out['filtered']:,} filtered + {out['rejected']:,} rejected"
        + (f"; {again:,} read twice" if (again := account.get("read_again")) else "")
    )


def _splits(inspection: Inspection) -> RenderableType:
    table = TextTable(
        "split", "stamps", "non-lenses", "lenses", "regions", "shards", "MB", "read",
        spare=("read", "shards"),
    )  # fmt: skip
    for name, facts in inspection.splits.items():
        table.add(
            name,
            f"{facts['rows']:,}",
            *(f"{facts['classes'].get(label, 0):,}" for label in ("0", "1")),
            f"{facts['regions']:,}",
            f"{facts['shards']:,}",
            f"{facts['bytes'] / 1e6:,.1f}",
            f"{facts['statistics_rows']:,}",
        )
    lines = [
        f"counterfactuals of {name} (in no statistic of a class): {_counts(kinds)}"
        for name, facts in inspection.splits.items()
        if (kinds := facts.get("counterfactuals"))
    ]
    if inspection.models:
        lines.append(f"lens models: {_counts(inspection.models)}")
    lines += [f"{name}: {_counts(rows)}" for name, rows in inspection.sources.items()]
    return Group(table, *map(Text, lines))


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in rows.items())


def _sky(inspection: Inspection) -> TextTable:
    table = TextTable("sky", *_SKY.values(), "bricks")
    for name, sky in inspection.sky.items():
        if sky:
            table.add(name, *(f"{sky[n]:.3f}" for n in _SKY), f"{sky['bricks']:,}")
    return table


def _statistics(inspection: Inspection) -> TextTable:
    points = ("min", "p5", "median", "p95", "max")
    spare = ("p5", "p95", "null", "n", "min")
    table = TextTable("column", "class", "n", "null", *points, left=("class",), spare=spare)
    for name, classes in inspection.statistics.items():
        for label, numbers in classes.items():
            table.add(
                name,
                _CLASSES[label],
                f"{numbers['n']:,}",
                f"{numbers['nulls']:,}",
                *(f"{numbers[p]:.4g}" if p in numbers else "" for p in points),
            )
    return table


def _histograms(inspection: Inspection) -> TextTable:
    table = TextTable(
        "histogram", "class", "from", "counts", "to",
        left=("class", "counts"), spare=("from", "to"),
    )  # fmt: skip
    for name, histogram in inspection.histograms.items():
        for label in ("0", "1"):
            table.add(
                name,
                _CLASSES[label],
                f"{histogram['edges'][0]:.3g}",
                _bars(histogram[label]),
                f"{histogram['edges'][-1]:.3g}",
            )
    return table


def _bars(counts: list[int]) -> str:
    """A histogram in one line; a bin that is not empty is always visible."""
    top = max(counts) or 1
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-count * steps // top)] for count in counts)


def _pixels(inspection: Inspection) -> TextTable:
    names = ("mean", "std", "min", "median", "max", "at_clip")
    table = TextTable("stored pixels", *names)
    for band, numbers in inspection.pixels.items():
        table.add(band, *(f"{numbers[n]:.4g}" if n in numbers else "" for n in names))
    return table


def _record(record: dict[str, Any]) -> Text:
    """One record in full."""
    agreement = {True: "agrees with the sidecar", False: "DIFFERS from the sidecar", None: ""}
    text = Text(
        f"record {record['position']} of {record['split']}: {record['shard']}, row {record['row']}"
        f"\nkey {record['key']}"
    )
    for member in record["members"]:
        text.append(
            f"\n  {member['name']}  {member['bytes']:,} bytes, header at {member['offset']:,}, "
            f"data at {member['data']:,}"
        )
    text.append(
        f"\n  pixels at {record['payload']['offset']:,}, CRC-32 {record['payload']['crc32']:08x} "
        f"{agreement[record['crc32_agrees']]}"
    )
    fields = record["sidecar"] or record["json"]
    wide = max(map(len, fields)) + 2
    for name, value in fields.items():
        text.append(f"\n{name:<{wide}}")
        text.append(*("null", "dim") if value is None else (str(value),))
    return unbroken(text)
