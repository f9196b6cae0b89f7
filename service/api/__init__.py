"""HTTP: routes, callers, envelopes."""
