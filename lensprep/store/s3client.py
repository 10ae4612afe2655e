"""The connection to an object store: options, one pooled boto3 client, errors in one line.

    options = S3Options(endpoint_url=..., profile=..., region=...)      plain and small; it pickles
    connection = connect(options)            one client and its threads for a process, kept
    with clear_errors("read", "s3://b/k"):   what boto3 raises becomes a StorageError of one line
    stop_retries()                           nothing that is under way is tried again

boto3 is imported inside functions: opening a local dataset does not need it. Credentials are found
by boto3 (environment, profiles, instance); nothing here reads, keeps or prints them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from lensprep.errors import ChangedError, NotFoundError, StorageError, plain_text

logger = logging.getLogger("lensprep.s3")

_SCHEMES: Final = ("s3://", "s3a://")
_CONNECT_SECONDS: Final = 10
_CALLERS: Final = 16
_LOG_SECONDS: Final = 5.0
"""A fault that many requests meet at once is told once in so many seconds."""
_ANSWER_SECONDS: Final = 1.5
"""How long an endpoint that never answered is tried; one that did is waited for much longer."""
WAKE_SECONDS: Final = 0.5
"""Longest wait of a main thread: a signal that comes as it begins is seen only when it wakes."""
_NAP_SECONDS: Final = 0.1
"""How soon a pause before another try notices that there is to be none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Options:
    """How to reach an object store and what to ask of it. Holds no credentials."""

    endpoint_url: str | None = None
    """Another store than AWS: ``http://host:port``."""
    profile: str | None = None
    """Profile of the AWS configuration files."""
    region: str | None = None
    storage_class: str | None = None
    """Of objects written, such as ``INTELLIGENT_TIERING``."""
    encryption: Literal["AES256", "aws:kms"] | None = None
    """Server-side encryption of objects written; the bucket's own rule if not given."""
    kms_key_id: str | None = None
    """Key of ``aws:kms``; the account's own S3 key if not given."""
    connections: int = 16
    """Requests under way at once; AWS gives 85 to 90 MB/s for each."""
    read_timeout_s: float = 30.0
    """A connection that brings nothing for so long is given up, and the request made again."""
    attempts: int = 8
    """Tries of a request, with growing pauses between them: about a minute in all."""

    def __post_init__(self) -> None:
        if self.connections < 1 or self.attempts < 1:
            raise ValueError("connections and attempts must be at least 1")
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id needs encryption='aws:kms'")

    def put_arguments(self) -> dict[str, str]:
        """Arguments of the requests that make an object."""
        values = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
        }
        return {name: value for name, value in values.items() if value is not None}


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


