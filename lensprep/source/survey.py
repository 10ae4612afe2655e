"""A survey: the geometry of its stamps, its labels, its columns, and what they are called.

    DECALS_SURVEY                        Phase 4c: the default, built in
    survey = load_survey("hsc")          an example that comes along (configs/surveys)
    survey = load_survey("mine.toml")    any other one: a file, local or s3://
    survey.geometry, survey.label_map    what a dataset made of it states too
    survey.contract                      its columns under the names that they have here (`Column`)
    survey.public_name("object_id")      "task_id", and back: survey.stored_name

Columns have the same names in every dataset, whatever a survey calls them: they are renamed where
files are read (`lensprep.source.tree`), so that nothing behind knows of another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

import pyarrow as pa

from lensprep.configfile import find_file, from_mapping, load_config
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import (
    COUNTERFACTUAL,
    CUTOUT_LABELS,
    DONOR_TASK,
    GRADE,
    HOST_TASK,
    KIND,
    LABEL_MAP,
    MEASURED,
    ORIGIN,
    SOURCE_COLUMNS,
    SPLITS,
)
from lensprep.dataset.normalization import (
    DEFAULT_CLIP,
    DEFAULT_MODE,
    NormalizationSpec,
    normalization_spec,
)
from lensprep.dataset.strictjson import check_object
from lensprep.errors import ConfigError, DatasetError, names_text
from lensprep.source.regions import FRACTIONS, check_fractions
from lensprep.store import S3Options, Uri
from lensprep.tables.known import known_column

Controls = Literal["value", "zero", "null"]
"""What CONTROL rows hold in a column: values as in any other row, zero, or null."""

STAMP_COLUMN: Final = "stamp_npz"
SPLIT_COLUMN: Final = "region_split"
REGION_COLUMN: Final = "region_id"
LABEL_COLUMN: Final = "lens_model"
SEEING_COLUMN: Final = "psfsize_r"
"""FWHM of the PSF in the reference band of any survey, arcsec."""
DEPTH_COLUMN: Final = "psfdepth_r"
"""Depth for point sources in the reference band of any survey, AB magnitudes."""
ZERO_POINT: Final = DECALS.zero_point
"""AB magnitude of one nanomaggie."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the contract."""

    name: str
    type: pa.DataType
    meaning: str = ""
    """For people; docs/reference/input.md is made of it. This and the unit are those that
    `lensprep.tables.known` has of any table, unless there is more to say of a source."""
    unit: str = ""
    nullable: bool = False
    """Whether null is allowed at all (a control's null is given by ``controls``)."""
    required: bool = False
    """Whether a source without it is refused. A folder's name may state it instead."""
    controls: Controls = "value"
    leaks: bool = False
    """Whether the value, or its being null, reveals the label: never an input of a model."""
    minimum: float | None = None
    """Smallest plausible value, in the column's own unit."""
    maximum: float | None = None
    """Largest plausible value, in the column's own unit."""

    def __post_init__(self) -> None:
        known = known_column(self.name)
        object.__setattr__(self, "meaning", self.meaning or known.description)
        object.__setattr__(self, "unit", self.unit or known.unit)

    @property
    def null_rule(self) -> str:
        """Whether and where there may be nulls, in words."""
        if self.controls == "null":
            return "null in controls"
        return "may be null" if self.nullable else "never null"

    @property
    def limits(self) -> str:
        """The plausible values in words; empty where any value is."""
        if self.minimum is None and self.maximum is None:
            return ""
        if self.minimum == self.maximum:
            return f"{self.minimum:g}"
        if self.maximum is None:
            return f"{self.minimum:g} or more"
        return f"{self.minimum:g} to {self.maximum:g}"

    @property
    def lenses_only(self) -> bool:
        """Whether it describes an injected lens: controls hold zero or null."""
        return self.controls != "value"


_TEXT: Final = pa.string()
_INT: Final = pa.int32()
_LONG: Final = pa.int64()
_REAL: Final = pa.float64()
_BYTES: Final = pa.binary()


def _injected(name: str, meaning: str = "", unit: str = "", **rules: Any) -> Column:
    """A number that only an injected lens has."""
    return Column(name, _REAL, meaning, unit, leaks=True, **rules)


