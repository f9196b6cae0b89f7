"""Settings from `OMNICONNECT_*` environment variables. Wrong ones stop the start; all faults are reported at once."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.settings import SANDBOX_CLIENT_ID, SANDBOX_SECRET, Settings, SettingsError
from service.tenants import PREFIX

__all__ = ["load_settings"]


def load_settings(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:  # noqa: ANN401 -- any setting
    """Read the settings from the environment; `given` ones win.

    Raises:
        SettingsError: With all faults at once, none of which shows a value.
    """
    environ = os.environ if environ is None else environ
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    ours = [name for name in sorted(environ) if name.upper().startswith(PREFIX)]
    faults = [f"{name} is not a setting" for name in ours if name.upper() not in known]
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise SettingsError(faults + _in_words(error) + _further_faults(error, given, environ)) from None
    except SettingsError as error:
        raise SettingsError(faults + error.faults) from None
    if faults:
        raise SettingsError(faults)
    return settings


def _further_faults(error: ValidationError, given: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """What else is wrong, with stand-ins for the settings that are known to be."""
    bad = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    sandbox = str(given.get("sandbox", environ.get(f"{PREFIX}SANDBOX", ""))).lower() in {
        "true",
        "1",
        "yes",
        "on",
        "t",
        "y",
    }
    stand_ins = {
        "client_id": SANDBOX_CLIENT_ID if sandbox else "stand-in",
        "secret": SANDBOX_SECRET if sandbox else "stand-in-stand-in",
    }
    defaults = {
        name: stand_ins.get(name, Settings.model_fields[name].get_default(call_default_factory=True)) for name in bad
    }
    try:
        Settings(**{**given, **defaults})
    except SettingsError as further:
        return [each for each in further.faults if not any(f"{PREFIX}{name.upper()}" in each for name in bad)]
    except ValidationError:
        pass
    return []


def _in_words(error: ValidationError) -> list[str]:
    faults = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        name = f"{PREFIX}{str(each['loc'][0]).upper()}" if each["loc"] else "settings"
        message = "is required" if each["type"] == "missing" else each["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {message}" if each["type"] != "missing" else f"{name} {message}")
    return faults
