"""Errors of boto3 as one line that says what to do, without credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lensprep.errors import ChangedError, NotFoundError, StorageError, plain_text

NOT_A_STORE: Final = "NotAnObjectStore"
"""Code given to an answer that cannot come from an object store, see `s3client`."""
_BY_CODE: Final = (
    (
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
        "The credentials have expired ({code}): cannot {action} {uri}. Get new ones (such as "
        "`aws sso login`) and run the same command again; finished work is kept.",
    ),
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"),
        "The store does not accept the credentials ({code}): cannot {action} {uri}. Check "
        "--profile, --endpoint-url and the AWS variables.",
    ),
    (
        ("RequestTimeTooSkewed", "RequestInTheFuture"),
        "The clock of this machine differs from that of the store ({code}): cannot {action} {uri}. "
        "Set it right.",
    ),
    (
        ("InvalidObjectState",),
        "{uri} is in an archive of the store ({code}): it has to be restored before it can be read "
        "(`aws s3api restore-object`).",
    ),
)
"""Messages by the codes of an answer."""
_ELSEWHERE: Final = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "IncorrectEndpoint",
)
_MOST_TEXT: Final = 300
"""Characters shown of a message of the store or of botocore."""
_REGION: Final = re.compile(r"[a-z0-9-]+")
_UNTRUSTED: Final = re.compile("certificate verify failed", re.IGNORECASE)
_NOT_TLS: Final = re.compile("WRONG_VERSION_NUMBER|record layer")


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


def code_of(response: Mapping[str, Any]) -> str:
    """S3's name of an error."""
    return str(response.get("Error", {}).get("Code", ""))


def status_of(response: Mapping[str, Any]) -> int:
    """HTTP status of an answer."""
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(response: Mapping[str, Any], action: str, uri: str) -> StorageError:
    """Error for an answer of the store."""
    code = plain_text(code_of(response), 60)
    status = status_of(response)
    message = plain_text(str(response.get("Error", {}).get("Message", "")), _MOST_TEXT).rstrip(".")
    if code == "NoSuchBucket":
        bucket = "s3://" + uri.split("://", 1)[-1].split("/")[0]
        return StorageError(
            f"{bucket}: no such bucket. Check its name, --endpoint-url, --profile and --region."
        )
    for codes, text in _BY_CODE:
        if code in codes:
            return StorageError(text.format(code=code, action=action, uri=uri))
    if code in _ELSEWHERE:
        region = _region(response)
        where = f"in the region {region}" if region else "in another region"
        remedy = " ".join(filter(None, ("Give it with --region", region)))
        return StorageError(f"{uri} is {where} ({code}). {remedy}.")
    # An object may be missing; a listing never is.
    listing = status == 404 and action == "list" and code in ("", "404")
    if code == NOT_A_STORE or 300 <= status < 400 or listing:
        sent = message if code == NOT_A_STORE else f"status {status}"
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


def set_up_wrongly(error: Exception) -> bool:
    """Whether a TLS error says that the store has no TLS, or a certificate that is not accepted."""
    return bool(_UNTRUSTED.search(str(error)) or _NOT_TLS.search(str(error)))


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
            "(such as `aws sso login`) and run the same command again; finished work is kept."
        )
    # The messages of botocore name hosts, profiles and files.
    text = plain_text(str(error), _MOST_TEXT).rstrip(".")
    if name == "SSLError" and _UNTRUSTED.search(str(error)):
        return StorageError(
            f"The store's TLS certificate is not accepted: cannot {action} {uri}. Name the file of "
            "its authority in AWS_CA_BUNDLE."
        )
    if name == "SSLError" and _NOT_TLS.search(str(error)):
        return StorageError(
            f"The store does not speak TLS: cannot {action} {uri}. Give --endpoint-url "
            "http://host:port."
        )
    if name == "ParamValidationError" and "Invalid bucket name" in text:
        return StorageError(f"Cannot {action} {uri}: that is no name of a bucket.")
    if name == "ConnectionClosedError" and "http://" in text:
        text += " (is it https://?)"
    return StorageError(f"Cannot {action} {uri}: {name}: {text}.")
