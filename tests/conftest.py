"""Fixtures of all tests."""

from tests.s3server import s3, s3_server

__all__ = ["s3", "s3_server"]