def _phase4c_columns(geometry: Geometry) -> tuple[Column, ...]:
    """The columns of Phase 4c, with the bands, the side and the zero point of a geometry."""
    side, zero_point, band = geometry.side, geometry.zero_point, geometry.reference_band
    flux = f"flux of {zero_point:g} mag"
    flux = "nanomaggies" if zero_point == DECALS.zero_point else flux
    label = ", ".join(LABEL_MAP) if geometry == DECALS else "as the survey's [labels] say"
    return (
        Column("task_id", _TEXT, "identity of the row; 64 hex digits upstream", required=True),
        Column("experiment_id", _TEXT, required=True),
        Column("selection_set_id", _TEXT, required=True),
        Column("ranking_mode", _TEXT, required=True),
        Column("selection_strategy", _TEXT, required=True),
        Column("brickname", _TEXT, required=True),
        Column(
            "bandset", _TEXT, "letters of the bands in the stamp; the row is filtered if one is "
            "missing", required=True,
        ),
        Column("config_id", _TEXT, required=True, leaks=True),
        Column(
            SPLIT_COLUMN, _TEXT, "train, val or test; may be stated by a folder instead",
            required=True,
        ),
        Column(
            REGION_COLUMN, _INT, "patch of sky, which lies in one split; intervals are by region",
            required=True,
        ),
        Column("stamp_size", _INT, required=True, minimum=side, maximum=side),
        Column("replicate", _INT),
        Column(
            "is_control", _INT, "1 for a non-lens, 0 for a lens; must agree with the label",
            required=True, leaks=True, minimum=0, maximum=1,
        ),
        Column(
            "cutout_ok", _INT, "1 if upstream has a stamp; the row is filtered otherwise",
            required=True,
        ),
        Column("metrics_only", _INT),
        Column("ra", _REAL, required=True, minimum=0, maximum=360),
        Column("dec", _REAL, required=True, minimum=-90, maximum=90),
        _injected("theta_e_arcsec", required=True, controls="zero", minimum=0, maximum=5),
        _injected(
            "src_dmag", f"source minus host in {band}, before it is magnified", required=True,
            controls="zero",
        ),
        _injected("src_reff_arcsec", required=True, controls="zero", minimum=0, maximum=5),
        _injected("src_e", controls="zero", minimum=0, maximum=1),
        _injected("shear", controls="zero", minimum=0, maximum=0.5),
        Column("task_seed64", _LONG, nullable=True),
        _injected("src_x_arcsec", nullable=True, controls="zero"),
        _injected("src_y_arcsec", nullable=True, controls="zero"),
        _injected("src_phi_rad", nullable=True, controls="zero"),
        _injected("shear_phi_rad", nullable=True, controls="zero"),
        *(
            _injected(
                f"src_{blue}{red}", f"colour {blue} - {red} of the source", "mag", nullable=True
            )
            for blue, red in pairwise(geometry.bands)
        ),
        Column("psf_bin", _INT, "quantile of the seeing, as upstream binned it", nullable=True),
        Column("depth_bin", _INT, "quantile of the depth, as upstream binned it", nullable=True),
        Column(
            _NANOMAGGIES, _REAL, nullable=True, required=True, minimum=zero_point,
            maximum=zero_point,
        ),
        Column("pipeline_version", _TEXT, nullable=True, required=True),
        Column(
            SEEING_COLUMN, _REAL, f"FWHM of the PSF in {band} at this place, of both classes: "
            "bin by it", nullable=True, required=True, minimum=0.3, maximum=5,
        ),
        Column(
            DEPTH_COLUMN, _REAL, f"depth for point sources in {band} (5 sigma)", nullable=True,
            required=True, minimum=15, maximum=30,
        ),
        Column("ebv", _REAL, nullable=True, minimum=0, maximum=10),
        Column(
            STAMP_COLUMN, _BYTES, "the stamp: an NPZ with an array for each band", flux,
            nullable=True, required=True,
        ),
        _injected(
            "arc_snr", f"highest signal-to-noise ratio of a pixel of the arc in {band}",
            nullable=True, controls="null",
        ),
        _injected(
            "total_injected_flux_r", f"flux of the arc in {band}", flux, nullable=True,
            controls="null",
        ),
        _injected("magnification", nullable=True, controls="null", minimum=0),
        Column(
            "bad_pixel_frac", _REAL, nullable=True, required=True, minimum=0, maximum=1
        ),
        Column(
            "wise_brightmask_frac", _REAL, nullable=True, required=True, minimum=0, maximum=1
        ),
        Column("metrics_ok", _INT, nullable=True),
        *(
            _injected(
                f"psf_fwhm_used_{one}", nullable=True, required=one == band, controls="null",
                minimum=0.3, maximum=5,
            )
            for one in geometry.bands
        ),
        *(
            Column(f"psf_source_{one}", _INT, nullable=True, controls="null", leaks=True)
            for one in geometry.bands
        ),
        Column(
            LABEL_COLUMN, _TEXT, f"the label: {label}; a row with anything else, or null, is "
            "rejected", nullable=True, required=True,
            leaks=True,
        ),
        _injected("lens_e", nullable=True, controls="zero", minimum=0, maximum=1),
        _injected("lens_phi_rad", nullable=True, controls="null"),
        _injected("tangential_stretch", nullable=True, controls="null"),
        _injected("radial_stretch", nullable=True, controls="null"),
        _injected("expected_arc_radius", nullable=True, controls="null"),
        Column("physics_valid", _INT, nullable=True, controls="null", leaks=True),
        Column("physics_warnings", _TEXT, nullable=True, controls="null", leaks=True),
    )  # fmt: skip


