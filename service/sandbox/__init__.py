"""The vendor's API as an app of our own, for development and tests."""
