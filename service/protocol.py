"""What touches the inside of uvicorn: how requests are read from a connection, and how answers leave it.

Gathered writes save a seventh of a cheap request's CPU; the rest keeps a connection in step whatever a client sends.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from starlette.types import Scope
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

__all__ = ["HttpProtocol", "is_malformed"]

_MOST_PIPELINED: Final = 8
"""Requests that wait behind the running one."""

_LONGEST_WAITING_BODY: Final = 65_536
"""Bytes of a body that may wait behind a running request. Beyond that its request is dropped unanswered, and the
connection ends after those before it."""

_MOST_HEADERS: Final = 100
"""Lines."""

_LONGEST_HEAD: Final = 65_536
"""Bytes. One that is not complete is refused when so many have come beyond the segment in which it began."""

_LONGEST_REQUEST: Final = 524_288
"""Bytes, beyond the segment in which the request began. A body has a limit of its own; this one is for what stands
around it: chunk sizes, their extensions, and trailers."""

_LINGER_SECONDS: Final = 1.0
"""How long a client may take to read an answer that came before it had sent everything. Closed at once, the connection
would be reset, and the answer lost with it (RFC 9112, section 9.6)."""

_LONGEST_REMAINDER: Final = 4_194_304
"""Bytes that are dropped meanwhile."""


_MALFORMED: Final = "malformed"


def is_malformed(scope: Scope) -> bool:
    """Whether the protocol could not read a request, and passes it on for its answer alone."""
    return _MALFORMED in scope["state"]


class _Unreadable(Exception):
    """A request that cannot be kept apart from what follows it."""


class _Dropped(list[tuple[bytes, bytes]]):
    """Takes trailers and keeps none: as headers they would pass for a part of the head (RFC 9110, section 6.5.1)."""

    @override
    def append(self, _header: tuple[bytes, bytes], /) -> None:
        pass


_TRAILERS: Final = _Dropped()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's own, but it never takes a body for a request, bounds what a connection may hold, and gathers writes.

    uvicorn leaves the body of a request that offers another protocol to that protocol, and then reads it as a request.
    Here the offer is ignored (RFC 9110, section 7.8): the parser reads the request again, without it.
    """

    _running: RequestResponseCycle | None = None
    _offers = False
    """The parser has taken the current request for a change of protocol."""

    _ended = False
    """Nothing further is read as a request."""

    _in_head = False
    _segment = 0
    _first_segment = 0
    _received = 0

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathering = _Gathering(transport, self.loop, end_reading=self._end_reading)
        super().connection_made(cast("asyncio.Transport", self._gathering))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn notifies only the newest request; the running one would go on for nobody.
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    @override
    def eof_received(self) -> None:
        # The event loop closes the transport itself then, and drops what comes later.
        self._gathering.flush()

    @override
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._segment = len(data)
        if not self._ended:
            try:
                self._feed(data)
            except httptools.HttpParserError:
                self._refuse()
        self._received += self._segment
        if self._ended:
            if self._received > _LONGEST_REMAINDER:
                self.transport.abort()
        elif self._in_head:
            if self._received > _LONGEST_HEAD or len(self.headers) > _MOST_HEADERS:
                self._refuse()
        elif self._received > _LONGEST_REQUEST:
            self._refuse()

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._ended:
                    return
                rest = memoryview(data)[offer.args[0] :]
                head = self._head_without_offer()
                self._offers = False
                self._new_parser()  # the old one takes nothing after a request that ends its connection
                self.parser.feed_data(head)
                data = rest
            else:
                return

    def _is_too_long(self) -> bool:
        """Whether the head exceeds `_LONGEST_HEAD`; it is measured only if so many bytes have come."""
        if self._first_segment + self._received + self._segment <= _LONGEST_HEAD:
            return False
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _LONGEST_HEAD

    def _new_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def _head_without_offer(self) -> bytes:
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        return b"".join([*head, b"\r\n"])

    @override
    def on_message_begin(self) -> None:
        self._in_head = True
        self._received, self._first_segment = -self._segment, self._segment
        super().on_message_begin()
        # One segment may hold tens of thousands of lines: those before the last ones are dropped as they come.
        self.headers = deque(maxlen=_MOST_HEADERS + 1)  # type: ignore[assignment]

    @override
    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._ended:
            return None
        # RFC 9112, section 3.2: no fragment; what stands before it may be another path for whoever is in front.
        if len(self.headers) > _MOST_HEADERS or b"#" in self.url or self._is_too_long():
            raise _Unreadable
        self.headers = self.scope["headers"] = list(self.headers)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Unreadable
            self._offers = True
            return None
        if len(self.pipeline) == _MOST_PIPELINED:
            return self._end_after(self.cycle)
        if self.expect_100_continue:
            self.expect_100_continue = self.parser.get_http_version() != "1.0"  # RFC 9110, section 10.1.1
        super().on_headers_complete()
        self.headers = _TRAILERS
        if self.pipeline:
            # uvicorn has stopped reading, and would not notice that the client leaves.
            self.flow.resume_reading()
        return None

    @override
    def on_body(self, body: bytes) -> None:
        if self._ended:
            return
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > _LONGEST_WAITING_BODY:
            self.pipeline.popleft()
            self._end_after(self.pipeline[0][0] if self.pipeline else cast("RequestResponseCycle", self._running))

    @override
    def on_message_complete(self) -> None:
        if self._offers or self._ended:
            return
        super().on_message_complete()
        if self.cycle.keep_alive and not self.parser.should_keep_alive():
            # A trailer has told the parser so. It drops what follows.
            self._end_after(self.cycle)

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self) -> None:
        """Answer 400 once all earlier requests are answered, and read nothing more."""
        self._ended, self._received = True, 0
        newest, running = self._newest(), self._running
        if self.transport.is_closing():
            return
        if newest is not None and newest.more_body and not newest.response_complete:
            # The fault is in its body, whose reader learns of it at the body's end.
            newest.scope["state"][_MALFORMED] = True
            newest.more_body = newest.keep_alive = False
            newest.message_event.set()
            return
        self.cycle = refusal = self._refusal()
        if running is None or running.response_complete:
            self._start_asgi_task(refusal, self.app)
        else:
            self.pipeline.appendleft((refusal, self.app))
        self.flow.resume_reading()

    def _refusal(self) -> RequestResponseCycle:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "method": "",
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "headers": list(self.headers or ()),  # for the request's id
            "state": {**self.app_state, _MALFORMED: True},
        }
        cycle = RequestResponseCycle(
            scope=cast("HTTPScope", scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        return cycle

    def _end_after(self, cycle: RequestResponseCycle) -> None:
        """Answer this request and those before it, then close: a client repeats the rest (RFC 9112, section 9.3.2)."""
        self.cycle = cycle
        cycle.keep_alive = False
        self._ended, self._received = True, 0
        self.flow.resume_reading()

    def _end_reading(self) -> bool:
        """Read no further request; whether the client may still be sending."""
        newest = self._newest()
        unread = self._ended or (newest is not None and newest.more_body)
        self._ended, self._received = True, 0
        self.flow.resume_reading()
        return unread

    def _newest(self) -> RequestResponseCycle | None:
        """The request that was read last; uvicorn's own annotation leaves out that there may be none yet."""
        return cast("RequestResponseCycle | None", self.cycle)


class _Gathering:
    """A transport that writes when the turn is over, and lingers when it closes; all else is the transport's own."""

    __slots__ = ("_end_reading", "_lingers", "_loop", "_parts", "_transport")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, end_reading: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._end_reading = end_reading
        self._lingers = False
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever a transport has
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def close(self) -> None:
        if self.is_closing():
            return
        self.flush()
        if self._end_reading() and self._transport.can_write_eof():
            self._lingers = True
            self._transport.write_eof()
            self._loop.call_later(_LINGER_SECONDS, self._transport.close)
        else:
            self._transport.close()

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self.is_closing():
            self._transport.write(b"".join(parts))
