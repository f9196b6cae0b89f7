"""The four outcomes, to the letter: the objects with which the vendor's promise settles."""

from collections.abc import Mapping
from typing import Any, Final

from service.clock import Millis
from service.link.flow import State, state_of
from service.stores.records import SessionRecord

__all__ = ["CLOSED", "CREDENTIALS_REJECTED", "LINKED", "SERVER_ERROR", "outcome_of"]

LINKED: Final = "Resolved: User account(s) successfully linked"
CLOSED: Final = "Rejected: User closes the widget"
CREDENTIALS_REJECTED: Final = "Rejected: Incorrect secret or client id"
SERVER_ERROR: Final = "Rejected: Internal server error"


def outcome_of(session: SessionRecord, now: Millis) -> Mapping[str, Any] | None:
    """How the vendor's promise would settle for this session, plus `accountId` on OM200; None while it goes on.

    A session that ran out of time counts as left by the person, as the vendor's widget would see it.
    """
    match state_of(session, now):
        case State.LINKED:
            account_id = session.link.account_id if session.link else session.account_id
            accounts = [{"id": each} for each in session.choice]
            return {"status": "OM200", "message": LINKED, "accountId": account_id, "serviceAccounts": accounts}
        case State.CLOSED | State.EXPIRED:
            return {"status": "OM400", "message": CLOSED}
        case State.UNKNOWN:
            return {"status": "OM500", "message": SERVER_ERROR}
        case State.OPEN | State.LINKING:
            return None
