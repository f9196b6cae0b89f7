"""What may go wrong on purpose, and when it is due."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Final, Literal

from service.sandbox.calls import Route

__all__ = ["Fault", "Faults", "Kind"]

Kind = Literal["delay", "status", "hang", "reset", "truncate", "malformed", "huge", "html", "gzip_bomb", "drip"]

DEFAULT_VALUES: Final[dict[Kind, float]] = {
    "delay": 1.0,
    "status": 500,
    "huge": 10 * 2**20,
    "gzip_bomb": 64 * 2**20,
    "drip": 0.05,
}
"""Seconds for delay and drip (between bytes), an HTTP status, decoded bytes of the body for huge and gzip_bomb."""

EFFECTLESS: Final[frozenset[Route]] = frozenset({"companies", "job", "account", "data"})
"""Routes that change nothing, so that a fault may always damage their real answer."""


@dataclass(slots=True)
class Fault:
    """Something that goes wrong on one route.

    `value` means what the kind needs: seconds, a status, or bytes (see DEFAULT_VALUES; for truncate the raw bytes of
    the answer, head included, that still get through, half of it when None). `times` None is for ever. With `after`
    the call takes effect in the world, and the fault hits its answer; without, the call never took effect (a delayed
    one does, late).
    """

    route: Route
    kind: Kind
    value: float | None = None
    times: int | None = 1
    after: bool = False

    @property
    def amount(self) -> float:
        """The value, or what the kind does without one."""
        return DEFAULT_VALUES.get(self.kind, 0) if self.value is None else self.value

    @property
    def takes_effect(self) -> bool:
        """Whether the call is handled before the fault hits."""
        return self.after or (self.kind in {"truncate", "drip"} and self.route in EFFECTLESS)

    def as_json(self) -> dict[str, object]:
        """All fields by name."""
        return asdict(self)


class Faults:
    """The faults that are waiting for calls, first come first served.

    Added from any thread, taken by the server's alone.
    """

    def __init__(self) -> None:
        self._waiting: deque[Fault] = deque()

    def add(
        self, route: Route, kind: Kind, *, value: float | None = None, times: int | None = 1, after: bool = False
    ) -> Fault:
        """Let the next calls of a route go wrong."""
        fault = Fault(route, kind, value, times, after)
        self._waiting.append(fault)
        return fault

    def take(self, route: Route) -> Fault | None:
        """The fault that hits a call arriving now."""
        for fault in list(self._waiting):
            if fault.route == route and fault.times != 0:
                self._use(fault)
                return fault
        return None

    def waiting(self) -> list[Fault]:
        """What is still to come."""
        return list(self._waiting)

    def clear(self) -> None:
        """Let everything go right again."""
        self._waiting.clear()

    def _use(self, fault: Fault) -> None:
        if fault.times is None:
            return
        fault.times -= 1
        if fault.times == 0 and fault in self._waiting:
            self._waiting.remove(fault)
