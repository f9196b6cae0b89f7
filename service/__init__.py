"""omniconnect-bff: the server half of utility-account linking through OmniConnect."""

__version__ = "0.1.0"
