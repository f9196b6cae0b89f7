"""How much generated tests generate: a sample in `make test`, so many times more in `make fuzz`."""

import os
from typing import Final

import pytest

__all__ = ["FUZZ", "tell"]

FUZZ: Final = int(os.environ.get("FUZZ", "1"))


def tell(capsys: pytest.CaptureFixture[str], figures: str) -> None:
    """Say how many there were, to whoever asked for more than the sample."""
    if FUZZ > 1:
        with capsys.disabled():
            print(f"\n{figures}")  # noqa: T201 -- the terminal is who asked