_NANOMAGGIES: Final = "ab_zp_nmgy"
"""A column whose very name states the unit of Phase 4c."""

COLUMNS: Final = _phase4c_columns(DECALS)
"""The 57 columns of Phase 4c, in the order in which a table of this project has them."""

FAMILY_COLUMNS: Final = tuple(
    Column(name, _TEXT, meaning, nullable=True, leaks=True)
    for name, meaning in (
        (COUNTERFACTUAL, ""),
        (HOST_TASK, "task_id of the non-lens that a counterfactual was made from"),
        (DONOR_TASK, "task_id of the lens whose light it was given"),
    )
)
"""What only files of counterfactuals have, behind those of the survey; null in all other rows."""

TOLD_COLUMNS: Final = tuple(
    Column(name, _TEXT, meaning, nullable=True, leaks=True)
    for name, meaning in (
        (ORIGIN, ""),
        (KIND, "what the object is: lens, spiral, ring, ..."),
        (GRADE, ""),
    )
)
"""What catalogues of cutouts say of their rows; a tree may have them too, as text."""

COLUMN_BY_NAME: Final[dict[str, Column]] = {c.name: c for c in (*COLUMNS, *FAMILY_COLUMNS)}
REQUIRED_COLUMNS: Final = tuple(column.name for column in COLUMNS if column.required)
LEAKING_COLUMNS: Final = tuple(c.name for c in COLUMN_BY_NAME.values() if c.leaks)
SCHEMA: Final = pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in COLUMNS])
"""Arrow schema of all 57 columns."""

_ALWAYS: Final = ("task_id", "ra", "dec", STAMP_COLUMN, LABEL_COLUMN)
"""What a tree of any survey must have: id, position, stamp and label."""
_ANY_SURVEY: Final = {
    SEEING_COLUMN: (0.01, 10.0),
    DEPTH_COLUMN: (10.0, 35.0),
    "psf_fwhm_used": (0.01, 10.0),
}
"""Plausible seeing and depth from any site or from space."""


