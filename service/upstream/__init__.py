"""The vendor's API, spoken from the client's side."""
