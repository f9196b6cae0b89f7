"""The flow as a table: which state a session is in, which moves are legal, what it means for the person."""

from enum import StrEnum
from typing import Final

from service.clock import Millis
from service.errors import AlreadyInProgress, OutcomeUnknown, ServiceError, SessionClosed, SessionExpired
from service.stores.records import SessionRecord

__all__ = ["MOVES", "Event", "State", "move", "require_open", "state_of"]


class State(StrEnum):
    """Where a session stands."""

    OPEN = "open"
    LINKING = "linking"
    LINKED = "linked"
    UNKNOWN = "unknown"
    CLOSED = "closed"
    EXPIRED = "expired"


class Event(StrEnum):
    """What can happen to a session."""

    VALIDATE = "validate"
    LINK = "link"
    CONFIRM = "confirm"
    REFUSE = "refuse"
    LOSE = "lose"
    RESEND = "resend"
    CLOSE = "close"
    EXPIRE = "expire"


MOVES: Final[dict[tuple[State, Event], State]] = {
    (State.OPEN, Event.VALIDATE): State.OPEN,
    (State.OPEN, Event.LINK): State.LINKING,
    (State.LINKING, Event.CONFIRM): State.LINKED,
    (State.LINKING, Event.REFUSE): State.OPEN,
    (State.LINKING, Event.LOSE): State.UNKNOWN,
    (State.UNKNOWN, Event.RESEND): State.LINKING,
    (State.UNKNOWN, Event.CONFIRM): State.LINKED,
    (State.UNKNOWN, Event.REFUSE): State.OPEN,
    (State.OPEN, Event.CLOSE): State.CLOSED,
    (State.OPEN, Event.EXPIRE): State.EXPIRED,
}
"""Every legal move. `linked`, `closed` and `expired` are final: nothing leads out of them.

Out of `unknown` leads a clear answer that comes late, to a process that was paused.
"""


def state_of(session: SessionRecord, now: Millis) -> State:
    """The state that follows from what is stored, and from the time."""
    if session.state in {"linked", "closed"}:
        return State(session.state)
    if session.intents:
        return State.LINKING
    if session.state == "open" and (session.told_expired or session.expires <= now):
        return State.EXPIRED
    return State(session.state)


def move(state: State, event: Event) -> State:
    """The state that an event leads to.

    Raises:
        SessionClosed, SessionExpired, AlreadyInProgress, OutcomeUnknown: The event is out of turn; nothing changes.
    """
    following = MOVES.get((state, event))
    if following is None:
        raise _out_of_turn(state)
    return following


def require_open(session: SessionRecord, now: Millis) -> None:
    """Let a step begin only in a session that is open.

    Raises:
        SessionClosed, SessionExpired, AlreadyInProgress: It is not.
        OutcomeUnknown: What it has linked is unknown; the error names the unclear attempts.
    """
    state = state_of(session, now)
    if state is State.UNKNOWN:
        raise OutcomeUnknown(session.unclear)
    move(state, Event.VALIDATE)


def _out_of_turn(state: State) -> ServiceError:
    match state:
        case State.EXPIRED:
            return SessionExpired()
        case State.LINKING:
            return AlreadyInProgress("A choice of this session is being linked")
        case State.UNKNOWN:
            return OutcomeUnknown()
        case _:
            return SessionClosed()
