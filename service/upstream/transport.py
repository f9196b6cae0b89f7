"""HTTP to the vendor: one bounded exchange, foreign exceptions mapped, nothing repeated.

pyreqwest's ways that matter here, each with a test: cancelling the task that awaits an exchange does not abort it, so
each request carries its own deadline; `ConnectError` and `ConnectTimeoutError` are raised after the request was sent,
too, so of all exceptions only `PoolTimeoutError` proves that nothing arrived; the body is read ahead of the status
unless told otherwise; redirects, proxies and decompression are switched explicitly; all clients of a process share one
thread, which the first of them starts.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import Final, Literal, Self

import orjson
from pydantic import SecretStr
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import DecodeError, PoolTimeoutError, PyreqwestError, RequestTimeoutError
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.response import Response

from service.errors import UpstreamBusy, UpstreamMalformed, UpstreamTimeout, UpstreamUnavailable

__all__ = ["MAX_BODY_BYTES", "Answer", "Lane", "Transport", "TransportLimits"]

Lane = Literal["common", "jobs", "links"]
"""Whose connections a call may use up: one kind of call that hangs must not keep another one waiting."""

MAX_BODY_BYTES: Final = 1024 * 1024
"""Largest JSON body that is read, counted after decompression."""


_PATIENCE_ASKED: Final = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_LONGEST_PATIENCE_SECONDS: Final = 30
"""What the vendor may ask of us at once; who asks again earlier is told again."""


def _always(_status: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of one exchange, in seconds and connections (of each pool)."""

    connect_seconds: float = 2.0
    total_seconds: float = 10.0
    pool_wait_seconds: float = 2.0
    max_connections: int = 1024
    keep_alive_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer: status line, headers, and the body if it was wanted.

    Attributes:
        json: Whether the body claims to be JSON.
        retry_after: Seconds that a vendor in trouble asks us to wait.
    """

    status: int
    body: bytes = field(repr=False)
    json: bool = True
    retry_after: int | None = None


class Transport:
    """Connection pools to one vendor: reads share kept-alive connections, calls that act get fresh ones, by lane.

    A kept-alive connection that the other side has closed looks like a lost answer, and a lost answer to a call that
    acts must not be repeated.
    """

    def __init__(
        self,
        *,
        limits: TransportLimits,
        user_agent: str,
        https_only: bool,
        proxy: SecretStr | None = None,
        ca_pem: bytes | None = None,
    ) -> None:
        def build(idle_connections: int) -> Client:
            builder = (
                ClientBuilder()
                .user_agent(user_agent)
                .default_headers({"accept": "application/json"})
                .follow_redirects(enable=False)
                .referer(enable=False)
                .gzip(enable=True)
                .brotli(enable=False)
                .zstd(enable=False)
                .deflate(enable=False)
                .no_proxy()
                .https_only(enable=https_only)
                .connect_timeout(timedelta(seconds=limits.connect_seconds))
                .timeout(timedelta(seconds=limits.total_seconds))
                .pool_timeout(timedelta(seconds=limits.pool_wait_seconds))
                .max_connections(limits.max_connections)
                .pool_max_idle_per_host(idle_connections)
                .pool_idle_timeout(timedelta(seconds=limits.keep_alive_seconds))
            )
            if proxy is not None:
                builder = builder.proxy(ProxyBuilder.all(proxy.get_secret_value()))
            if ca_pem is not None:
                builder = builder.add_root_certificate_pem(ca_pem)
            return builder.build()

        self.total_seconds = limits.total_seconds
        self._total = timedelta(seconds=limits.total_seconds)
        self._build = build
        with _threads_wait_their_turn():
            self._kept = build(limits.max_connections)
        self._fresh: dict[Lane, Client] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kept.close()
        for client in self._fresh.values():
            await client.close()

    async def read(
        self, url: str, *, token: SecretStr | None, fresh: bool = False, seconds: float | None = None
    ) -> Answer:
        """GET on a kept-alive connection, or on a `fresh` one, within `seconds` if that is less than the usual time.

        Raises:
            UpstreamBusy: No connection was free in time; nothing was sent.
            UpstreamTimeout: No complete answer within the time limit; without any time left, nothing was sent.
            UpstreamUnavailable: The connection failed or broke.
            UpstreamMalformed: The body is over `MAX_BODY_BYTES`.
        """
        if seconds is not None and seconds <= 0:
            raise UpstreamTimeout
        client = self._lane("common") if fresh else self._kept
        return await self._exchange(client, "GET", url, token=token, seconds=seconds)

    async def act(
        self,
        url: str,
        *,
        body: object,
        token: SecretStr | None = None,
        headers: Mapping[str, str] | None = None,
        want_body: Callable[[int], bool] = _always,
        lane: Lane = "common",
    ) -> Answer:
        """POST `body` as JSON on a connection of its own, exactly once.

        Args:
            url: Where to.
            body: What orjson can encode.
            token: Bearer token, for all calls but the one that fetches it.
            headers: Further request headers.
            want_body: Given the status, says whether the body matters; where it does not, a broken one does no harm.
            lane: Whose connections it uses.

        Raises:
            UpstreamBusy: As `read`.
            UpstreamTimeout: As `read`; whether the call took effect is unknown.
            UpstreamUnavailable: As `read`; whether the call took effect is unknown.
            UpstreamMalformed: As `read`.
        """
        return await self._exchange(
            self._lane(lane), "POST", url, token=token, body=body, headers=headers, want_body=want_body
        )

    def _lane(self, lane: Lane) -> Client:
        """Built when first needed: each takes some milliseconds of the start."""
        if lane not in self._fresh:
            self._fresh[lane] = self._build(0)
        return self._fresh[lane]

    async def _exchange(
        self,
        client: Client,
        method: str,
        url: str,
        *,
        token: SecretStr | None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        want_body: Callable[[int], bool] = _always,
        seconds: float | None = None,
    ) -> Answer:
        limit = self._total if seconds is None or seconds >= self.total_seconds else timedelta(seconds=seconds)
        request = client.request(method, url).timeout(limit)
        if token is not None:
            request = request.header("authorization", f"Bearer {token.get_secret_value()}", is_sensitive=True)
        if body is not None:
            request = request.header("content-type", "application/json;charset=UTF-8").body_bytes(orjson.dumps(body))
        if want_body is not _always:
            # pyreqwest reads ahead before it tells the status, and a body that breaks there would hide it.
            request = request.streamed_read_buffer_limit(0)
        for name, value in (headers or {}).items():
            request = request.header(name, value)
        try:
            async with request.build_streamed() as response:
                status = response.status
                body = await _read_bounded(response) if want_body(status) else b""
                if status in _PATIENCE_ASKED:
                    return Answer(status, body, retry_after=_seconds(response.headers.get("retry-after")))
                return Answer(status, body, _is_json(response.headers.get("content-type")))
        except PoolTimeoutError as error:
            raise UpstreamBusy from error
        except RequestTimeoutError as error:
            raise UpstreamTimeout from error
        except DecodeError as error:
            raise (UpstreamUnavailable if _broke_off(error) else UpstreamMalformed) from error
        except PyreqwestError as error:
            raise UpstreamUnavailable from error


@contextmanager
def _threads_wait_their_turn() -> Iterator[None]:
    """Threads that are started within do not interrupt others when they are woken (sched(7), `SCHED_BATCH`).

    On one core pyreqwest's thread would otherwise stop the event loop at each call, and be stopped by it at each
    answer: a fifth of all that a read costs. So it runs when the loop has nothing to do, for many calls at once.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    usual = os.sched_param(0)
    with suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, usual)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, usual)


@lru_cache(maxsize=64)
def _is_json(content_type: str | None) -> bool:
    """Whether a body may be read as JSON. Unlabelled, it may: nothing is claimed that could be wrong."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _seconds(retry_after: str | None) -> int | None:
    """Of `Retry-After`, the form that needs no agreement of clocks."""
    if retry_after is None or not (retry_after.isascii() and retry_after.isdigit()):
        return None
    return max(1, min(_LONGEST_PATIENCE_SECONDS, int(retry_after[:9])))


def _broke_off(error: DecodeError) -> bool:
    """Whether a body that could not be read did not arrive; pyreqwest has one type for that and for a wrong body."""
    causes = error.details["causes"] or []
    return any("from connection" in cause["message"] for cause in causes)


async def _read_bounded(response: Response) -> bytes:
    # Asked for more than there may be, it returns at the end of the body: one wait instead of one per chunk.
    body = bytes(await response.body_reader.read(MAX_BODY_BYTES + 1) or b"")
    if len(body) > MAX_BODY_BYTES:
        raise UpstreamMalformed("The upstream's answer is too large")
    return body
