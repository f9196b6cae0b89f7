"""Step 1: the upstream token, fetched once for all processes and healed once when the vendor takes it back."""

import asyncio
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypeVar

from pydantic import SecretStr

from service.clock import LONGEST_WAIT_SECONDS, Clock, Millis
from service.errors import StoreUnavailable, UpstreamCredentialsRejected, UpstreamError
from service.link.refresh import Refresh
from service.link.tasks import Tasks
from service.stores.locks import Locks
from service.stores.notices import Notices
from service.stores.tokens import TokenStore, UpstreamToken
from service.upstream.client import TokenRejected, UpstreamClient

__all__ = ["TokenSource"]

_T = TypeVar("_T")
_REFRESH_AT_SHARE_OF_LIFE: Final = 0.8
_REFUSED_REMEMBERED: Final = 16
"""Refused tokens that may still be on their way here from Redis."""

_REST_SECONDS: Final = 30.0
_REFUSALS_BEFORE_REST: Final = 2
_REFUSERS_REMEMBERED: Final = 256
_SAYS_NOTHING_SECONDS: Final = 30.0
"""For so long, a resource that has refused a fresh token as well says nothing of the token in use."""


class TokenSource:
    """Where calls to the vendor get their bearer token from."""

    def __init__(
        self,
        *,
        client: UpstreamClient,
        store: TokenStore,
        key: str,
        locks: Locks,
        notices: Notices,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._client = client
        self._store = store
        self._clock = clock
        self._token: UpstreamToken | None = None
        self._refused: deque[str] = deque(maxlen=_REFUSED_REMEMBERED)
        self._refusers: OrderedDict[str, float] = OrderedDict()
        self._unproven: str | None = None
        self._refusals = 0
        self._fetched_at: float = 0
        self._refresh = Refresh(
            key=key,
            look=self._look,
            fetch=self._fetch,
            keep=self._share,
            locks=locks,
            notices=notices,
            tasks=tasks,
            clock=clock,
        )

    async def get(self, give_up: float = math.inf) -> UpstreamToken:
        """A token that is good by the clock; refreshed in the background ahead of its end.

        Waits for one as long as callers do, or until `give_up` if that comes first.

        Raises:
            UpstreamCredentialsRejected: The vendor refuses our client id and secret, or did so a moment ago.
            ServiceError: The vendor cannot be reached, or makes no sense.
        """
        token = self._token
        now = self._clock.now()
        if token is None or token.expires_at <= now:
            give_up = min(give_up, self._clock.monotonic() + LONGEST_WAIT_SECONDS)
            token = await self._refresh.join(give_up)
            while token.version in self._refused:  # found just before it was refused
                token = await self._refresh.join(give_up)
            self._token = token
        elif token.refresh_at <= now:
            refresh = self._refresh.start_ahead()
            if refresh is not None:
                refresh.add_done_callback(self._adopt)
        return token

    def _adopt(self, refreshed: asyncio.Task[UpstreamToken]) -> None:
        if not refreshed.cancelled() and refreshed.exception() is None:
            token = refreshed.result()
            if token.version not in self._refused:
                self._token = token

    async def drop(self, token: UpstreamToken, *, by: str = "") -> None:
        """Forget a token that the vendor has refused; a newer one stays.

        Args:
            token: The refused one.
            by: As `of` of `authorized`.
        """
        if token.version not in self._refused:
            self._refused.append(token.version)
        if self._unproven == token.version:
            self._unproven = None
            if by not in self._refusers:
                self._refusals += 1
        if self._token is not None and self._token.version == token.version:
            self._token = None
        with suppress(StoreUnavailable):
            await self._store.drop(token)

    async def authorized(
        self, call: Callable[[SecretStr, float], Awaitable[_T]], *, of: str = "", give_up: float = math.inf
    ) -> _T:
        """Make a call with a token; after a complete 401 once more with a new one.

        Args:
            call: Makes it, with a token, before it is time to give up.
            of: Which resource it reads, where the vendor may refuse one by itself: that takes nobody's token away.
            give_up: When nobody waits for it any more, tokens included.

        Raises:
            UpstreamCredentialsRejected: The new token was refused as well.
            UpstreamError: So it was, by a resource.
        """
        for repeated in (False, True):
            token = await self.get(give_up)
            try:
                result = await call(token.value, give_up)
            except TokenRejected:
                if self._says_nothing(of):
                    break
                if repeated and of:
                    self._remember(of)
                await self.drop(token, by=of)
            else:
                self.accepted(of)
                return result
        if of:
            raise UpstreamError(HTTPStatus.UNAUTHORIZED)
        raise UpstreamCredentialsRejected

    def accepted(self, by: str = "") -> None:
        """The vendor has taken a token: those that it refused were revoked, and others will do."""
        self._unproven = None
        self._refusals = 0
        self._refusers.pop(by, None)

    def _says_nothing(self, resource: str) -> bool:
        refused_at = self._refusers.get(resource)
        return refused_at is not None and self._clock.monotonic() < refused_at + _SAYS_NOTHING_SECONDS

    def _remember(self, resource: str) -> None:
        self._refusers[resource] = self._clock.monotonic()
        self._refusers.move_to_end(resource)
        if len(self._refusers) > _REFUSERS_REMEMBERED:
            self._refusers.popitem(last=False)

    async def _look(self) -> UpstreamToken | None:
        stored = await self._store.read()
        if stored is None or stored.refresh_at <= self._clock.now() or stored.version in self._refused:
            return None
        return stored

    async def _fetch(self, give_up: float) -> UpstreamToken:
        """Fetch a token; seldom, once the vendor has refused two that it had just issued to us, or our secret itself.

        What other processes have fetched is looked for all the same, and does not count here: it may have been good.
        """
        started = self._clock.monotonic()
        if self._refusals >= _REFUSALS_BEFORE_REST and started < self._fetched_at + _REST_SECONDS:
            raise UpstreamCredentialsRejected
        self._fetched_at = started
        asked_at = self._clock.now()
        try:
            fetched = await self._client.fetch_token(give_up)
        except UpstreamCredentialsRejected:
            self._refusals += 1
            raise
        self._unproven = secrets.token_hex(16)
        life = fetched.life_seconds * 1000
        return UpstreamToken(
            version=self._unproven,
            account_id=fetched.account_id,
            value=fetched.value,
            refresh_at=Millis(asked_at + int(life * _REFRESH_AT_SHARE_OF_LIFE)),
            expires_at=Millis(asked_at + int(life)),
        )

    async def _share(self, token: UpstreamToken) -> None:
        await self._store.write(token, now=self._clock.now())
