"""What is stored of a link session: one Redis hash, flat fields, unknown ones left alone.

The schema version is written with each session; a reader takes its own version and the one before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

import orjson

from service.clock import Millis

__all__ = [
    "SCHEMA_VERSION",
    "EventRecord",
    "HostedRecord",
    "Intent",
    "LinkRecord",
    "SessionRecord",
    "StoredState",
    "ValidationRecord",
    "ValidationState",
    "read_link",
    "read_session",
]

SCHEMA_VERSION: Final = 1

StoredState = Literal["open", "linked", "unknown", "closed"]
"""What is written down; `linking` and `expired` follow from intents and time (`service.link.flow`)."""

ValidationState = Literal["pending", "succeeded", "rejected", "failed"]

_STORED_STATES: Final[tuple[str, ...]] = get_args(StoredState)
_VALIDATION_STATES: Final[tuple[str, ...]] = get_args(ValidationState)


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """One try to sign in at one utility.

    Attributes:
        kind: How the person signs in.
        deadline: From then on it has timed out.
        job_id: The vendor's job, once it has answered.
        reason: Why it was rejected or failed.
        account: What the attempt was counted by (`service.link.limits.Lockout`).
        attempts_left: Further passwords that may be tried, should this one be wrong.
        accounts: Utility accounts that it found.
        services: Service accounts that the job itself named (OAuth), each with its utility account: (utility, service).
    """

    id: str
    state: ValidationState
    provider_id: str
    kind: Literal["password", "oauth"]
    created: Millis
    deadline: Millis
    job_id: str | None = None
    reason: str | None = None
    authorize_url: str | None = None
    account: str | None = None
    attempts_left: int | None = None
    accounts: Sequence[str] = ()
    services: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Intent:
    """An attempt to link that has been announced and not settled."""

    attempt: str
    until: Millis
    digest: str
    choice: Sequence[str]

    def encode(self) -> str:
        """As `link_begin.lua` reads it."""
        return f"{self.until}:{self.digest}:{','.join(self.choice)}"


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """The link that a session has made.

    Attributes:
        account_id: The upstream account that the service accounts now belong to.
        consent: What the person agreed to, as the host told us.
    """

    id: str
    linked_at: Millis
    account_id: str
    consent: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One change of a session, as it was written down together with the change itself.

    Attributes:
        number: Counts the changes of this session.
        name: What changed, such as `validation.succeeded`.
        subject: The validation, if it is about one.
    """

    number: int
    name: str
    at: Millis
    subject: str | None


@dataclass(frozen=True, slots=True)
class HostedRecord:
    """What the hosted page of a session needs to know.

    Attributes:
        return_url: Where the person goes afterwards.
        cancel_url: Where the person goes after closing instead.
        lifetime_ms: How long the session lives once the page has been opened.
    """

    return_url: str
    cancel_url: str | None
    lifetime_ms: int

    def encode(self) -> str:
        """As it is stored."""
        return orjson.dumps(
            {"return_url": self.return_url, "cancel_url": self.cancel_url, "lifetime_ms": self.lifetime_ms}
        ).decode()


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One person's walk through the steps, as stored.

    Attributes:
        browser: Hash of what the browser on the hosted page is known by; empty where there is none.
    """

    id: str
    tenant: str
    owner: str
    subject: str | None
    metadata: Mapping[str, str]
    created: Millis
    expires: Millis
    ended: Millis | None
    token_hash: str
    state: StoredState
    account_id: str
    validations: Sequence[ValidationRecord]
    intents: Sequence[Intent]
    choice: Sequence[str]
    link: LinkRecord | None
    unclear: Sequence[str]
    hosted: HostedRecord | None
    browser: str
    events: Sequence[EventRecord]
    sealed_accounts: Mapping[str, str] = field(repr=False)


def read_session(session_id: str, fields: Mapping[str, str]) -> SessionRecord | None:
    """Read a session's hash; None if it is of a schema that this version cannot read.

    Raises:
        KeyError, ValueError: The hash is broken.
    """
    if not SCHEMA_VERSION - 1 <= int(fields["v"]) <= SCHEMA_VERSION + 1:
        return None
    ended = fields.get("ended")
    link = fields.get("link")
    hosted = fields.get("hosted")
    validation_ids = [name[4:-6] for name in fields if name.startswith("val:") and name.endswith(":state")]
    return SessionRecord(
        id=session_id,
        tenant=fields["tenant"],
        owner=fields["owner"],
        subject=fields.get("subject"),
        metadata=orjson.loads(fields.get("metadata", "{}")),
        created=Millis(int(fields["created"])),
        expires=Millis(int(fields["expires"])),
        ended=Millis(int(ended)) if ended else None,
        token_hash=fields["token"],
        state=cast("StoredState", _known(fields["state"], _STORED_STATES)),
        account_id=fields["account"],
        validations=sorted((_validation(each, fields) for each in validation_ids), key=lambda each: each.created),
        intents=[_intent(name[7:], fields[name]) for name in fields if name.startswith("intent:")],
        choice=_split(fields.get("choice")),
        link=read_link(link) if link else None,
        unclear=_split(fields.get("unclear")),
        hosted=_hosted(hosted) if hosted else None,
        browser=fields.get("browser", ""),
        events=sorted((_event(name, fields[name]) for name in fields if name.startswith("ev:")), key=_number),
        sealed_accounts={name[5:]: fields[name] for name in fields if name.startswith("acct:")},
    )


def _validation(validation_id: str, fields: Mapping[str, str]) -> ValidationRecord:
    def part(name: str) -> str | None:
        return fields.get(f"val:{validation_id}:{name}")

    return ValidationRecord(
        id=validation_id,
        state=cast("ValidationState", _known(part("state"), _VALIDATION_STATES)),
        provider_id=part("provider") or "",
        kind=cast('Literal["password", "oauth"]', part("kind") or "password"),
        created=Millis(int(part("created") or 0)),
        deadline=Millis(int(part("deadline") or 0)),
        job_id=part("job"),
        reason=part("reason"),
        authorize_url=part("authorize"),
        account=part("account"),
        attempts_left=int(part("left") or 0) if part("left") else None,
        accounts=_split(part("accounts")),
        services=[(pair.partition("/")[0], pair.partition("/")[2]) for pair in _split(part("services"))],
    )


def _intent(attempt: str, text: str) -> Intent:
    until, digest, choice = text.split(":", 2)
    return Intent(attempt, Millis(int(until)), digest, _split(choice))


def _event(name: str, text: str) -> EventRecord:
    at, event, subject = text.split(":", 2)
    return EventRecord(int(name[3:]), event, Millis(int(at)), subject or None)


def _number(event: EventRecord) -> int:
    return event.number


def _hosted(text: str) -> HostedRecord:
    stored: dict[str, Any] = orjson.loads(text)
    return HostedRecord(stored["return_url"], stored.get("cancel_url"), stored["lifetime_ms"])


def read_link(text: str) -> LinkRecord:
    """Read a link as it is stored within its session."""
    stored: dict[str, Any] = orjson.loads(text)
    return LinkRecord(stored["id"], Millis(stored["linked_at"]), stored["account_id"], stored.get("consent"))


def _known(state: str | None, states: tuple[str, ...]) -> str:
    # A newer version may know more states; taking one for another would let a step run out of turn.
    if state not in states:
        raise ValueError("unknown state")
    return state


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
