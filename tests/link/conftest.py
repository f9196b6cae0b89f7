"""Fixtures of the steps."""

from tests.shared import lasting, shared, vendor

__all__ = ["lasting", "shared", "vendor"]