def _any_columns(geometry: Geometry) -> tuple[Column, ...]:
    """Columns of a survey other than Phase 4c: the same names, but few are required."""
    columns = []
    for column in _phase4c_columns(geometry):
        if column.name == _NANOMAGGIES:
            continue
        low, high = column.minimum, column.maximum
        for name, limits in _ANY_SURVEY.items():
            if column.name.startswith(name):
                low, high = limits
        if column.name == "theta_e_arcsec":
            high = geometry.side_arcsec / 2  # a larger ring lies outside the stamp
        always = column.name in _ALWAYS
        nullable = column.nullable or not always
        columns.append(
            replace(column, required=always, nullable=nullable, minimum=low, maximum=high)
        )
    return (*columns, *FAMILY_COLUMNS, *TOLD_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What stamps and tables of a survey are; content from outside is checked when it is made.

    Raises
    ------
    ConfigError
        If a label, a column or a number makes no sense.
    """

    geometry: Geometry
    label_map: Mapping[str, int]
    """Label (1 lens, 0 non-lens) by what the column ``lens_model`` holds, as text."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What files call a column, by its name here: ``{"task_id": "object_id"}``. Columns that are
    not among them keep their names."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Split (train, val or test) by what the column ``region_split`` holds, where that is another
    text or a number."""
    softening: Mapping[str, float] = field(default_factory=dict)
    """Softening of ``asinh_survey`` by band, in units of flux; the noise of the sky if not given.
    """
    fractions: tuple[float, float, float] = FRACTIONS
    """Shares of the regions in train, val and test, for trees without a column of splits."""

    def __post_init__(self) -> None:
        if not self.label_map:
            raise ConfigError("labels is empty: say what the label column holds, such as 1 = 1.")
        for value, label in self.label_map.items():
            if label not in (0, 1) or CUTOUT_LABELS.get(value, label) != label:
                raise ConfigError(
                    f"labels.{value} must be {CUTOUT_LABELS.get(value, '0 or 1')}, got {label!r}."
                )
        for theirs, split in self.splits.items():
            if split not in SPLITS:
                raise ConfigError(
                    f"splits.{theirs} must be one of {', '.join(SPLITS)}, got {split!r}."
                )
        for name, theirs in self.columns.items():
            if name not in self.column_by_name:
                known = names_text(self.column_by_name, name, most=5)
                raise ConfigError(f"columns.{name}: there is no such column here; known: {known}.")
            if not theirs or [*self.columns.values()].count(theirs) > 1:
                raise ConfigError(f"columns.{name} = {theirs!r} must be one column of its own.")
        for band, flux in self.softening.items():
            if band not in self.geometry.bands or not 1e-30 < flux < 1e30:
                raise ConfigError(f"softening.{band} = {flux!r} is no band with a positive flux.")
        check_fractions(self.fractions)

    @property
    def name(self) -> str:
        """Name of the survey."""
        return self.geometry.survey

    @property
    def is_phase4c(self) -> bool:
        """Whether it is the built-in one, whose contract is strict."""
        return self.name == DECALS.survey

    @property
    def title(self) -> str:
        """What messages call it."""
        return "Phase 4c" if self.is_phase4c else self.name

    def __getstate__(self) -> dict[str, Any]:
        """Without what is derived, for tasks."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def contract(self) -> tuple[Column, ...]:
        """Columns that mean something here, in the order in which a table has them."""
        if self.is_phase4c:
            return (*COLUMNS, *FAMILY_COLUMNS)
        return _any_columns(self.geometry)

    @cached_property
    def column_by_name(self) -> dict[str, Column]:
        """The contract by name."""
        return {column.name: column for column in self.contract}

    @cached_property
    def known_columns(self) -> tuple[Column, ...]:
        """The contract and what catalogues say: all columns that mean something in a dataset."""
        return tuple({c.name: c for c in (*self.contract, *TOLD_COLUMNS)}.values())

    @cached_property
    def type_by_name(self) -> dict[str, pa.DataType]:
        """Types of all columns that mean something in a dataset, whatever the survey."""
        return {column.name: column.type for column in self.known_columns}

    @cached_property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which a tree is refused."""
        return tuple(column.name for column in self.contract if column.required)

    @property
    def members(self) -> tuple[str, ...]:
        """Arrays of the NPZ of a stamp, one for each band."""
        return tuple(f"image_{band}" for band in self.geometry.bands)

    @cached_property
    def _taken(self) -> frozenset[str]:
        """Columns that conversion adds."""
        measured = self.geometry.band_columns(*MEASURED)
        added = ("key", "label", "payload_crc32", "pixel_hash", "place")
        return frozenset((*added, *measured, *SOURCE_COLUMNS))

    @property
    def _prefix(self) -> str:
        """Put before the name of an extra column that conversion adds too."""
        return "phase4c_" if self.is_phase4c else f"{self.name}_"

    @cached_property
    def _ours(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.columns.items()}

    def public_name(self, stored: str) -> str:
        """Name here of a column that files call ``stored``."""
        name = self._ours.get(stored, stored)
        return self._prefix + name if name in self._taken else name

    def stored_name(self, name: str, have: Container[str]) -> str:
        """What a file with the columns ``have`` calls a column; inverse of `public_name`."""
        if name in self.columns:
            return self.columns[name]
        bare = name.removeprefix(self._prefix)
        return bare if bare in self._taken and bare in have else name

    def called(self, name: str) -> str:
        """A column as messages name it: as files do, with its name here if that is another."""
        theirs = self.columns.get(name, name)
        return name if theirs == name else f"{theirs} ({name})"

    def is_hidden(self, stored: str) -> bool:
        """Whether files use the name of a column here for something else."""
        return self.columns.get(stored, stored) != stored and stored not in self._ours

    def public_split(self, stored: str | None) -> str | None:
        """Split that a value of the column ``region_split`` means."""
        return stored if stored is None else self.splits.get(stored, stored)

    def normalization(
        self, mode: str = DEFAULT_MODE, clip: float = DEFAULT_CLIP
    ) -> NormalizationSpec:
        """A normalisation of its stamps, complete and checked (`normalization_spec`)."""
        given = self.softening if mode == "asinh_survey" else {}
        softening = {f"softening_{band}": value for band, value in given.items()}
        return normalization_spec(mode, clip, geometry=self.geometry, **softening)

    def to_mapping(self) -> dict[str, Any]:
        """All of it in plain types, under the keys of a survey file."""
        geometry = self.geometry
        return {
            "name": geometry.survey,
            "bands": list(geometry.bands),
            "side": geometry.side,
            "pixel_scale_arcsec": geometry.pixel_scale_arcsec,
            "reference_band": geometry.reference_band,
            "zero_point": geometry.zero_point,
            "sky_noise": dict(zip(geometry.bands, geometry.sky_noise, strict=True)),
            "labels": dict(self.label_map),
            "columns": dict(self.columns),
            "splits": dict(self.splits),
            "softening": dict(self.softening),
            "fractions": list(self.fractions),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Survey:
        """Inverse of `to_mapping`; ConfigError if a key is unknown, missing or wrong."""
        return from_mapping(_SurveyFile, mapping).survey()

    @cached_property
    def identity(self) -> str:
        """Name and digest of all of it: ``hsc 5f0c3a9e21d4``."""
        text = json.dumps(self.to_mapping(), sort_keys=True)
        return f"{self.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, kw_only=True)
class _SurveyFile:
    """The keys of a survey file."""

    name: str = ""
    bands: tuple[str, ...] = ()
    side: int = 0
    pixel_scale_arcsec: float = 0.0
    reference_band: str = ""
    zero_point: float | None = None
    sky_noise: dict[str, float] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    softening: dict[str, float] = field(default_factory=dict)
    fractions: tuple[float, float, float] = FRACTIONS

    def survey(self) -> Survey:
        """What they say."""
        if self.name == DECALS.survey:
            raise ConfigError(f"name: {self.name} is the built-in survey. Choose another name.")
        if self.zero_point is None:
            raise ConfigError("zero_point is missing: the AB magnitude of one unit of flux.")
        if {*self.sky_noise} != {*self.bands}:
            raise ConfigError(f"sky_noise must have each of the bands {', '.join(self.bands)}.")
        try:
            geometry = Geometry(
                survey=self.name,
                bands=self.bands,
                side=self.side,
                pixel_scale_arcsec=self.pixel_scale_arcsec,
                reference_band=self.reference_band,
                zero_point=self.zero_point,
                sky_noise=tuple(self.sky_noise[band] for band in self.bands),
            )
        except DatasetError as error:
            raise ConfigError(f"{error}.") from None
        return Survey(
            geometry=geometry,
            label_map=self.labels,
            columns=self.columns,
            splits=self.splits,
            softening=self.softening,
            fractions=self.fractions,
        )


DECALS_SURVEY: Final = Survey(geometry=DECALS, label_map=LABEL_MAP)
"""Phase 4c: stamps of DECaLS DR10."""
STAMP_MEMBERS: Final = DECALS_SURVEY.members
"""Arrays of the NPZ in ``stamp_npz`` of Phase 4c, one for each band."""


def survey_record(survey: Survey) -> dict[str, Any]:
    """What the ``source`` of a manifest, or of scores, says of the survey: nothing of Phase 4c."""
    return {} if survey.is_phase4c else {"survey": survey.to_mapping()}


def recorded_survey(source: Mapping[str, Any]) -> Survey:
    """The survey of a tree, from the ``source`` of a manifest or of scores (`survey_record`).

    Raises
    ------
    DatasetError
        If what stands there is no survey.
    """
    found = source.get("survey")
    if found is None:
        return DECALS_SURVEY
    try:
        return Survey.from_mapping(check_object(found, "source: survey"))
    except ConfigError as error:
        raise DatasetError(f"source: survey: {error}") from None


def load_survey(name: Uri, options: S3Options | None = None) -> Survey:
    """A survey by the path or ``s3://`` URI of its TOML file, or by name.

    Names are ``decals`` and those of the examples that come along (`lensprep survey list`).

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key in it is unknown, missing or wrong.
    """
    if str(name) == DECALS.survey:
        return DECALS_SURVEY
    name = find_file(str(name), "lensprep", "surveys")
    try:
        return load_config(_SurveyFile, name, options=options).survey()
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(name)) else f"{name}: {text}") from None
