"""Link sessions: each is one hash, and each change to it one script."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, cast

import orjson

from service.clock import Millis
from service.errors import StoreUnavailable
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.records import (
    SCHEMA_VERSION,
    HostedRecord,
    Intent,
    LinkRecord,
    SessionRecord,
    read_link,
    read_session,
)

__all__ = ["Added", "Begun", "Entry", "Invitation", "NewSession", "Reads", "SessionStore", "Settled"]

READ_WINDOW_SECONDS: Final = 60
_LARGEST_REMEMBERED: Final = 16_384
"""Characters of a session that is kept in memory; one with many accounts is larger, and read anew each time."""


Begun = Literal["begun", "missing", "reused", "closed", "expired", "linked", "settled", "other", "unknown", "keys"]
Entry = Literal["invited", "opened", "resumed", "restarted", "over", "ended", "linking", "refused"]
Closed = Literal["closed", "missing", "linked", "unknown", "expired", "intents"]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What makes a session one of the hosted page.

    Attributes:
        secret_hash: Of the secret that its address carries.
    """

    secret_hash: str
    hosted: HostedRecord


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a session starts with."""

    id: str
    tenant: str
    owner: str
    subject: str | None
    metadata: Mapping[str, str]
    created: Millis
    expires: Millis
    token_hash: str
    account_id: str
    invitation: Invitation | None = None


@dataclass(frozen=True, slots=True)
class Reads:
    """How often a session was asked for in the current window."""

    count: int
    seconds_left: int


@dataclass(frozen=True, slots=True)
class Added:
    """Whether a validation was written down; if not, why not.

    Attributes:
        detail: Of `pending` the validation that is, of `unknown` the unclear attempts.
    """

    verdict: Literal[
        "added",
        "missing",
        "linked",
        "unknown",
        "closed",
        "expired",
        "linking",
        "pending",
        "crowded",
        "attempts",
        "spent",
    ]
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a session is after an attempt was settled."""

    state: Literal["open", "linked", "unknown", "closed", "missing"]
    link: LinkRecord | None


