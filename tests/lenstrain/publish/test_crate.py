"""RO-Crate metadata, as the RO-Crate validator and the library rocrate read it."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
from importlib.resources import files

import pytest
import requests
import requests_cache
from rocrate.rocrate import ROCrate
from rocrate_validator import services
from urllib3 import HTTPResponse

from lenstrain.publish.crate import CRATE_NAME, crate
from lenstrain.publish.facts import FOLDER, About, Item, license_url
from tests.publications import ABOUT, SCORES, TAR, publication, write_metadata

# Of rdflib, which the validator reads with.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
UNKNOWN = {
    # The project has no address, and of the conversion no time of its end is recorded.
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The Application SHOULD have a url",
    "The Action SHOULD have an endTime in ISO 8601 format",
    "The author SHOULD have an organizational affiliation.",
    "The author SHOULD have a Contextual Entity which specifies the organizational `affiliation`.",
}
"""Recommendations that only facts would meet that nobody has stated."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The validator's memory of the network, with the terms of RO-Crate that rocrate brings."""
    path = tmp_path_factory.mktemp("cache") / "http"
    content = files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
    response = requests.Response()
    response.status_code, response.url = 200, CONTEXT
    response.headers["Content-Type"] = "application/ld+json"
    response.request = requests.Request("GET", CONTEXT).prepare()
    response.raw = HTTPResponse(io.BytesIO(content), status=200, preload_content=False)
    with requests_cache.CachedSession(str(path), backend="sqlite") as session:
        session.cache.save_response(response)
    return path


def by_id(document):
    return {node["@id"]: node for node in document["@graph"]}


def validate(folder, cache):
    """Issues that the validator finds, by severity; it may not ask the network."""
    settings = services.ValidationSettings(
        rocrate_uri=folder,
        profile_identifier="process-run-crate",
        requirement_severity="RECOMMENDED",
        offline=True,
        cache_path=cache,
    )
    issues = {}
    for issue in services.validate(settings).get_issues():
        issues.setdefault(issue.severity.name, set()).add(issue.message)
    return issues


def test_the_validator_misses_only_what_nobody_has_stated(folder, cache):
    assert validate(folder, cache) == {"RECOMMENDED": UNKNOWN}


@pytest.mark.slow
def test_a_draft_without_a_word_of_its_authors_is_valid(folder, cache, tmp_path):
    draft = shutil.copytree(folder, tmp_path / "draft")
    write_metadata(draft, publication(folder, About(), faults=("no licence",)))
    assert validate(draft, cache).keys() == {"RECOMMENDED"}


@pytest.mark.slow
def test_the_validator_finds_what_is_not_valid(folder, cache, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    document = json.loads((broken / CRATE_NAME).read_text())
    by_id(document)["#score"].pop("instrument")
    (broken / CRATE_NAME).write_text(json.dumps(document))
    assert any("instrument" in issue for issue in validate(broken, cache)["REQUIRED"])


def test_rocrate_opens_it(folder):
    opened = ROCrate(folder)
    assert (opened.name, opened.license.id) == (ABOUT.title, license_url("CC-BY-4.0"))
    assert [(one.id, one["name"]) for one in opened.root_dataset["author"]] == [
        ("https://orcid.org/0000-0002-1825-0097", "Ada Ray"),
        ("#Bo%20Li", "Bo Li"),
    ]
    score = opened.get("#score")
    assert (score["instrument"]["softwareVersion"], score["instrument"]["identifier"]) == (
        "0.2.0",
        "0123abc",
    )
    assert [one.id for one in score["object"]] == ["#checkpoint", "#dataset"]
    assert score["result"].id == SCORES


def test_every_file_has_its_size_and_digest(folder):
    facts = publication(folder)
    nodes = by_id(crate(facts))
    inside = [item for item in facts.items if item.is_inside]
    found = {name: node["sha256"] for name, node in nodes.items() if node["@type"] == "File"}
    assert found == {
        item.id: hashlib.sha256((folder / item.id).read_bytes()).hexdigest() for item in inside
    }
    for item in inside:
        assert nodes[item.id]["contentSize"] == str((folder / item.id).stat().st_size)
    assert nodes[TAR]["license"]["@id"] == license_url("CC0-1.0")
    assert "license" not in nodes[SCORES]


def test_nothing_is_named_that_is_not_described(folder):
    document = crate(publication(folder))
    named = set(re.findall(r'\{"@id": "([^"]+)"\}', json.dumps(document)))
    assert named - by_id(document).keys() == {"https://w3id.org/ro/crate/1.1"}
    assert len(by_id(document)) == len(document["@graph"])


def test_shards_that_are_on_a_server_are_files(folder):
    facts = publication(folder, dataclasses.replace(ABOUT, data_url="https://data.example/set"))
    nodes = by_id(crate(facts))
    shard = facts.manifest.splits["train"].shards[0]
    address = f"https://data.example/set/{shard.name}"
    assert nodes[address]["@type"] == "File"
    assert (nodes[address]["sha256"], nodes[address]["contentSize"]) == (
        shard.sha256,
        str(shard.bytes),
    )
    assert {"@id": address} in nodes[FOLDER]["hasPart"]
    assert {"@id": address} in nodes["#dataset"]["hasPart"]


def test_a_draft_says_so(folder):
    draft = crate(publication(folder, About(), faults=("no licence",)))
    nodes = by_id(draft)
    assert nodes[FOLDER]["creativeWorkStatus"] == "Draft"
    assert nodes[nodes[FOLDER]["license"]["@id"]]["name"] == "No licence has been given"


def test_the_file_itself_is_described_once(folder):
    facts = publication(folder)
    itself = Item(id=CRATE_NAME, title="This file")
    assert crate(dataclasses.replace(facts, items=(*facts.items, itself))) == crate(facts)
