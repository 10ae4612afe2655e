"""Croissant metadata, as mlcroissant reads it: no complaint, every record, every digest."""

import dataclasses
import json
import shutil
import tarfile

import mlcroissant as mlc
import numpy as np
import pyarrow.parquet as pq
import pytest
import rdflib
from etils import epath

from lensprep.dataset import LABEL_MAP
from lenstrain.publish.croissant import CROISSANT_NAME, croissant
from lenstrain.publish.facts import About, Item
from tests.publications import (
    ABOUT,
    COMPLETENESS,
    SCORES,
    SIDECAR,
    TAR,
    publication,
)

# mlcroissant uses what pandas and rdflib no longer recommend, and leaves files to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PROV = rdflib.Namespace("http://www.w3.org/ns/prov#")
CROISSANT = "http://mlcommons.org/croissant/"
SCHEMA = rdflib.Namespace("https://schema.org/")


@pytest.fixture(autouse=True)
def own_archives(tmp_path, monkeypatch):
    """mlcroissant knows a tar that it unpacked by its path in the folder, that of all folders."""
    place = "mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH"
    monkeypatch.setattr(place, epath.Path(tmp_path))


@pytest.fixture(scope="module")
def loaded(folder):
    return mlc.Dataset(folder / CROISSANT_NAME)


def graph_of(document):
    """Statements of the document, as any reader of JSON-LD sees them."""
    context = document["@context"] | {"@base": "https://folder.example/"}
    return rdflib.Graph().parse(data=json.dumps(document | {"@context": context}), format="json-ld")


def node(name):
    return rdflib.URIRef(f"https://folder.example/{name}")


def plain(value):
    return value.decode() if isinstance(value, bytes) else value


def test_mlcroissant_has_no_complaint(folder, caplog):
    issues = mlc.Dataset(folder / CROISSANT_NAME).metadata.issues
    assert (issues.errors, issues.warnings, caplog.records) == (set(), set(), [])


@pytest.mark.parametrize("path", [SCORES, COMPLETENESS, SIDECAR])
def test_every_record_of_a_table_is_read(loaded, folder, path):
    table = pq.read_table(folder / path)
    name = path.removesuffix(".parquet")
    (record_set,) = [one for one in loaded.metadata.record_sets if one.id == name]
    names = {field.id: field.name for field in record_set.fields}
    records = [
        {names[field]: plain(value) for field, value in record.items()}
        for record in loaded.records(name)
    ]
    described = [name for name in table.column_names if name != "a day"]
    assert records == table.select(described).to_pylist()


def test_columns_say_what_they_are(loaded):
    fields = {field.id: field for one in loaded.metadata.record_sets for field in one.fields}
    theta = fields["scores/test/theta_e_arcsec"]
    assert (theta.description, theta.extra_properties["unitText"]) == ("Of a stamp", "arcsec")
    assert theta.data_type is np.float64
    label = fields["scores/test/label"]
    assert label.data_types == [mlc.DataType.INT8, rdflib.URIRef(CROISSANT + "Label")]


def test_every_stamp_is_read(loaded, folder):
    name = TAR.removesuffix(".tar") + "/stamps"
    records = {
        plain(record[f"{name}/key"]): record[f"{name}/stamp"] for record in loaded.records(name)
    }
    with tarfile.open(folder / TAR) as tar:
        stamps = {
            member.name.removesuffix(".stamp.npy"): tar.extractfile(member).read()
            for member in tar
            if member.name.endswith(".npy")
        }
    assert len(stamps) == 5
    assert records == stamps


def test_lens_models_are_an_enumeration(loaded):
    records = loaded.records("lens_models")
    found = {record["lens_models/name"]: record["lens_models/label"] for record in records}
    assert found == LABEL_MAP


@pytest.mark.parametrize("path", [SCORES, TAR])
def test_an_altered_byte_is_noticed(folder, tmp_path, path):
    altered = shutil.copytree(folder, tmp_path / "altered")
    content = bytearray((altered / path).read_bytes())
    content[len(content) // 2] ^= 1
    (altered / path).write_bytes(content)
    dataset = mlc.Dataset(altered / CROISSANT_NAME)
    name = path.partition(".")[0] + ("/stamps" if path == TAR else "")
    with pytest.raises(mlc.GenerationError) as caught:
        list(dataset.records(name))
    assert f"{path} is not identical" in str(caught.value.__cause__)


def test_lineage_leads_from_scores_to_the_source(folder):
    facts = publication(folder)
    graph = graph_of(croissant(facts))
    origins = set(graph.transitive_objects(node(SCORES), PROV.wasDerivedFrom))
    assert origins == {node(SCORES), node("#checkpoint"), node("#dataset"), node("#source")}
    (step,) = graph.objects(node(SCORES), PROV.wasGeneratedBy)
    assert step == node("#score")
    assert set(graph.objects(step, PROV.used)) == {node("#checkpoint"), node("#dataset")}
    shards = {
        str(graph.value(shard, SCHEMA.sha256)): list(graph.objects(shard, PROV.wasDerivedFrom))
        for shard in graph.objects(node("#dataset"), PROV.hadMember)
    }
    assert shards == {shard.sha256: [node("#source")] for shard in facts.shards}
    assert len(shards) == 4


def test_shards_that_are_on_a_server_are_files_of_the_data_set(folder):
    about = dataclasses.replace(ABOUT, data_url="https://data.example/set/")
    facts = publication(folder, about)
    metadata = mlc.Dataset(croissant(facts)).metadata
    found = {one.content_url: one.sha256 for one in metadata.file_objects if "://" in one.id}
    assert found == {
        f"https://data.example/set/{name}": digest
        for split in facts.manifest.splits.values()
        for shard in split.shards
        for name, digest in ((shard.name, shard.sha256), (shard.sidecar, shard.sidecar_sha256))
    }


def test_a_draft_without_a_word_of_its_authors_is_valid(folder):
    facts = publication(folder, About(), faults=("no licence",))
    metadata = mlc.Dataset(croissant(facts)).metadata
    assert (metadata.issues.errors, metadata.issues.warnings) == (set(), set())
    assert metadata.extra_properties["creativeWorkStatus"] == "Draft"
    assert [license.name for license in metadata.license] == ["No licence has been given"]


def test_the_same_publication_gives_the_same_bytes(folder):
    facts = publication(folder)
    itself = Item(id=CROISSANT_NAME, title="This file", sha256="0" * 64)
    again = dataclasses.replace(publication(folder), items=(*facts.items, itself))
    assert json.dumps(croissant(facts)) == json.dumps(croissant(again))
