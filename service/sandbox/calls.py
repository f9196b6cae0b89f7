"""The log of everything that clients sent, to assert on."""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from typing import Final, Literal

__all__ = ["ROUTES", "Call", "CallLog", "Route"]

Route = Literal["token", "companies", "jobs", "job", "account", "batch", "data"]

ROUTES: Final[tuple[Route, ...]] = ("token", "companies", "jobs", "job", "account", "batch", "data")

KEPT_CALLS: Final = 100_000
"""Enough for a load test, and still bounded."""


@dataclass(slots=True)
class Call:
    """One call as it arrived: passwords and tokens included, so that tests can look for them elsewhere.

    `status` is None until something was answered, and stays so when the connection was cut before the status line.
    `fault` names the lever that hit the call.
    """

    seq: int
    time: float
    method: str
    path: str
    route: Route | None
    headers: dict[str, str]
    body: str
    status: int | None = None
    fault: str | None = None

    def as_json(self) -> dict[str, object]:
        """All fields by name."""
        return asdict(self)


class CallLog:
    """The last calls in order of arrival."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._numbers = count(1)
        self._calls: deque[Call] = deque(maxlen=KEPT_CALLS)

    def record(self, *, method: str, path: str, route: Route | None, headers: dict[str, str], body: bytes) -> Call:
        """Note a call before anything is done about it."""
        text = body.decode("utf-8", "backslashreplace")
        call = Call(next(self._numbers), self._wall(), method, path, route, headers, text)
        self._calls.append(call)
        return call

    def all(self, route: Route | None = None) -> list[Call]:
        """The calls of one route, or of all including paths that the vendor does not have."""
        return [call for call in list(self._calls) if route is None or call.route == route]

    def clear(self) -> None:
        """Forget the calls; numbers go on."""
        self._calls.clear()
