"""What a table of scores must be, and the answer to each that is not."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from scipy import special

from lensprep.dataset import DECALS
from lensprep.errors import DatasetError, ScoresError
from lenstrain import scoretable as module
from lenstrain.scoretable import read_score_table, read_sky_scores
from tests.datasets import PAIR
from tests.families import BY_SHAPE, add_families
from tests.scoretables import make_table


def test_a_table_is_read_in_file_order(write_scores):
    path = write_scores(rows=90, regions=9, seed=2)
    table, read = pq.read_table(path), read_score_table(path)
    assert np.array_equal(read.logits, table["logit"].to_numpy())
    assert np.array_equal(read.labels, table["label"].to_numpy())
    assert np.array_equal(read.region, table["region_id"].to_numpy() - 2000)
    assert (read.n, read.n_regions, read.n_clusters) == (90, 9, 9)
    assert np.isnan(read.numbers("arc_snr")[read.labels == 0]).all()


def test_scores_say_what_their_stamps_had_in_common():
    assert module.scored_geometry({}) == DECALS
    assert module.scored_geometry({"geometry": PAIR.to_dict()}) == PAIR
    with pytest.raises(DatasetError, match="the scores' metadata: geometry"):
        module.scored_geometry({"geometry": {"bands": "grz"}})


def test_csv_gives_the_same_rows_as_parquet(write_scores, tmp_path):
    path = write_scores(rows=90, regions=9)
    pcsv.write_csv(pq.read_table(path), tmp_path / "scores.csv")
    one, other = read_score_table(path), read_score_table(tmp_path / "scores.csv")
    assert np.array_equal(one.logits, other.logits.astype(np.float32))
    assert np.array_equal(one.region, other.region)
    assert one.table["key"].to_pylist() == other.table["key"].to_pylist()


def test_other_peoples_tables_need_four_columns(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text(
        "key,label,probability,region_id\n007,1,0.9,north\n008,0,0.2,south\n009,lens,1.0,north\n"
    )
    with pytest.raises(ScoresError, match="column label holds string"):
        read_score_table(path)
    path.write_text(
        "key,label,probability,region_id\n007,true,0.9,north\n008,false,0.2,south\n"
        "009,false,1.0,north\n"
    )
    read = read_score_table(path)
    assert read.table["key"].to_pylist() == ["007", "008", "009"]
    assert read.region.tolist() == [0, 1, 0]
    assert read.logits[:2] == pytest.approx(special.logit([0.9, 0.2]))
    assert read.logits[2] == 40.0
    assert "exactly 0 or 1" in read.notes[1]


def test_metadata_names_the_model(write_scores):
    read = read_score_table(write_scores(metadata={"checkpoint": "best.pt", "split": "test"}))
    assert read.metadata == {"checkpoint": "best.pt", "split": "test"}


def test_a_column_that_is_there_twice_is_refused(write_scores):
    path = write_scores(rows=60)
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", table["label"]), path)
    with pytest.raises(ScoresError, match="the column 'label' more than once"):
        read_score_table(path)


BROKEN = [
    ({"key": [["a"]] * 60}, "column key holds list<.*>, not plain values"),
    ({"region_id": [{"a": 1}] * 60}, "column region_id holds struct<.*>, not plain values"),
    ({"key": None}, "lacks the column key"),
    ({"logit": None}, "lacks the column logit or probability"),
    ({"label": [1] * 60}, r"lenses \(label 1\) alone: ranking needs both classes"),
    ({"label": [0] * 60}, r"non-lenses \(label 0\) alone"),
    ({"label": [0, 2] * 30}, r"30 labels are neither 0 nor 1 \(first: 2\)"),
    ({"label": pa.array([0, 1, None] * 20)}, "20 labels are null"),
    ({"label": ["a", "b"] * 30}, "column label holds string, not numbers"),
    ({"logit": [float("nan")] + [0.0] * 59}, "1 of 60 values of logit are not finite .*key 0{32}"),
    ({"logit": pa.array([None] * 2 + [0.5] * 58)}, "2 of 60 values of logit are not finite"),
    ({"logit": [float("inf")] + [0.0] * 59}, "1 of 60 values of logit are not finite"),
    ({"logit": None, "probability": [1.5] + [0.5] * 59}, "1 probabilities lie outside"),
    (
        {"key": ["a", "a", "b"] + [f"{i}" for i in range(57)]},
        "1 keys occur more than once .a occurs 2",
    ),
    ({"key": pa.array([None] + [f"{i}" for i in range(59)])}, "1 rows have no key"),
    ({"region_id": pa.array([None] * 3 + [1] * 57)}, "3 rows have no region_id"),
    ({"region_id": [float("nan")] * 4 + [1.0] * 56}, "4 rows have no region_id"),
    ({"region_id": ["nan", "None", ""] + ["a"] * 57}, "3 rows have no region_id"),
    ({"region_id": 2.0**53 + 2 * np.arange(60)}, "60 values of region_id are floats beyond 2.53"),
    ({"key": 2.0**60 + 256 * np.arange(60)}, "60 values of key are floats beyond 2.53"),
    ({"key": [f"{i}" for i in range(58)] + ["", " "]}, "2 rows have no key"),
    ({"region_id": None, "regionid": [1] * 60}, "region_id; it has: regionid, .*--columns region_"),
    (
        {"logit": np.linspace(0, 1, 60)},
        r"all 60 values of logit lie between 0 and 1 .*--scores-are",
    ),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_an_unusable_table_is_refused_with_its_reason(write_scores, change, message):
    path = write_scores(rows=60, **change)
    with pytest.raises(ScoresError, match=message) as caught:
        read_score_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


TEXTS = ("key", "region_id", "pixel_hash", "lens_model", "split", "task_id")
TEXT_TYPES = [
    pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.uint32(), pa.large_string()),
]  # fmt: skip
LABELS = [pa.bool_(), pa.uint8(), pa.int64(), pa.float64(), pa.string(), pa.decimal128(20, 0),
          pa.dictionary(pa.int8(), pa.int64())]  # fmt: skip
REGIONS = [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(20, 0), pa.date32(),
           pa.timestamp("ns"), pa.dictionary(pa.int8(), pa.int64())]  # fmt: skip


def text_table(rows=60):
    values = [f"v{i // 2:03d}" for i in range(rows)]
    columns = dict.fromkeys(TEXTS, values) | {"key": [f"k{i}" for i in range(rows)]}
    return make_table(rows=rows, **columns)


def same_scores(one, other):
    for name in ("labels", "logits", "region", "identity"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in TEXTS:
        assert one.table[name].to_pylist() == other.table[name].to_pylist()
        assert one.codes(name)[1] == other.codes(name)[1]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_text_of_any_writer_is_judged_alike(tmp_path, kind):
    table = text_table()
    pq.write_table(table, tmp_path / "plain.parquet")
    for name in TEXTS:
        column = table[name]
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type).dictionary_encode()
        place = table.column_names.index(name)
        table = table.set_column(place, name, column.cast(kind))
    pq.write_table(table, tmp_path / "theirs.parquet")
    same_scores(
        read_score_table(tmp_path / "plain.parquet"), read_score_table(tmp_path / "theirs.parquet")
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("label", kind) for kind in LABELS), *(("region_id", kind) for kind in REGIONS),
     ("key", pa.int64()), ("logit", pa.float16()), ("logit", pa.decimal128(12, 6))],
    ids=str,
)  # fmt: skip
def test_numbers_of_any_type_are_judged_alike(tmp_path, name, kind):
    table = text_table()
    values = {"label": table["label"].to_pylist(), "region_id": [i % 10 for i in range(60)],
              "key": list(range(60)), "logit": [i / 4 - 7 for i in range(60)]}[name]  # fmt: skip
    place = table.column_names.index(name)
    column = pa.chunked_array([pa.array(values, pa.float64() if name == "logit" else pa.int64())])
    pq.write_table(table.set_column(place, name, column), tmp_path / "plain.parquet")
    if pa.types.is_dictionary(kind):
        theirs = column.dictionary_encode().cast(kind)
    elif pa.types.is_date(kind):
        theirs = column.cast(pa.int32()).cast(kind)
    else:
        theirs = (
            column.cast(pa.int8()).cast(kind) if pa.types.is_boolean(kind) else column.cast(kind)
        )
    pq.write_table(table.set_column(place, name, theirs), tmp_path / "theirs.parquet")
    one, other = (read_score_table(tmp_path / f"{each}.parquet") for each in ("plain", "theirs"))
    assert one.labels.tolist() == other.labels.tolist()
    assert one.logits.tolist() == other.logits.tolist()
    assert one.region.tolist() == other.region.tolist()
    assert one.table["key"].to_pylist() == other.table["key"].to_pylist()


# ------------------------------------------------------------------- probability or logit


def test_what_the_scores_are_can_be_said(write_scores):
    share = np.linspace(0.001, 0.999, 60)
    path = write_scores(rows=60, logit=share)
    read = read_score_table(path, scores_are="probability")
    assert read.logits == pytest.approx(special.logit(share))
    assert read.notes[0] == "Column logit: probability, as --scores-are says."
    read = read_score_table(path, scores_are="logit")
    assert read.logits.tolist() == share.tolist()
    assert read.notes == ("Column logit: logit, as --scores-are says.",)
    path = write_scores(rows=60, logit=None, probability=np.linspace(-3, 3, 60))
    with pytest.raises(
        ScoresError, match=r"lie outside \[0, 1\]. If these are logits, .*-are logit"
    ):
        read_score_table(path)
    assert read_score_table(path, scores_are="logit").logits[0] == -3


def test_few_or_equal_logits_are_no_probabilities(write_scores):
    assert read_score_table(write_scores(rows=19, logit=np.linspace(0, 1, 19), regions=5)).n == 19
    assert read_score_table(write_scores(rows=60, logit=[0.5] * 60)).n == 60
    assert read_score_table(write_scores(rows=60, logit=np.linspace(0, 1.01, 60))).n == 60


def test_a_table_of_infer_may_have_been_changed_to_probabilities(write_scores):
    """What made a table stays in its metadata when pyarrow writes it again."""
    path = write_scores(metadata={"checkpoint_sha256": "ab"}, rows=60, logit=np.linspace(0, 1, 60))
    read = read_score_table(path)  # an untrained network gives such logits too
    assert read.logits[-1] == 1
    assert read.notes[0].startswith("All 60 values of logit lie between 0 and 1")
    assert "--scores-are probability" in read.notes[0]
    assert read_score_table(path, scores_are="logit").logits[-1] == 1
    assert read_score_table(path, scores_are="probability").logits[30] == pytest.approx(
        special.logit(30 / 59)
    )
    path = write_scores(metadata={"checkpoint_sha256": "ab"}, rows=60, logit=np.linspace(-1, 1, 60))
    read = read_score_table(path, scores_are="probability")
    assert read.logits[-1] == 1
    assert read.notes == ("--scores-are is ignored: `lenstrain infer` wrote logits.",)


def test_columns_may_have_other_names(write_scores, tmp_path):
    path = write_scores(rows=60)
    table = pq.read_table(path)
    names = {"key": "objid", "logit": "score", "region_id": "brick"}
    renamed = table.rename_columns([names.get(name, name) for name in table.column_names])
    pq.write_table(renamed, tmp_path / "theirs.parquet")
    read = read_score_table(tmp_path / "theirs.parquet", names)
    assert read.logits.tolist() == read_score_table(path).logits.tolist()
    assert read.table["key"].to_pylist() == read_score_table(path).table["key"].to_pylist()
    with pytest.raises(ScoresError, match="has no column 'objid', which was named for key"):
        read_score_table(path, names)
    assert read_score_table(path, names, if_there=True).n == 60


def test_a_missing_empty_or_foreign_file_is_refused(write_scores, tmp_path):
    with pytest.raises(ScoresError, match="no such file"):
        read_score_table(tmp_path / "nothing.parquet")
    with pytest.raises(ScoresError, match="no rows"):
        read_score_table(write_scores(rows=0, regions=1))
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(ScoresError, match="no table that can be read"):
        read_score_table(tmp_path / "text.parquet")


def test_repeated_images_are_one_identity(write_scores):
    hashes = pa.array([f"{i // 3:032x}" for i in range(58)] + [None, None])
    read = read_score_table(write_scores(rows=60, pixel_hash=hashes))
    codes, column = read.identity, read.identity_column
    assert column == "pixel_hash"
    assert np.unique(codes).size == 20 + 2
    assert read_score_table(write_scores(rows=60)).identity_column == "key"


def test_very_many_regions_are_drawn_in_whole_clusters(write_scores, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLUSTERS", 7)
    read = read_score_table(write_scores(rows=200, regions=20))
    assert (read.n_regions, read.n_clusters) == (20, 7)
    regions = read.table["region_id"].to_numpy()
    for cluster in range(7):
        assert (read.region == cluster).any()
    for region in range(20):
        assert np.unique(read.region[regions == region]).size == 1
    assert "clusters of whole regions" in read.notes[0]


def test_theta_e_over_psf_is_derived_and_nan_without_a_psf(write_scores):
    psf = [0.0, 2.0] * 30
    read = read_score_table(write_scores(rows=60, psfsize_r=psf))
    ratio = read.numbers("theta_e_over_psf")
    assert np.isnan(ratio[::2]).all()
    assert ratio[1::2] == pytest.approx(read.numbers("theta_e_arcsec")[1::2] / 2)
    assert not read_score_table(write_scores(rows=60, psfsize_r=None)).has("theta_e_over_psf")


def families_file(tmp_path, **options):
    table = add_families(make_table(), BY_SHAPE, families=50, **options)
    pq.write_table(table, tmp_path / "families.parquet")
    return table, tmp_path / "families.parquet"


def test_counterfactuals_are_set_aside_when_a_table_is_read(tmp_path):
    table, path = families_file(tmp_path)
    plain_rows = np.flatnonzero(table["counterfactual"].is_null())
    pq.write_table(make_table(), tmp_path / "plain.parquet")
    read, expected = read_score_table(path), read_score_table(tmp_path / "plain.parquet")
    for name in ("logits", "labels", "region"):
        assert np.array_equal(getattr(read, name), getattr(expected, name))
    assert read.table["key"].equals(expected.table["key"])
    assert (read.n, read.n_regions, read.n_negative_unique) == (
        expected.n, expected.n_regions, expected.n_negative_unique
    )  # fmt: skip
    assert np.array_equal(read.in_file(np.arange(read.n)), plain_rows)
    aside = read.counterfactuals
    made = table.filter(table["counterfactual"].is_valid())
    assert aside.table["key"].to_pylist() == made["key"].to_pylist()
    assert np.array_equal(aside.logits, made["logit"].to_numpy())
    assert aside.table["host_task_id"].equals(made["host_task_id"])
    assert read.everything.table.num_rows == read.everything.logits.size == table.num_rows
    assert read_sky_scores(path).table.num_rows == expected.n
    assert any(note.startswith("250 counterfactuals (unlensed 50,") for note in read.notes)


def test_a_table_without_counterfactuals_is_as_it_was(tmp_path):
    """Neither an absent column nor one of nulls alone, as a split may have, changes anything."""
    table, path = families_file(tmp_path)
    pq.write_table(table.filter(table["counterfactual"].is_null()), path)
    read = read_score_table(path)
    assert (read.counterfactuals, read.file_rows, read.notes) == (None, None, ())
    assert read.in_file(np.array([3, 1])).tolist() == [3, 1]
    assert read.everything.table is read.table


def test_empty_cells_of_a_csv_are_no_kind(tmp_path):
    table, _ = families_file(tmp_path)
    pcsv.write_csv(table, tmp_path / "families.csv")
    read = read_score_table(tmp_path / "families.csv")
    assert (read.n, len(read.counterfactuals.logits)) == (1200, 250)


def test_a_table_of_counterfactuals_alone_is_refused(tmp_path):
    table, path = families_file(tmp_path)
    pq.write_table(table.filter(table["counterfactual"].is_valid()), path)
    for read in (read_score_table, read_sky_scores):
        with pytest.raises(
            ScoresError, match=r"holds counterfactuals alone.*score the whole split"
        ):
            read(path)


def test_counterfactuals_are_checked_as_other_rows_are(tmp_path):
    table, path = families_file(tmp_path)
    keys = table["key"].to_pylist()
    first, made = keys[0], next(k for k in keys if not k.startswith("00000000"))
    twice = pa.array([first if key == made else key for key in keys])
    pq.write_table(table.set_column(table.column_names.index("key"), "key", twice), path)
    with pytest.raises(ScoresError, match="1 keys occur more than once"):
        read_score_table(path)
    kinds = np.array(table["counterfactual"].to_pylist())
    region = pa.array(table["region_id"].to_numpy(), mask=kinds == "unlensed")
    pq.write_table(table.set_column(table.column_names.index("region_id"), "region_id", region),
                   path)  # fmt: skip
    with pytest.raises(ScoresError, match="region_id"):
        read_score_table(path)
    # Lenses among them do not make up for a class that the other rows lack.
    lone = np.array([kind is not None for kind in kinds]) | (table["label"].to_numpy() == 0)
    pq.write_table(table.filter(pa.array(lone)), path)
    with pytest.raises(ScoresError, match=r"non-lenses \(label 0\) alone"):
        read_score_table(path)
