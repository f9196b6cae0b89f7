"""What is stored of a link session: one Redis hash, flat fields, unknown ones left alone.

The schema version is written with each session; a reader takes its own version and the one before.
"""

import re
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
    "read_id",
    "read_link",
    "read_session",
]

SCHEMA_VERSION: Final = 1

StoredState = Literal["open", "linked", "unknown", "closed"]
"""What is written down; `linking` and `expired` follow from intents and time (`service.link.flow`)."""

ValidationState = Literal["pending", "succeeded", "rejected", "failed"]

_UPSTREAM_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
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
        told_expired: Whether its expiry is written down: by a clock that may be ahead of this process's.
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
    told_expired: bool
    browser: str
    written_events: Mapping[str, str] = field(repr=False)
    sealed_accounts: Mapping[str, str] = field(repr=False)

    @property
    def client(self) -> str | None:
        """The page that opened it by itself; None if a host's server or identity provider vouches for the person."""
        kind, _, name = self.owner.partition(":")
        return name if kind == "client" else None

    @property
    def events(self) -> Sequence[EventRecord]:
        """All changes in order; read only where they are wanted, since every request reads its session."""
        return sorted((_event(*each) for each in self.written_events.items()), key=lambda event: event.number)


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
    parts: dict[str, dict[str, str]] = {"val": {}, "ev": {}, "acct": {}, "intent": {}}
    for name, value in fields.items():
        kind, separator, rest = name.partition(":")
        if separator and kind in parts:
            parts[kind][rest] = value
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
        account_id=read_id(fields["account"]),
        validations=_validations(parts["val"]),
        intents=[_intent(attempt, text) for attempt, text in parts["intent"].items()],
        choice=_split(fields.get("choice")),
        link=read_link(link) if link else None,
        unclear=_split(fields.get("unclear")),
        hosted=_hosted(hosted) if hosted else None,
        told_expired="expired" in fields,
        browser=fields.get("browser", ""),
        written_events=parts["ev"],
        sealed_accounts=parts["acct"],
    )


def _validations(parts: Mapping[str, str]) -> list[ValidationRecord]:
    by_id: dict[str, dict[str, str]] = {}
    for name, value in parts.items():
        validation_id, _, part = name.partition(":")
        by_id.setdefault(validation_id, {})[part] = value
    found = [_validation(validation_id, each) for validation_id, each in by_id.items() if "state" in each]
    return sorted(found, key=lambda each: each.created)


def _validation(validation_id: str, parts: Mapping[str, str]) -> ValidationRecord:
    left = parts.get("left")
    return ValidationRecord(
        id=validation_id,
        state=cast("ValidationState", _known(parts["state"], _VALIDATION_STATES)),
        provider_id=parts.get("provider") or "",
        kind=cast('Literal["password", "oauth"]', parts.get("kind") or "password"),
        created=Millis(int(parts.get("created") or 0)),
        deadline=Millis(int(parts.get("deadline") or 0)),
        job_id=read_id(parts["job"]) if "job" in parts else None,
        reason=parts.get("reason"),
        authorize_url=_web_address(parts["authorize"]) if "authorize" in parts else None,
        account=parts.get("account"),
        attempts_left=int(left) if left else None,
        accounts=[read_id(each) for each in _split(parts.get("accounts"))],
        services=[_service(pair) for pair in _split(parts.get("services"))],
    )


def read_id(text: str) -> str:
    """An id of the vendor's, which becomes part of a path: whoever else writes to Redis must not choose that path.

    Raises:
        ValueError: It is none.
    """
    if _UPSTREAM_ID.fullmatch(text) is None:
        raise ValueError("no id")
    return text


def _service(pair: str) -> tuple[str, str]:
    account, _, service = pair.partition("/")
    return read_id(account), read_id(service)


def _web_address(text: str) -> str:
    # Frontends open it: a `javascript:` address would run in the host's page.
    if not text.startswith(("https://", "http://")):
        raise ValueError("no web address")
    return text


def _intent(attempt: str, text: str) -> Intent:
    until, digest, choice = text.split(":", 2)
    return Intent(attempt, Millis(int(until)), digest, _split(choice))


def _event(number: str, text: str) -> EventRecord:
    at, name, subject = text.split(":", 2)
    return EventRecord(int(number), name, Millis(int(at)), subject or None)


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
