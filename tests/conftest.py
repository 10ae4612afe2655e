"""Fixtures of all tests. A machine for the GPU tests alone may lack what it imports late."""

import gc
import importlib.util

import pytest

from tests.s3server import s3, s3_server

__all__ = ["s3", "s3_server"]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # How long an example takes says more of the machine than of the code.
    settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("unhurried")


def pytest_addoption(parser):
    """Without pytest-timeout its setting in pyproject.toml would be an error, an unknown one."""
    if not importlib.util.find_spec("pytest_timeout"):
        parser.addini("timeout", "Without effect: pytest-timeout is not installed.")


def pytest_collection_finish():
    """Collections of garbage leave out all that was imported: going through it takes a second."""
    gc.freeze()


@pytest.fixture
def proxy(s3):
    """Connections to the object store that a test can break."""
    from tests.faultproxy import FaultProxy

    with FaultProxy(s3.server.ports["s3"]) as running:
        yield running


@pytest.fixture(scope="module")
def one_thread():
    """Threads of PyTorch that wait for each other make tiny networks slow."""
    import torch  # here, as most tests do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
