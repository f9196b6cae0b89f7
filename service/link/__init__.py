"""The link flow: what may happen, in which order. No web, no Redis commands."""
