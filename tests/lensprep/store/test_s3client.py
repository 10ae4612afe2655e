"""What an object store or a network answers, in one line: what was found, and no credential."""

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, SSLError

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store import S3Options
from lensprep.store.s3 import S3Store
from lensprep.store.s3client import connect, parse_s3
from lensprep.store.s3errors import clear_errors
from tests.s3server import free_ports


def said(error, action="read", uri="s3://bucket/a"):
    with pytest.raises(StorageError) as caught, clear_errors(action, uri):
        raise error
    return caught.value


def answer(status, code, message="", **more):
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": more.pop("headers", {})}
    error = {"Code": code, "Message": message, **more}
    return ClientError({"Error": error, "ResponseMetadata": metadata}, "GetObject")


@pytest.mark.parametrize("uri", ["s3://KEYID:topsecret@b/x", "s3://KEYID:top/secret@b/x"])
def test_keys_in_a_location_are_refused_and_not_repeated(uri):
    with pytest.raises(StorageError, match="holds no credentials") as caught:
        parse_s3(uri)
    assert "KEYID" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_in_an_endpoint_is_not_shown_whatever_else_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    url = f"http://user:topsecret@127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(StorageError, match="ProfileNotFound") as caught:
        connect(S3Options(endpoint_url=url, profile="nosuch"))
    assert "topsecret" not in str(caught.value)


def test_an_endpoint_that_is_no_url_is_one_line():
    with pytest.raises(StorageError, match="is no URL"):
        connect(S3Options(endpoint_url="nonsense"))


def test_a_name_that_no_bucket_has_is_said_without_botocores_patterns(s3):
    with pytest.raises(StorageError) as caught:
        S3Store("s3://no_bucket!/x", s3.options()).entries()
    assert str(caught.value) == "Cannot list s3://no_bucket!/x: that is no name of a bucket."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(403, "RequestTimeTooSkewed", "too large"), ["clock", "RequestTimeTooSkewed"]),
        (answer(403, "InvalidObjectState", "no"), ["archive", "restore-object"]),
        (answer(403, "AccessDenied", "by a policy"), ["AccessDenied: by a policy", "--profile"]),
        (answer(403, "403", "Forbidden"), ["without a reason", "the name"]),
        (answer(501, "NotImplemented", "no lists"), ["answered 501", "no lists"]),
        (
            answer(400, "AuthorizationHeaderMalformed", "wrong", Region="eu-west-1"),
            ["in the region eu-west-1", "--region eu-west-1."],
        ),
        (
            answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-north-1"}),
            ["in the region eu-north-1"],
        ),
        (answer(301, "PermanentRedirect"), ["in another region", "--region."]),
        (
            SSLError(endpoint_url="https://h:1", error="[SSL: WRONG_VERSION_NUMBER] wrong"),
            ["does not speak TLS", "http://host:port"],
        ),
        (
            SSLError(endpoint_url="https://h:1", error="certificate verify failed"),
            ["certificate is not accepted", "AWS_CA_BUNDLE"],
        ),
        (SSLError(endpoint_url="https://h:1", error="handshake failure"), ["handshake failure"]),
        (ConnectionClosedError(endpoint_url="http://h:1"), ["(is it https://?)"]),
    ],
)
def test_what_was_answered_is_said_and_not_its_likeliest_cause(error, words):
    text = str(said(error))
    assert all(word in text for word in words), text


def test_a_clash_of_two_writers_is_told_from_an_object_that_was_replaced():
    clash = said(answer(409, "OperationAborted", "try again"), "write")
    assert isinstance(clash, ChangedError)
    assert "something else is writing it" in str(clash)
    assert "was replaced" in str(said(answer(412, "PreconditionFailed")))


def test_a_listing_that_is_not_found_came_from_no_store_and_an_object_may_be_missing():
    assert isinstance(said(answer(404, "404", "Not Found")), NotFoundError)
    assert "is not an object store" in str(said(answer(404, "404", "Not Found"), "list"))
    assert "no such bucket" in str(said(answer(404, "NoSuchBucket"), "list"))


def test_what_a_store_says_is_cut_and_cannot_order_a_terminal_about():
    text = str(said(answer(500, "Internal\x1b[31m", "\x1b]0;title\x07\nnext " + "x" * 5000)))
    assert len(text) < 500
    assert text.isprintable()
