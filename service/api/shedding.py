"""Bounds the requests that one process works on at a time; further requests are refused at once."""

from typing import Final, Literal

from starlette.types import Scope

from service.api.routing import ApiRoute, RouteKind
from service.errors import Overloaded

__all__ = ["LoadShedding", "Place"]

_MOST_READS: Final = 1000
_MOST_REQUESTS: Final = 1250
"""Requests at work in one process, with their bodies read. Reads are refused first, since many reads precede each step
that a person takes."""

_MOST_WAITING: Final = 20_000
"""Streams and long waits of one process, some 20 KB each. A wait that is begun goes on when its caller has left."""

_UNCOUNTED: Final = (RouteKind.PROBE, RouteKind.METRICS)

Place = Literal["working", "waiting"]


class LoadShedding:
    """Counts the requests that are at work, and those that hold a line and mostly do nothing."""

    def __init__(self) -> None:
        self._held: dict[Place, int] = {"working": 0, "waiting": 0}

    def take(self, route: ApiRoute, scope: Scope) -> Place | None:
        """A place for a request whose body is there, to be given back with `leave`; None if it needs none.

        Raises:
            Overloaded: All are taken.
        """
        if route.kind in _UNCOUNTED:
            return None
        reads, waits = scope["method"] == "GET", route.streams or (route.waits and _prefers_to_wait(scope))
        if waits and self._held["waiting"] >= _MOST_WAITING:
            if route.streams:
                raise Overloaded
            # RFC 7240, section 2: a preference may be passed over.
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"prefer"]
            waits = False
        if not (waits and reads) and self._held["working"] >= (_MOST_READS if reads else _MOST_REQUESTS):
            raise Overloaded
        return self._taken("waiting" if waits else "working")

    def leave(self, place: Place) -> None:
        """Give a place back."""
        self._held[place] -= 1

    def _taken(self, place: Place) -> Place:
        self._held[place] += 1
        return place


def _prefers_to_wait(scope: Scope) -> bool:
    """Looks at every line: a wait that is overlooked would hold the place of a request at work."""
    return any(name == b"prefer" and b"wait" in value.lower() for name, value in scope["headers"])
