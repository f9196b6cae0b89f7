"""One method per vendor call. Facts and their sources: `README.md` beside this file."""

import time
from collections.abc import Awaitable, Sequence
from http import HTTPStatus
from typing import Final

from pydantic import SecretStr

from service.errors import (
    ServiceError,
    UpstreamBusy,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.telemetry import called
from service.upstream import wire
from service.upstream.transport import Answer, Transport

__all__ = ["LinkRefused", "LinkUnclear", "TokenRejected", "UpstreamClient"]

_TOKEN_BODY_NAME: Final = "Omnimetic"  # noqa: S105 -- the literal name that the vendor's widget sends


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
    fails, `UpstreamBusy` when nothing was sent for want of a connection, and `TokenRejected` when a bearer token is not
    taken (any more).

    Attributes:
        reachable: Whether the last call had an answer; None before the first.
    """

    def __init__(
        self, *, transport: Transport, base_url: str, credentials_url: str, client_id: str, secret: SecretStr
    ) -> None:
        self._transport = transport
        self._base = base_url.rstrip("/")
        self._credentials_base = credentials_url.rstrip("/")
        self._client_id = client_id
        self._secret = secret
        self.reachable: bool | None = None

    async def fetch_token(self) -> wire.FetchedToken:
        """Step 1.

        Raises:
            UpstreamCredentialsRejected: The vendor answered 401 to our client id and secret.
        """
        body = {"clientId": self._client_id, "secret": self._secret.get_secret_value(), "name": _TOKEN_BODY_NAME}
        answer = await self._measured("token", self._transport.act(f"{self._base}/access-token", body=body))
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise UpstreamCredentialsRejected
        _expect(answer, HTTPStatus.OK)
        return wire.parse_token(answer.body)

    async def list_companies(self, token: SecretStr) -> list[wire.Company]:
        """Step 2a."""
        return wire.parse_companies(await self._get("companies", "/utility-companies", token))

    async def create_job(
        self, token: SecretStr, *, company_id: str, job_type: str | None, username: SecretStr, password: SecretStr
    ) -> str:
        """Step 2b: start a credential validation; returns the job id. Sent once, whatever happens."""
        body = {
            "username": username.get_secret_value(),
            "password": password.get_secret_value(),
            "utilityCompanyId": company_id,
        }
        headers = {"type": job_type} if job_type is not None else None
        url = f"{self._credentials_base}/jobs"
        call = self._transport.act(url, body=body, token=token, headers=headers, lane="jobs")
        answer = await self._measured("create_job", call)
        _expect(answer, HTTPStatus.CREATED)
        return wire.parse_job_id(answer.body)

    async def read_job(self, token: SecretStr, job_id: str) -> wire.JobAnswer:
        """How a job stands."""
        return wire.parse_job(await self._get("read_job", f"/jobs/{job_id}", token))

    async def read_utility_account(self, token: SecretStr, account_id: str) -> wire.UtilityAccount:
        """Step 3."""
        body = await self._get("read_account", f"/utility-user-account/{account_id}", token)
        return wire.parse_utility_account(body)

    async def link(self, token: SecretStr, *, account_id: str, service_account_ids: Sequence[str]) -> None:
        """Step 4. Sent once, whatever happens; returns when linked.

        Raises:
            TokenRejected: A complete 401: nothing ran.
            LinkRefused: A 4xx but 408 and 429: nothing is linked.
            LinkUnclear: Everything else, and silence.
            UpstreamBusy: No connection was free: nothing was sent.
        """
        url = f"{self._base}/{account_id}/utility-service-accounts/batch"
        call = self._transport.act(
            url,
            body=list(service_account_ids),
            token=token,
            want_body=lambda status: status == HTTPStatus.UNAUTHORIZED,
            lane="links",
        )
        try:
            status = (await self._measured("link", call)).status
        except UpstreamBusy:
            raise
        except ServiceError as error:
            raise LinkUnclear from error
        if status == HTTPStatus.CREATED:
            return
        if status == HTTPStatus.UNAUTHORIZED:
            raise TokenRejected
        unclear = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in unclear:
            raise LinkRefused(status)
        raise LinkUnclear

    async def _get(self, operation: str, path: str, token: SecretStr) -> bytes:
        url = f"{self._base}{path}"
        try:
            answer = await self._measured(operation, self._transport.read(url, token=token))
        except UpstreamUnavailable:
            # Most likely the vendor closed a kept-alive connection just then; a read may be repeated, once.
            answer = await self._measured(operation, self._transport.read(url, token=token, fresh=True))
        _expect(answer, HTTPStatus.OK)
        return answer.body

    async def _measured(self, operation: str, call: Awaitable[Answer]) -> Answer:
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            answer = await call
            outcome = str(answer.status)
        except ServiceError as error:
            outcome = error.code
            if not isinstance(error, UpstreamBusy):
                self.reachable = not isinstance(error, (UpstreamTimeout, UpstreamUnavailable))
            raise
        else:
            self.reachable = True
            return answer
        finally:
            called(operation, outcome, time.perf_counter() - started)


def _expect(answer: Answer, status: HTTPStatus) -> None:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise TokenRejected
    if answer.status != status:
        raise UpstreamError(answer.status)
