"""The connection to an object store that speaks S3: one pooled boto3 client.

    connection = connect(options)              one client and its threads for each process
    connection.request("head_object", ...)     retried where that may help

boto3 is imported inside functions, since opening a local dataset does not need it. It finds the
credentials (environment, profiles, instance); nothing here reads, keeps or prints them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from lensprep.errors import StorageError
from lensprep.store.connection import Connection, Tries
from lensprep.store.options import S3Options
from lensprep.store.s3errors import (
    NOT_A_STORE,
    clear_errors,
    code_of,
    set_up_wrongly,
    status_of,
)

_SCHEMES: Final = ("s3://", "s3a://")
_CONNECT_SECONDS: Final = 10
_CALLERS: Final = 16
_ANSWER_SECONDS: Final = 1.5
"""How long an endpoint that never answered is tried; one that did is retried much longer."""
_PASSING_STATUS: Final = (429, 500, 502, 503, 504, 509)
_PASSING_CODES: Final = (
    "BadDigest",
    "ProvisionedThroughputExceededException",
    "RequestThrottledException",
    "RequestTimeout",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
)
"""Transient errors, as listed in botocore."""


def parse_s3(uri: str) -> tuple[str, str]:
    """Bucket and prefix (without slashes at its ends) of ``s3://bucket/prefix``.

    Raises
    ------
    StorageError
        If the location is not of that form, or holds a key or a password, which is not repeated.
    """
    scheme = next((scheme for scheme in _SCHEMES if uri.startswith(scheme)), None)
    bucket, _, prefix = uri.removeprefix(scheme or "").partition("/")
    if scheme is None or not bucket:
        raise StorageError(f"{uri!r} names no bucket. Write it like s3://bucket/folder.")
    if {*bucket} & {*":@"}:
        raise StorageError(
            "A location holds no credentials. Write it like s3://bucket/folder, and give the keys "
            "by --profile or the AWS variables."
        )
    return bucket, prefix.strip("/")


class S3Connection(Connection):
    """One boto3 client and the threads that use it; make it with `connect`."""

    def __init__(self, options: S3Options) -> None:
        self.client: Any = _make_client(options)
        super().__init__(options, plain=urlsplit(self.client.meta.endpoint_url).scheme == "http")
        self.client.meta.events.register("before-parse.s3", _require_store)
        self.accepted = 0
        """Requests with content that the store accepted: tries are counted from the last one."""
        self.narrow = threading.Lock()
        """Held by the retry of a request with content: alone, it has the whole bandwidth."""
        self._answered = False
        self._first_try: float | None = None

    def request(self, operation: str, **arguments: Any) -> Any:
        """Make a request, and retry it where that may help; raises boto3's last error."""
        tries = Tries(self)
        while True:
            try:
                return self.once(operation, **arguments)
            except Exception as error:
                if not (self.may_pass(error) and tries.again(self.fault(operation, error))):
                    raise

    def once(self, operation: str, **arguments: Any) -> Any:
        """Make a request, once: ``head_object``, ..."""
        answer = getattr(self.client, operation)(**arguments)
        self._answered = True
        return answer

    def may_pass(self, error: Exception) -> bool:
        """Whether another try may succeed after the store refused or did not answer."""
        from botocore.exceptions import (
            ClientError,
            ConnectionError,
            EndpointConnectionError,
            HTTPClientError,
            SSLError,
        )

        if isinstance(error, ClientError):
            status, code = status_of(error.response), code_of(error.response)
            if code == NOT_A_STORE and not self._answered:
                return False
            self._answered = True
            return status in _PASSING_STATUS or code in _PASSING_CODES
        now = time.monotonic()
        self._first_try = self._first_try or now
        never = not self._answered and now - self._first_try > _ANSWER_SECONDS
        if isinstance(error, SSLError) and set_up_wrongly(error) and not self._answered:
            return False  # else bytes were altered on the way
        if isinstance(error, SSLError | EndpointConnectionError) and never:
            return False
        return isinstance(error, HTTPClientError | ConnectionError)

    def fault(self, operation: str, error: Exception) -> str:
        """Which request failed and how, for the log."""
        fault, response = type(error).__name__, getattr(error, "response", None)
        if isinstance(response, dict):
            fault = f"the store answered {status_of(response)} {code_of(response)}".rstrip()
        return f"{self.client.meta.method_to_api_mapping[operation]}: {fault}"


