"""One method per vendor call. Facts and their sources: `README.md` beside this file."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, Literal, TypeVar

from pydantic import SecretStr

from service.clock import SYSTEM_CLOCK, Clock
from service.errors import (
    ServiceError,
    UpstreamBusy,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamLate,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.telemetry import called, log
from service.tracing import Tracing
from service.upstream import wire
from service.upstream.limiter import Limiter, LimiterRules
from service.upstream.retries import Retries
from service.upstream.transport import Answer, Transport

__all__ = ["LinkRefused", "LinkUnclear", "TokenRejected", "UpstreamClient"]

_TOKEN_BODY_NAME: Final = "Omnimetic"  # noqa: S105 -- the literal name that the vendor's widget sends

_T = TypeVar("_T")
_Operation = Literal["token", "companies", "create_job", "read_job", "read_account", "link"]

_MOST_AT_ONCE: Final[Mapping[_Operation, int]] = {
    "token": 8,
    "companies": 8,
    "create_job": 256,
    "read_job": 256,
    "read_account": 512,
    "link": 512,
}
"""Calls in flight, of `create_job` at each company; together less than there are connections."""


class TokenRejected(Exception):
    """A complete 401 to a call with a bearer token: the token is gone, and nothing ran."""


class LinkRefused(Exception):
    """The batch call was clearly refused: nothing is linked."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class LinkUnclear(Exception):
    """The batch call was sent and no clear answer came."""


