"""Fixtures: a sandbox per test run, as good as new for each test."""

from collections.abc import Iterator
from typing import Final

import pytest

from service.sandbox.server import SandboxServer

__all__ = ["TEST_SPEED", "omniconnect_sandbox", "omniconnect_sandbox_server"]

TEST_SPEED: Final = 0.02
"""Two seconds of a magic person are 40 ms in tests."""


@pytest.fixture(scope="session")
def omniconnect_sandbox_server() -> Iterator[SandboxServer]:
    """One running sandbox, whatever the tests left in it."""
    with SandboxServer(speed=TEST_SPEED) as server:
        yield server


@pytest.fixture
def omniconnect_sandbox(omniconnect_sandbox_server: SandboxServer) -> SandboxServer:
    """The running sandbox, reset to its first moment."""
    omniconnect_sandbox_server.reset()
    return omniconnect_sandbox_server