class Connection:
    """One boto3 client and the threads that use it; make it with `connect`."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self.client: Any = _make_client(options)
        self.plain = urlsplit(self.client.meta.endpoint_url).scheme == "http"
        """Without TLS nothing but digests tells whether bytes are those that were sent."""
        self.client.meta.events.register("before-parse.s3", _require_store)
        self.watcher = Watcher(self.client.meta.events)
        self.threads = ThreadPoolExecutor(options.connections, "lensprep-s3")
        self.slots = threading.BoundedSemaphore(options.connections + 2)
        """Parts held in memory at once, over all files of a transfer."""
        self.buffers: list[bytearray] = []
        """Memory of parts that were written: fresh pages would cost half as much as receiving."""
        self.accepted = 0
        """Requests with content that the store took: tries are counted from the last of them."""
        self.narrow = threading.Lock()
        """Held by a request with content that broke before: alone it has the whole line."""

    def stop(self) -> None:
        """Let go after an interrupt: nothing is tried again, and the next `connect` starts anew."""
        self.watcher.stopped = True
        self.threads.shutdown(wait=False, cancel_futures=True)


_connections: dict[Any, Connection] = {}
_lock = threading.Lock()


def connect(options: S3Options | None = None) -> Connection:
    """Connection of this process with these options and the AWS variables as they are now."""
    options = options or S3Options()
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    # The variables may hold secrets: only their digest is kept. A forked child must not share
    # its parent's sockets.
    state = hashlib.sha256(repr(variables).encode()).hexdigest()
    key = (options, os.getpid(), state)
    with _lock:
        if key not in _connections or _connections[key].watcher.stopped:
            try:
                with clear_errors("reach", options.endpoint_url or "S3"):
                    _connections[key] = Connection(options)
            except ValueError as error:  # botocore's of an endpoint, which may hold a password
                raise StorageError(
                    "The endpoint of the store (--endpoint-url or AWS_ENDPOINT_URL) is no URL. "
                    "Write it like http://host:port."
                ) from error
        return _connections[key]


def stop_retries() -> None:
    """Try nothing again that is under way: what a signal does, see `interrupts.interruptible`.

    Without the lock, which the code that was interrupted may hold.
    """
    for connection in list(_connections.values()):
        connection.watcher.stopped = True


def _make_client(options: S3Options) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(profile_name=options.profile, region_name=options.region)

    def client(s3: Mapping[str, Any]) -> Any:
        config = Config(
            # Beside the threads of `Connection` callers make small requests of their own.
            max_pool_connections=options.connections + _CALLERS,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=options.read_timeout_s,
            # "standard" and "adaptive" share a budget of 500 / 14 retries over all threads: with
            # 16 connections a store that restarts uses it up in less than a second.
            retries={"mode": "legacy", "total_max_attempts": options.attempts},
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
        # Stores of other makers seldom have a host name for every bucket.
        settings["addressing_style"] = "path"
    if url.scheme == "https":
        # TLS and our CRC-32 guard the body; a SHA-256 for the signature would be a third digest.
        settings["payload_signing_enabled"] = False
    return client(settings) if settings else first


_NOT_A_STORE: Final = "NotAnObjectStore"
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
"""What an object store's answer to a request holds without fail."""
_ITEMS: Final = {"Contents": ("Key", "Size", "ETag"), "Uploads": ("Key", "UploadId")}
"""The same of what it lists."""


