"""Fixtures of the fault tests."""

from tests.shared import lasting, shared, vendor

__all__ = ["lasting", "shared", "vendor"]
