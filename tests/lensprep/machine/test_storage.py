"""What a doctor asks of a real object store, what it leaves there, and what it says of refusals."""

from __future__ import annotations

import pytest

from lensprep.errors import StorageError
from lensprep.machine.storage import TRIAL_PREFIX, try_store
from lensprep.store import RemoteStore
from tests.faultproxy import Fault
from tests.s3server import SECRET_KEY


def names(trials):
    return [trial.name for trial in trials]


def test_all_is_tried_and_nothing_is_left(s3):
    s3.store().write("mine", b"data")
    trials = try_store(s3.uri, s3.options(), write=True)
    assert names(trials) == ["list", "write", "read", "delete"]
    assert all(trial.ok and trial.error is None for trial in trials)
    assert [entry.name for entry in s3.store().entries()] == ["mine"]
    assert s3.store().read("mine") == b"data"


def test_where_nothing_is_to_be_written_nothing_is(s3, proxy):
    s3.store().write("manifest.json", b"{}")
    options = s3.options(endpoint_url=proxy.url)
    trials = try_store(s3.uri, options, write=False, name="manifest.json")
    assert names(trials) == ["list", "read"]
    assert all(trial.ok for trial in trials)
    assert {line.split()[0] for line in proxy.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("method", "failed", "tried"),
    [
        (b"PUT", "write", ["list", "write"]),
        (b"DELETE", "delete", ["list", "write", "read", "delete"]),
    ],
)
def test_what_is_refused_is_said_with_a_remedy(s3, proxy, method, failed, tried):
    proxy.add(Fault("answer", match=method, status=403, code="AccessDenied", times=9))
    trials = try_store(s3.uri, s3.options(endpoint_url=proxy.url), write=True)
    assert names(trials) == tried
    (bad,) = [trial for trial in trials if not trial.ok]
    assert bad.name == failed
    assert bad.error.startswith("Access denied (AccessDenied")
    assert "Check --profile" in bad.error
    assert TRIAL_PREFIX in bad.error


def test_an_object_whose_answer_was_lost_is_removed(s3, proxy):
    proxy.add(Fault("lose-answer", match=b"PUT", times=9))
    trials = try_store(s3.uri, s3.options(endpoint_url=proxy.url), write=True)
    assert [trial.ok for trial in trials] == [True, False]
    assert s3.store().entries() == []


def test_an_interruption_leaves_no_object(s3, monkeypatch):
    def interrupt(self, name, sha256=None):
        assert self.has(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(RemoteStore, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        try_store(s3.uri, s3.options(), write=True)
    assert s3.store().entries() == []


def test_wrong_keys_are_said_without_them(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET_KEY}-wrong")
    trials = try_store(s3.uri, s3.options(), write=True)
    assert not any(trial.ok for trial in trials)
    assert all("credentials" in trial.error for trial in trials)
    assert SECRET_KEY not in str(trials)


def test_a_location_that_is_no_store_is_an_error():
    with pytest.raises(StorageError, match="names no bucket"):
        try_store("s3://", write=True)
