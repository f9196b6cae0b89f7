"""Fixtures of the API."""

from tests.shared import lasting, shared, vendor

__all__ = ["lasting", "shared", "vendor"]