def _require_store(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Take a success that no object store would tell for a 503, which is asked for again.

    A proxy's login page comes with status 200; botocore makes an empty listing of it. It handles
    S3's own errors with status 200 in just this way.
    """
    if response_dict["status_code"] < 300 and (fault := _fault_of(operation_model, response_dict)):
        text = f"<Error><Code>{_NOT_A_STORE}</Code><Message>{fault}</Message></Error>"
        if hasattr(response_dict["body"], "close"):
            response_dict["body"].close()
        response_dict |= {"status_code": 503, "body": text.encode()}


def _fault_of(operation_model: Any, response_dict: dict[str, Any]) -> str | None:
    """What an answer lacks that an object store would give."""
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


class Watcher:
    """Tells of requests that have to be made again, and stops those that cannot succeed.

    Parameters
    ----------
    events
        Of a client: its event ``needs-retry`` is handled here before botocore's own handler.
    """

    def __init__(self, events: Any) -> None:
        self.stopped = False
        """Nothing shall be tried again."""
        self._events = events
        self._asking = threading.local()
        self._answered = False
        self._first_try: float | None = None
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()
        events.register_first("needs-retry.s3", self)

    def __call__(self, event_name: str, **event: Any) -> int | bool | None:
        """Look at one answer, and wait here if the request is to be made again.

        botocore would sleep by itself, for up to a minute, which nothing could end.

        Returns
        -------
        int, False or None
            0 to make it again now, False not to; None where botocore wants nothing.
        """
        if getattr(self._asking, "of", None) is event["request_dict"]:
            return None
        if self.stopped or not self._look(**event):
            return False
        self._asking.of = event["request_dict"]
        try:
            _, seconds = self._events.emit_until_response(event_name, **event)
        finally:
            self._asking.of = None
        if seconds is None or seconds is False:
            return None
        return 0 if self.pause(seconds) else False

    @contextmanager
    def once(self, attempt: int) -> Iterator[None]:
        """Leave it to the caller to try again where a connection breaks inside the block.

        Parameters
        ----------
        attempt : int
            Number of this try.
        """
        self._asking.attempt = attempt
        try:
            yield
        finally:
            self._asking.attempt = None

    @contextmanager
    def giving_up(self) -> Iterator[None]:
        """Try nothing again inside the block."""
        before, self.stopped = self.stopped, True
        try:
            yield
        finally:
            self.stopped = before

    def pause(self, seconds: float) -> bool:
        """Wait before another try; False if there is to be none."""
        until = time.monotonic() + seconds
        while not self.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))
        return not self.stopped

    def _look(
        self,
        response: Any,
        operation: Any,
        attempts: int,
        caught_exception: Exception | None,
        **_: Any,
    ) -> bool:
        """Tell of a fault; whether the request may be made again here."""
        if caught_exception is not None:
            if not self.may_pass(caught_exception):
                raise caught_exception
            mine = getattr(self._asking, "attempt", None)
            fault = type(caught_exception).__name__
            self.tell(f"{operation.name}: {fault}", mine or attempts)
            return mine is None
        parsed = response[1]
        status, code = parsed["ResponseMetadata"]["HTTPStatusCode"], _code(parsed)
        if code == _NOT_A_STORE and not self._answered:
            return False
        self._answered = True
        if status >= 500 or status == 429:
            self.tell(f"{operation.name}: the store answered {status} {code}".rstrip(), attempts)
        return True

    def may_pass(self, fault: Exception) -> bool:
        """Whether another try may succeed where a connection was not made or broke."""
        from botocore.exceptions import EndpointConnectionError, SSLError

        now = time.monotonic()
        self._first_try = self._first_try or now
        never = not self._answered and now - self._first_try > _ANSWER_SECONDS
        refused = isinstance(fault, EndpointConnectionError)
        return not (isinstance(fault, SSLError) or (refused and never))

    def tell(self, what: str, attempt: int) -> None:
        """Log a fault, but not the same one many times within a few seconds."""
        now = time.monotonic()
        with self._lock:
            if now - self._told.get(what, -_LOG_SECONDS) < _LOG_SECONDS:
                return
            self._told[what] = now
        logger.warning("%s (attempt %d); trying again", what, attempt)


_EXPIRED: Final = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
)
_REFUSED: Final = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity")
_ELSEWHERE: Final = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "IncorrectEndpoint",
)


_CLOCK: Final = ("RequestTimeTooSkewed", "RequestInTheFuture")
_MOST_TEXT: Final = 300
"""Characters shown of what a store or botocore says."""
_REGION: Final = re.compile(r"[a-z0-9-]+")


@contextmanager
def clear_errors(action: str, uri: str) -> Iterator[None]:
    """Turn what boto3 raises into a StorageError that says what to do; no credential is in it.

    Parameters
    ----------
    action : str
        What was tried: "read", "write", "list", ...
    uri : str
        On what.

    Raises
    ------
    NotFoundError, ChangedError, StorageError
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _answered(error.response, action, plain_text(uri)) from error
    except BotoCoreError as error:
        raise _unanswered(error, action, plain_text(uri)) from error


def _code(response: Mapping[str, Any]) -> str:
    """S3's name of an error."""
    return str(response.get("Error", {}).get("Code", ""))


def _answered(response: Mapping[str, Any], action: str, uri: str) -> StorageError:
    """Error for an answer of the store."""
    code = plain_text(_code(response), 60)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = plain_text(str(response.get("Error", {}).get("Message", "")), _MOST_TEXT).rstrip(".")
    if code == "NoSuchBucket":
        bucket = "s3://" + uri.split("://", 1)[-1].split("/")[0]
        return StorageError(
            f"{bucket}: no such bucket. Check its name, --endpoint-url, --profile and --region."
        )
    if code in _EXPIRED:
        return StorageError(
            f"The credentials have expired ({code}): cannot {action} {uri}. Get new ones (such as "
            "`aws sso login`) and run the same command again; what is done is kept."
        )
    if code in _REFUSED:
        return StorageError(
            f"The store does not accept the credentials ({code}): cannot {action} {uri}. Check "
            "--profile, --endpoint-url and the AWS variables."
        )
    if code in _CLOCK:
        return StorageError(
            f"The clock of this machine is not that of the store ({code}): cannot {action} {uri}. "
            "Set it."
        )
    if code == "InvalidObjectState":
        return StorageError(
            f"{uri} is in an archive of the store ({code}): it has to be restored before it can be "
            "read (`aws s3api restore-object`)."
        )
    if code in _ELSEWHERE:
        region = _region(response)
        where = f"in the region {region}" if region else "in another region"
        remedy = " ".join(filter(None, ("Give it with --region", region)))
        return StorageError(f"{uri} is {where} ({code}). {remedy}.")
    # An object that is asked for may be missing; the listing of a bucket never is.
    listing = status == 404 and action == "list" and code in ("", "404")
    if code == _NOT_A_STORE or 300 <= status < 400 or listing:
        sent = message if code == _NOT_A_STORE else f"status {status}"
        return StorageError(
            f"What answered is not an object store: it sent {sent}. Is it the login page of a "
            f"proxy, or a wrong --endpoint-url? Cannot {action} {uri}."
        )
    if status == 403:
        if code in ("", "403"):  # the answer to a HEAD has no reason
            return StorageError(
                f"Access denied, without a reason: cannot {action} {uri}. Check --profile, the AWS "
                "variables, the bucket's policy and, where it does not let you list, the name."
            )
        return StorageError(
            f"Access denied ({code}: {message}): cannot {action} {uri}. Check --profile, the AWS "
            "variables and the bucket's policy."
        )
    if status == 404:
        return NotFoundError(f"{uri}: no such object.")
    if status == 412:
        return ChangedError(f"{uri} was replaced while it was read or written.")
    if status == 409:
        return ChangedError(f"Cannot {action} {uri}: something else is writing it ({code}).")
    if status == 501 and action == "write":
        return StorageError(
            f"The store cannot do this request ({code or status}): {action} {uri}. Conditional "
            "writes are needed, which S3 has had since 2024."
        )
    return StorageError(f"Cannot {action} {uri}: the store answered {status} {code}: {message}.")


def _region(response: Mapping[str, Any]) -> str:
    """The region that a store names as the right one; empty if it names none."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region") or ""
    return region if _REGION.fullmatch(region) else ""


def _unanswered(error: Exception, action: str, uri: str) -> StorageError:
    """Error for a request that got no answer or was not even sent."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return StorageError(
            f"No usable AWS credentials ({name}): cannot {action} {uri}. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give --profile."
        )
    if "Token" in name or "SSO" in name or name.startswith("Login"):
        return StorageError(
            f"The AWS login has expired or is missing ({name}): cannot {action} {uri}. Log in "
            "(such as `aws sso login`) and run the same command again; what is done is kept."
        )
    # The messages of botocore name hosts, profiles and files.
    text = plain_text(str(error), _MOST_TEXT).rstrip(".")
    if name == "SSLError" and "certificate verify failed" in str(error).lower():
        return StorageError(
            f"The store's TLS certificate is not accepted: cannot {action} {uri}. Name the file of "
            "its authority in AWS_CA_BUNDLE."
        )
    if name == "SSLError" and re.search("WRONG_VERSION_NUMBER|record layer", str(error)):
        return StorageError(
            f"The store does not speak TLS: cannot {action} {uri}. Give --endpoint-url "
            "http://host:port."
        )
    if name == "ParamValidationError" and "Invalid bucket name" in text:
        return StorageError(f"Cannot {action} {uri}: that is no name of a bucket.")
    if name == "ConnectionClosedError" and "http://" in text:
        text += " (is it https://?)"
    return StorageError(f"Cannot {action} {uri}: {name}: {text}.")