class UpstreamClient:
    """The vendor's API for one pair of client id and secret.

    Every method raises `UpstreamTimeout`, `UpstreamUnavailable`, `UpstreamMalformed` or `UpstreamError` when the vendor
    fails, `UpstreamBusy` when nothing was sent for want of a connection or since the vendor is left alone, and
    `TokenRejected` when a bearer token is not taken (any more).

    With `give_up`, a moment of the monotonic clock, nobody waits any longer than that: a read ends then, and a call
    that acts is not begun any more, but never cut. What is not begun for this reason raises `UpstreamLate`.

    Attributes:
        reachable: Whether the last call had an answer; None before the first.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        base_url: str,
        credentials_url: str,
        client_id: str,
        secret: SecretStr,
        next_secret: SecretStr | None = None,
        rules: LimiterRules | None = None,
        clock: Clock = SYSTEM_CLOCK,
        tracing: Tracing | None = None,
    ) -> None:
        self._transport = transport
        self._base = base_url.rstrip("/")
        self._credentials_base = credentials_url.rstrip("/")
        self._client_id = client_id
        self._secrets = [("active", secret), *([("next", next_secret)] if next_secret else [])]
        self._clock = clock
        self._tracing = tracing
        self._rules = rules or LimiterRules()
        self._limiters: dict[str, Limiter] = {}
        self._retries = Retries(clock=clock)
        self.reachable: bool | None = None

    async def fetch_token(self, give_up: float = math.inf) -> wire.FetchedToken:
        """Step 1, with the secret that was accepted last, and with the other one if the vendor answers 401 to it.

        Raises:
            UpstreamCredentialsRejected: The vendor answered 401 to our client id and each secret.
        """
        for which in tuple(self._secrets):
            name, secret = which
            try:
                fetched = await self._fetch_token_with(secret, give_up)
            except UpstreamCredentialsRejected:
                continue
            if which != self._secrets[0]:
                self._secrets.reverse()
                log.warning("upstream_secret_changed", accepted=name)
            return fetched
        raise UpstreamCredentialsRejected

    async def _fetch_token_with(self, secret: SecretStr, give_up: float) -> wire.FetchedToken:
        body = {"clientId": self._client_id, "secret": secret.get_secret_value(), "name": _TOKEN_BODY_NAME}

        def read(answer: Answer) -> wire.FetchedToken:
            if answer.status == HTTPStatus.UNAUTHORIZED:
                raise UpstreamCredentialsRejected
            return wire.parse_token(_body(answer, HTTPStatus.OK))

        return await self._call(
            self._limiter("token"),
            lambda: self._transport.act(f"{self._base}/access-token", body=body),
            read,
            give_up=give_up,
        )

    async def list_companies(self, token: SecretStr, give_up: float = math.inf) -> list[wire.Company]:
        """Step 2a."""
        return await self._get("companies", "/utility-companies", token, wire.parse_companies, give_up)

    def check_jobs(self, company_id: str) -> None:
        """Whether a credential validation could be started now.

        Raises:
            UpstreamShut: The vendor fails on those of this company, and is left alone.
        """
        self._limiter("create_job", company_id).check()

    async def create_job(
        self,
        token: SecretStr,
        *,
        company_id: str,
        job_type: str | None,
        username: SecretStr,
        password: SecretStr,
        give_up: float = math.inf,
    ) -> str:
        """Step 2b: start a credential validation; returns the job id. Sent once, whatever happens."""
        body = {
            "username": username.get_secret_value(),
            "password": password.get_secret_value(),
            "utilityCompanyId": company_id,
        }
        headers = {"type": job_type} if job_type is not None else None
        url = f"{self._credentials_base}/jobs"
        return await self._call(
            # Of its own for each company: one that hangs keeps no other one's customers waiting.
            self._limiter("create_job", company_id),
            lambda: self._transport.act(url, body=body, token=token, headers=headers, lane="jobs"),
            lambda answer: wire.parse_job_id(_body(answer, HTTPStatus.CREATED)),
            give_up=give_up,
        )

    async def read_job(self, token: SecretStr, job_id: str, give_up: float = math.inf) -> wire.JobAnswer:
        """How a job stands."""
        return await self._get("read_job", f"/jobs/{job_id}", token, wire.parse_job, give_up)

    async def read_utility_account(
        self, token: SecretStr, account_id: str, give_up: float = math.inf
    ) -> wire.UtilityAccount:
        """Step 3."""
        path = f"/utility-user-account/{account_id}"
        return await self._get("read_account", path, token, wire.parse_utility_account, give_up)

    async def link(
        self, token: SecretStr, *, account_id: str, service_account_ids: Sequence[str], give_up: float = math.inf
    ) -> None:
        """Step 4. Sent once, whatever happens; returns when linked.

        Raises:
            TokenRejected: A complete 401: nothing ran.
            LinkRefused: A 4xx but 408 and 429: nothing is linked.
            LinkUnclear: Everything else, and silence.
            UpstreamBusy: No connection was free (in time), or the vendor is left alone: nothing was sent.
        """
        url = f"{self._base}/{account_id}/utility-service-accounts/batch"
        ids = list(service_account_ids)
        try:
            await self._call(
                self._limiter("link"),
                lambda: self._transport.act(url, body=ids, token=token, want_body=_is_unauthorized, lane="links"),
                _read_link,
                give_up=give_up,
            )
        except UpstreamBusy:
            raise
        except ServiceError as error:
            raise LinkUnclear from error

    async def _get(
        self, operation: _Operation, path: str, token: SecretStr, parse: Callable[[bytes], _T], give_up: float
    ) -> _T:
        """Read, and read again if that may help; all in the time that one call has, or that is left of it."""
        url = f"{self._base}{path}"
        limiter = self._limiter(operation)
        self._retries.earn()
        about = path if operation in {"read_job", "read_account"} else ""
        usual = self._clock.monotonic() + self._transport.total_seconds
        hurried = give_up < usual
        if not hurried:
            give_up = usual
        retries = 0

        def send() -> Awaitable[Answer]:
            left = give_up - self._clock.monotonic()
            # Again on a connection of its own: most likely the vendor closed a kept-alive one just then.
            return self._transport.read(url, token=token, fresh=retries > 0, seconds=left)

        def read(answer: Answer) -> _T:
            return parse(_body(answer, HTTPStatus.OK))

        while True:
            try:
                return await self._call(limiter, send, read, about, give_up=give_up, hurried=hurried)
            except ServiceError as error:
                delay = self._retries.delay(error, retries=retries, left=give_up - self._clock.monotonic())
                if delay is None:
                    raise
                failed = error
            await asyncio.sleep(delay)
            if self._clock.monotonic() >= give_up:
                raise failed
            retries += 1

    def _limiter(self, operation: _Operation, of: str = "") -> Limiter:
        limiter = self._limiters.get(operation + of)
        if limiter is None:
            limiter = Limiter(operation, most=_MOST_AT_ONCE[operation], rules=self._rules, clock=self._clock)
            self._limiters[operation + of] = limiter
        return limiter

    async def _call(
        self,
        limiter: Limiter,
        send: Callable[[], Awaitable[Answer]],
        read: Callable[[Answer], _T],
        about: str = "",
        *,
        give_up: float,
        hurried: bool = False,
    ) -> _T:
        """One exchange through a limiter, begun before `give_up`, and read.

        A 4xx speaks of the request, and so well of the vendor; running out of time that was short says nothing of it.
        """
        era = await limiter.enter(give_up)
        started = self._clock.monotonic()
        outcome = "cancelled"
        good: bool | None = None
        try:
            if started >= give_up:
                raise UpstreamLate
            answer = await send()
            outcome = str(answer.status)
            self.reachable = True
            good = HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
            result = read(answer)
            good = True
        except (UpstreamTimeout, UpstreamUnavailable, UpstreamMalformed) as error:
            outcome = error.code
            if not (hurried and isinstance(error, UpstreamTimeout)):
                good = False
                self.reachable = isinstance(error, UpstreamMalformed)
            raise
        except UpstreamBusy as error:
            outcome = error.code
            raise
        else:
            return result
        finally:
            now = self._clock.monotonic()
            limiter.leave(era, good=good, now=now, about=about)
            called(limiter.operation, outcome, now - started)
            if self._tracing is not None:
                self._tracing.called(limiter.operation, outcome, now - started)


def _is_unauthorized(status: int) -> bool:
    return status == HTTPStatus.UNAUTHORIZED


def _read_link(answer: Answer) -> None:
    status = answer.status
    if status == HTTPStatus.CREATED:
        return
    if status == HTTPStatus.UNAUTHORIZED:
        raise TokenRejected
    unclear = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in unclear:
        raise LinkRefused(status)
    raise LinkUnclear


def _body(answer: Answer, status: HTTPStatus) -> bytes:
    """What a call has brought that went as it should."""
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise TokenRejected
    if answer.status != status:
        raise UpstreamError(answer.status, retry_after=answer.retry_after)
    if not answer.json:
        raise UpstreamMalformed
    return answer.body