_connections: dict[Any, S3Connection] = {}
_lock = threading.Lock()


def connect(options: S3Options | None = None) -> S3Connection:
    """Connection of this process with these options and the AWS variables as they are now."""
    options = options or S3Options()
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    # The variables may hold secrets, so only their digest is kept. A forked child must not share
    # its parent's sockets.
    state = hashlib.sha256(repr(variables).encode()).hexdigest()
    key = (options, os.getpid(), state)
    with _lock:
        if key not in _connections or _connections[key].stopped:
            try:
                with clear_errors("reach", options.endpoint_url or "S3"):
                    _connections[key] = S3Connection(options)
            except ValueError as error:  # botocore's of an endpoint, which may hold a password
                raise StorageError(
                    "The endpoint of the store (--endpoint-url or AWS_ENDPOINT_URL) is no URL. "
                    "Write it like http://host:port."
                ) from error
        return _connections[key]


def _make_client(options: S3Options) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(profile_name=options.profile, region_name=options.region)

    def client(s3: Mapping[str, Any]) -> Any:
        config = Config(
            # Besides the threads of `Connection`, callers make small requests themselves.
            max_pool_connections=options.connections + _CALLERS,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=options.read_timeout_s,
            # Retries are ours: see `lensprep.store.connection.Tries`.
            retries={"mode": "legacy", "total_max_attempts": 1},
            # Digests of the manifest are compared instead, and ranges have no checksum.
            response_checksum_validation="when_required",
            request_checksum_calculation="when_required",
            s3=dict(s3),
            user_agent_extra="lensprep",
        )
        return session.client("s3", endpoint_url=options.endpoint_url, config=config)

    first = client({})
    url = urlsplit(first.meta.endpoint_url)
    host = url.hostname or ""
    settings: dict[str, Any] = {}
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        # Other stores seldom have a host name for every bucket.
        settings["addressing_style"] = "path"
    if url.scheme == "https":
        # TLS and our CRC-32 protect the body; a SHA-256 for the signature would be a third digest.
        settings["payload_signing_enabled"] = False
    return client(settings) if settings else first


_HOLDS: Final = {
    "CompleteMultipartUpload": ("ETag",),
    "CreateMultipartUpload": ("UploadId",),
    "GetObject": ("ETag", "ContentLength"),
    "HeadObject": ("ETag", "ContentLength"),
    "ListMultipartUploads": ("IsTruncated",),
    "ListObjectsV2": ("IsTruncated",),
    "PutObject": ("ETag",),
    "UploadPart": ("ETag",),
}
"""What an object store's answer to a request always holds."""
_ITEMS: Final = {"Contents": ("Key", "Size", "ETag"), "Uploads": ("Key", "UploadId")}
"""The same for each item of a listing."""


def _require_store(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Turn a "success" that cannot come from an object store into a 503, which is retried.

    A proxy's login page comes with status 200, and botocore reads it as an empty listing. S3's own
    errors with status 200 are handled by botocore in just this way.
    """
    if response_dict["status_code"] < 300 and (fault := _fault_of(operation_model, response_dict)):
        text = f"<Error><Code>{NOT_A_STORE}</Code><Message>{fault}</Message></Error>"
        if hasattr(response_dict["body"], "close"):
            response_dict["body"].close()
        response_dict |= {"status_code": 503, "body": text.encode()}


def _fault_of(operation_model: Any, response_dict: dict[str, Any]) -> str | None:
    """How an answer differs from that of an object store; None if it does not."""
    from botocore.parsers import create_parser

    name, page = operation_model.name, "html" in response_dict["headers"].get("content-type", "")
    if page and name not in ("GetObject", "HeadObject"):  # an object may be a page itself
        return "a web page"
    try:
        parsed = create_parser("rest-xml").parse(response_dict, operation_model.output_shape)
    except Exception as error:  # whatever botocore's parser makes of bytes that it does not expect
        return f"an answer that cannot be read ({type(error).__name__})"
    wanted = [(parsed, _HOLDS.get(name, ()))]
    wanted += [(item, keys) for list_, keys in _ITEMS.items() for item in parsed.get(list_, ())]
    missing = [key for values, keys in wanted for key in keys if values.get(key) in (None, "")]
    return f"an answer without {missing[0]}" if missing else None
