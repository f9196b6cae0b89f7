"""Records as callers see them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from service import errors
from service.api import step_errors
from service.clock import Millis
from service.errors import ServiceError
from service.link.events import event_id
from service.link.flow import State, state_of
from service.link.outcome import outcome_of
from service.link.validate import settled
from service.stores.records import EventRecord, LinkRecord, SessionRecord, ValidationRecord

__all__ = ["event_view", "link_view", "session_error", "session_view", "validation_error", "validation_view"]

_ENDINGS: Final[Mapping[str, ServiceError]] = {
    error.code: error
    for error in (
        step_errors.ValidationRejected(),
        step_errors.ValidationCanceled(),
        step_errors.UtilityUnavailable(),
        step_errors.ValidationTimedOut(),
        step_errors.ValidationInterrupted(),
        errors.OutcomeUnknown(),
        errors.UpstreamMalformed(),
        errors.UpstreamCredentialsRejected(),
    )
}


def _time(moment: Millis) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def validation_view(validation: ValidationRecord) -> dict[str, Any]:
    """A validation; where to sign in only while that helps."""
    view: dict[str, Any] = {
        "id": validation.id,
        "state": validation.state,
        "providerId": validation.provider_id,
    }
    if validation.reason is not None:
        view["reason"] = validation.reason
    if validation.state == "rejected" and validation.attempts_left is not None:
        view["attemptsLeft"] = validation.attempts_left
    if validation.authorize_url is not None and validation.state == "pending":
        view["authorizeUrl"] = validation.authorize_url
    return view


def validation_error(validation: ValidationRecord) -> ServiceError | None:
    """How a finished validation that did not succeed is told."""
    if validation.state in {"pending", "succeeded"}:
        return None
    return _ENDINGS.get(validation.reason or "", _ENDINGS[step_errors.UtilityUnavailable.code])


def event_view(session: SessionRecord, event: EventRecord) -> dict[str, Any]:
    """One change of a session."""
    view: dict[str, Any] = {"id": event_id(session, event), "type": event.name, "createdAt": _time(event.at)}
    about = [each for each in session.validations if each.id == event.subject]
    if about:
        view["validation"] = validation_view(about[0]) | {"state": event.name.partition(".")[2]}
    return view


def link_view(link: LinkRecord) -> dict[str, Any]:
    """A link as it was made."""
    view: dict[str, Any] = {"id": link.id, "linkedAt": _time(link.linked_at)}
    if link.consent is not None:
        view["consent"] = link.consent
    return view


def session_view(session: SessionRecord, now: Millis) -> dict[str, Any]:
    """A session; choice, link, attempts and outcome once there are any."""
    view: dict[str, Any] = {
        "id": session.id,
        "state": state_of(session, now).value,
        "createdAt": _time(session.created),
        "expiresAt": _time(session.expires),
        "subject": session.subject,
        "metadata": session.metadata,
        "validations": [validation_view(settled(each, now)) for each in session.validations],
    }
    choice = session.choice or (session.intents[0].choice if session.intents else ())
    if choice:
        view["choice"] = list(choice)
    if session.link is not None:
        view["link"] = link_view(session.link)
    if session.unclear:
        view["attempts"] = list(session.unclear)
    outcome = outcome_of(session, now)
    if outcome is not None:
        view["outcome"] = outcome
    return view


def session_error(session: SessionRecord, now: Millis) -> ServiceError | None:
    """How a session that ended without a link is told."""
    match state_of(session, now):
        case State.CLOSED:
            return step_errors.UserClosed()
        case State.EXPIRED:
            return errors.SessionExpired()
        case State.UNKNOWN:
            return errors.OutcomeUnknown(session.unclear)
        case _:
            return None
