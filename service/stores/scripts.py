"""The scripts of `lua/`, by name. All but two run once per operation, however often their command reaches Redis."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["REPEATABLE", "Script", "load", "names"]

REPEATABLE: Final = frozenset({"session_read", "duration_count"})
"""Scripts whose command may count twice, since remembering an operation would cost more than the error.

A read that is counted twice brings a limit of 300 a minute nearer by one. A duration that is counted twice is one
of up to 192.
"""

_ONCE: Final = """\
local operation, remember_ms = table.remove(KEYS), table.remove(ARGV)
local answered = redis.call('GET', operation)
if answered then return cjson.decode(answered) end
local function run()
%s
end
local answer, unchanged = run()
-- A full Redis refuses this write only after a script that wrote nothing, and that one may run again.
if not unchanged then redis.pcall('SET', operation, cjson.encode(answer), 'PX', remember_ms) end
return answer
"""
"""Answers a repeated command as its first run was answered, and changes nothing: a repeat may arrive after commands of
others, when running it again would undo what these did. A script that changed nothing may say so with a second value
behind its answer; then nothing is remembered."""


@dataclass(frozen=True, slots=True)
class Script:
    """What is sent for a script.

    Attributes:
        digest: SHA-1 of the text, by which Redis knows it.
        once: The last key and the last argument are the operation and how many ms it is remembered.
    """

    text: str
    digest: str
    once: bool


def names() -> Sequence[str]:
    """All scripts."""
    return [each.name.removesuffix(".lua") for each in resources.files("service.stores").joinpath("lua").iterdir()]


@cache
def load(name: str) -> Script:
    """Read a script."""
    text = resources.files("service.stores").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    once = name not in REPEATABLE
    if once:
        text = _ONCE % text
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), once)
