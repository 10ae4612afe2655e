"""How to reach an object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Options:
    """How to reach an object store, and how to write to it. Holds no credentials."""

    endpoint_url: str | None = None
    """A store other than AWS: ``http://host:port``."""
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
    """A connection that delivers nothing for so long is dropped, and the request retried."""
    attempts: int = 8
    """Tries of a request, with growing pauses in between: about a minute in all."""

    def __post_init__(self) -> None:
        if self.connections < 1 or self.attempts < 1:
            raise ValueError("connections and attempts must be at least 1")
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id needs encryption='aws:kms'")

    def put_arguments(self) -> dict[str, Any]:
        """Arguments of the requests that make an object."""
        values = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
        }
        return {name: value for name, value in values.items() if value is not None}