class SessionStore:
    """Reads and changes sessions. Every method raises `StoreUnavailable` when Redis fails.

    What takes a whole session acts for the browser that it was read for, and finds none once another has taken over.

    Attributes:
        retention_ms: How long an ended session stays readable.
    """

    def __init__(self, *, store: Store, keys: Keys, retention_ms: int) -> None:
        self._store = store
        self._keys = keys
        self.retention_ms = retention_ms

    async def create(self, new: NewSession) -> SessionRecord:
        """Write a session that nobody knows of yet."""
        fields = {
            "v": str(SCHEMA_VERSION),
            "tenant": new.tenant,
            "owner": new.owner,
            "metadata": orjson.dumps(dict(new.metadata)).decode(),
            "created": str(new.created),
            "expires": str(new.expires),
            "token": new.token_hash,
            "state": "open",
            "account": new.account_id,
            "events": "1",
            "ev:0001": f"{new.created}:session.created:",
        }
        if new.subject is not None:
            fields["subject"] = new.subject
        if new.invitation is not None:
            fields |= {"linksecret": new.invitation.secret_hash, "hosted": new.invitation.hosted.encode()}
        flat = [part for pair in fields.items() for part in pair]
        keep = new.expires - new.created + self.retention_ms
        await self._store.run("session_create", keys=[self._keys.session(new.id)], args=[keep, *flat])
        return cast("SessionRecord", _record(new.id, fields))

    async def read(self, session_id: str) -> SessionRecord | None:
        """A session as it is now; None if there is none, or none that this version can read."""
        fields = await self._store.hash(self._keys.session(session_id))
        return _record(session_id, fields) if fields else None

    async def read_counted(
        self, session_id: str, *, reader: str, token_hash: str = ""
    ) -> tuple[SessionRecord, Reads] | None:
        """A session as it is now, this read counted for its reader.

        Args:
            session_id: Which.
            reader: Who reads.
            token_hash: Of a token that is presented for it: only one that is its own counts, so that nobody uses up
                another's reads.
        """
        keys = [self._keys.session(session_id), self._keys.session_reads(session_id, reader)]
        answer = await self._store.run("session_read", keys=keys, args=[READ_WINDOW_SECONDS * 1000, token_hash])
        if not answer:
            return None
        count, left_ms, stored = answer
        record = (_remembered if len(stored) <= _LARGEST_REMEMBERED else _parsed)(session_id, stored)
        return (record, Reads(count, max(1, -(-left_ms // 1000)))) if record else None

    async def enter(
        self,
        session_id: str,
        *,
        tenants: Iterable[str],
        secret_hash: str,
        known_browser: str,
        new_browser: str,
        token_hash: str,
        begin: bool,
        now: Millis,
    ) -> Entry:
        """Let a browser into a session by its hosted page; with '' for what it does not present. All are hashes."""
        hashes = [secret_hash, known_browser, new_browser, token_hash]
        args: list[str | int] = [now, *hashes, self.retention_ms, self._keys.channel, session_id, int(begin), *tenants]
        return cast("Entry", await self._store.run("hosted_enter", keys=[self._keys.session(session_id)], args=args))

    async def replace_token(self, session_id: str, token_hash: str) -> bool:
        """Let a new session token take the place of the old one."""
        args = [token_hash, self._keys.channel, session_id]
        return bool(await self._store.run("session_retoken", keys=[self._keys.session(session_id)], args=args))

    async def close(self, session: SessionRecord, *, now: Millis, voided: Sequence[str]) -> Closed:
        """End a session whose open attempts are all in `voided`."""
        args: list[str | int] = [now, self.retention_ms, self._keys.channel, session.id, session.browser, *voided]
        keys = [self._keys.session(session.id)]
        return cast("Closed", await self._store.run("session_close", keys=keys, args=args, kept=True))

    async def add_validation(
        self,
        session: SessionRecord,
        validation_id: str,
        *,
        provider_id: str,
        kind: str,
        now: Millis,
        deadline: Millis,
        most_pending: int,
        most_passwords: int,
        most: int,
        grace_ms: int,
        account: str,
        attempts_left: int,
    ) -> Added:
        """Write down a validation before anything is sent, if the session may have one more."""
        limits = [most_pending, most_passwords, most, grace_ms]
        answer = await self._store.run(
            "validation_add",
            keys=[self._keys.session(session.id)],
            args=[
                now,
                validation_id,
                provider_id,
                kind,
                deadline,
                *limits,
                self._keys.channel,
                session.id,
                account,
                attempts_left,
                session.browser,
            ],
        )
        return Added(answer[0], answer[1] if len(answer) > 1 else None)

    async def change_validation(
        self,
        session_id: str,
        validation_id: str,
        changes: Mapping[str, str],
        *,
        now: Millis,
        sealed_accounts: Mapping[str, str] | None = None,
    ) -> bool:
        """Change a validation that is still pending; False if it is not, and then nothing changes."""
        fields = {f"val:{validation_id}:{name}": value for name, value in changes.items()}
        fields |= {f"acct:{account}": sealed for account, sealed in (sealed_accounts or {}).items()}
        flat = [part for pair in fields.items() for part in pair]
        event = f"validation.{changes.get('state', 'pending')}" if changes.keys() & {"state", "authorize"} else ""
        args: list[str | int] = [validation_id, self._keys.channel, session_id, now, event, *flat]
        return bool(await self._store.run("validation_set", keys=[self._keys.session(session_id)], args=args))

    async def take_back_attempt(self, session_id: str, validation_id: str) -> None:
        """Uncount a validation's password, which was not sent; asked for again, it changes nothing."""
        await self._store.run("attempt_take_back", keys=[self._keys.session(session_id)], args=[validation_id])

    async def expire(self, session_id: str, *, now: Millis) -> bool:
        """Write down that a session's time is over; False if it is not."""
        args: list[str | int] = [now, self._keys.channel, session_id]
        return bool(await self._store.run("session_expire", keys=[self._keys.session(session_id)], args=args))

    async def hold_stream(self, session_id: str, stream: str, *, now: Millis, hold_ms: int, most: int) -> bool:
        """Hold one of a session's places for streams, or hold it longer; False if all are held."""
        keys = [self._keys.session_streams(session_id)]
        return bool(await self._store.run("stream_hold", keys=keys, args=[now, stream, hold_ms, most]))

    async def drop_stream(self, session_id: str, stream: str) -> None:
        """Free a place."""
        await self._store.unrank(self._keys.session_streams(session_id), stream)

    async def put_accounts(self, session: SessionRecord, sealed_accounts: Mapping[str, str]) -> None:
        """Keep service accounts that were read again."""
        flat = [part for account, sealed in sealed_accounts.items() for part in (f"acct:{account}", sealed)]
        args = [session.browser, *flat]
        await self._store.run("accounts_put", keys=[self._keys.session(session.id)], args=args)

    async def begin_link(
        self,
        session: SessionRecord,
        intent: Intent,
        *,
        now: Millis,
        most_intents: int,
        most_keys: int,
        idempotency: tuple[str, str] | None,
    ) -> Begun:
        """Announce an attempt to link, or find out why it may not begin."""
        name, fingerprint = idempotency or ("", "")
        answer = await self._store.run(
            "link_begin",
            keys=[self._keys.session(session.id)],
            args=[
                now,
                intent.attempt,
                intent.encode(),
                intent.digest,
                most_intents,
                name and f"idem:{name}",
                fingerprint,
                most_keys,
                session.browser,
            ],
            kept=True,
        )
        return cast("Begun", answer)

    async def settle_link(
        self,
        session_id: str,
        intent: Intent,
        result: Literal["linked", "unknown", "open"],
        *,
        now: Millis,
        link: LinkRecord | None = None,
        unclear: Sequence[str] = (),
        kept: bool = False,
    ) -> Settled:
        """Take an attempt's result over into its session; it need not be kept where the guard tells it again."""
        answer = await self._store.run(
            "link_settle",
            keys=[self._keys.session(session_id)],
            args=[
                now,
                intent.attempt,
                result,
                orjson.dumps(link).decode() if link else "",
                intent.digest,
                ",".join(intent.choice),
                ",".join(unclear),
                self.retention_ms,
                self._keys.channel,
                session_id,
            ],
            kept=kept,
        )
        return Settled(answer[0], read_link(answer[1]) if answer[1] else None)


@lru_cache(maxsize=512)
def _remembered(session_id: str, stored: str) -> SessionRecord | None:
    """Most reads find a session as the last one did: reading it then takes longer than all else that Redis costs."""
    return _parsed(session_id, stored)


def _parsed(session_id: str, stored: str) -> SessionRecord | None:
    parts: list[str] = orjson.loads(stored)  # Redis has encoded it
    return _record(session_id, dict(zip(parts[::2], parts[1::2], strict=True)))


def _record(session_id: str, fields: Mapping[str, str]) -> SessionRecord | None:
    try:
        return read_session(session_id, fields)
    except (KeyError, ValueError, TypeError) as error:
        # Redis may hold anything; what cannot be read is not "no session", or a closed one could be opened anew.
        raise StoreUnavailable("The stored session cannot be read") from error
