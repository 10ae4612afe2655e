"""Fixtures of all tests."""

from hypothesis import HealthCheck, settings

from tests.s3server import s3, s3_server

__all__ = ["s3", "s3_server"]

# How long an example takes says more of the machine than of the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
