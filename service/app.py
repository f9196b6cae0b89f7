"""The app: routers, middleware, errors, lifespan. Importing opens nothing, `create_app` does."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from ipaddress import IPv4Network, ip_network
from types import FrameType
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import SecretStr
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import __version__, errors
from service.api import (
    accounts,
    demo,
    docs,
    events,
    hosted,
    links,
    logos,
    ops,
    providers,
    sdk,
    sessions,
    validations,
    widget,
)
from service.api.caller import require_policies
from service.api.cors import ApiCors
from service.api.dispatch import Dispatcher, RaisedInstead, Resolver
from service.api.envelope import failure
from service.api.middleware import Around
from service.api.models import field_names
from service.clock import SYSTEM_CLOCK, Clock
from service.environment import load_settings
from service.errors import FieldError
from service.link.scopes import ALL_SCOPES
from service.process import Process
from service.protocol import is_malformed
from service.sandbox.people import PASSWORD, PEOPLE
from service.settings import SANDBOX_API_KEY, SANDBOX_PUBLISHABLE_CLIENT, Settings
from service.telemetry import configure_logs
from service.wiring import Timing, wire

__all__ = ["create_app", "from_environment", "openapi_document"]

_FIELDS = field_names() | {"search"}
_TAGS: Final = {
    "sessions": "Step 1: a person's walk through the steps.",
    "providers": "Step 2a: utilities to choose from.",
    "validations": "Step 2b: signing in at one.",
    "service accounts": "Step 3: what can be linked.",
    "links": "Step 4: linking it.",
    "events": "What happens meanwhile.",
}
"""In the order of the steps, which is that of readers."""

_MAPPED_BITS: Final = 96
"""Of an IPv6 address that stands for one of IPv4 (RFC 4291, section 2.5.5.2), those before it."""


def create_app(settings: Settings, *, clock: Clock = SYSTEM_CLOCK, timing: Timing | None = None) -> FastAPI:
    """The service as one process serves it.

    Raises:
        RuntimeError: A route does not say who may call it.
    """
    process = wire(settings, clock=clock, timing=timing)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with process.running():
            with _drained_on_signal(process, settings.drain_seconds):
                yield

    app = _bare_app(
        lifespan=lifespan,
        middleware=[
            *_proxy_headers(settings),
            Middleware(ApiCors, origins=process.origins),
            Middleware(Around, tracing=process.tracing),
        ],
        operations_port=settings.metrics_port,
        closing=lambda: process.health.closing,
    )
    app.state.tenants = process.tenants
    app.state.steps = process.steps
    app.state.health = process.health
    app.state.sdk = sdk.build()
    app.state.hosted_shell = hosted.HostedShell.of(
        public_url=settings.public_url,
        guess_base=settings.sandbox,
        application_name=settings.application_name,
        frame_ancestors=settings.frame_ancestors,
    )
    app.state.many_processes = settings.workers > 1
    if settings.widget:
        app.router.routes.extend(widget.router.routes)
    if settings.sandbox or settings.metrics_port is not None:
        app.router.routes.extend(ops.metrics_router.routes)
    if settings.serves_docs:
        app.state.docs_assets = docs.assets()
        app.router.routes.extend(docs.router.routes)
    if settings.sandbox:
        app.state.demo = demo.build(
            people=PEOPLE.values(),
            password=PASSWORD,
            client_id=SANDBOX_PUBLISHABLE_CLIENT,
            api_key=SecretStr(SANDBOX_API_KEY),
            docs="/docs" if settings.serves_docs else "/openapi.json",
        )
        app.router.routes.extend(demo.router.routes)
    app.openapi = cache(lambda: _document(app, settings.public_url))  # type: ignore[method-assign]
    app.state.contract = cache(lambda: docs.contract(app.openapi()))
    require_policies(app.routes, open_paths=ops.OPEN_PATHS | (demo.OPEN_PATHS if settings.sandbox else frozenset()))
    return app


def from_environment() -> FastAPI:
    """The app of a worker process; the parent has checked the settings and put the store's URL among them."""
    settings = load_settings()
    configure_logs(settings.log_level)
    return create_app(settings)


def openapi_document() -> dict[str, Any]:
    """The contract, without any setting of a deployment."""
    return _document(_bare_app(), None)


def _bare_app(**options: Any) -> "_App":  # noqa: ANN401 -- FastAPI's own
    app = _App(title="omniconnect-bff", version=__version__, openapi_url=None, **options)
    for module in (validations, accounts, events, links, sessions, providers, ops, sdk, logos, hosted):
        # Not `include_router`: it would append a router, and the resolver takes routes alone.
        app.router.routes.extend(module.router.routes)
    app.router.routes.extend(docs.contract_router.routes)
    return app


class _App(FastAPI):
    """FastAPI's routes and document, but its requests take our own way: see `service/api/dispatch.py`.

    Args:
        operations_port: Of the listener that serves operations alone, if there is one.
        closing: Whether the process takes no new work any more.
        options: FastAPI's own.
    """

    def __init__(
        self,
        *,
        operations_port: int | None = None,
        closing: Callable[[], bool] = lambda: False,
        **options: Any,  # noqa: ANN401 -- FastAPI's own
    ) -> None:
        super().__init__(**options)
        self._operations_port = operations_port
        self._closing = closing

    @override
    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = Dispatcher(
            lifespan=self.router, on_error=_rendered, closing=self._closing, is_malformed=is_malformed
        )
        for each in reversed(self.user_middleware):
            app = each.cls(app, *each.args, **each.kwargs)
        return Resolver(app, routes=self.routes, operations_port=self._operations_port, is_malformed=is_malformed)

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        scope["app"] = self  # not FastAPI's own: that writes paths into traces
        await self.middleware_stack(scope, receive, send)


def _networks(trusted: Iterable[str]) -> list[str]:
    """As uvicorn takes them: without host bits, and IPv4 also as a listener on `::` sees it."""
    networks = [ip_network(each, strict=False) for each in trusted]
    mapped = [
        f"::ffff:{each.network_address}/{_MAPPED_BITS + each.prefixlen}"
        for each in networks
        if isinstance(each, IPv4Network)
    ]
    return sorted([*map(str, networks), *mapped])


def _proxy_headers(settings: Settings) -> list[Middleware]:
    if not settings.trusted_proxies:
        return []
    return [Middleware(ProxyHeadersMiddleware, trusted_hosts=_networks(settings.trusted_proxies))]


def _rendered(scope: Scope, error: RaisedInstead) -> Response:
    """FastAPI's own answer repeats the whole body, passwords included; this one names known fields and no values."""
    if isinstance(error, RequestValidationError):
        error = errors.InvalidRequest([_field_error(each) for each in error.errors()])
    return failure(scope, error)


def _field_error(problem: dict[str, Any]) -> FieldError:
    path = [str(part) for part in problem["loc"][1:] if isinstance(part, int) or part in _FIELDS]
    message = "Unknown field" if problem["type"] == "extra_forbidden" else str(problem["msg"])
    return FieldError(".".join(path), message)


def _document(app: FastAPI, public_url: str | None) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Link people's utility accounts through Omnimetic's OmniConnect.",
        description=(
            "Every answer is an OM envelope: `status`, `message` and `requestId`, with the payload beside them, or "
            "with `code`, `retryable` and `displayMessage` if the step failed. HTTP speaks of the request, OM of the "
            "person's step. Every answer has an `X-Request-Id`, by which the log knows it."
        ),
        tags=[{"name": name, "description": told} for name, told in _TAGS.items()],
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": public_url}] if public_url else None,
        routes=app.routes,
    )
    for operation in (each for path in document["paths"].values() for each in path.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":  # no control characters: see `service/api/dispatch.py`
                parameter["schema"]["pattern"] = r"^[^\x00-\x1f\x7f-\x9f]+$"
    document["components"]["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, a session token (`oms_...`), or a user's JWT of the host's identity provider. "
            "A key may be restricted to scopes: " + ", ".join(f"`{each}`" for each in sorted(ALL_SCOPES)) + ".",
        }
    }
    document["security"] = [{"bearer": []}]
    return document


class _drained_on_signal:  # noqa: N801 -- reads as what it is used as
    """Between SIGTERM and the server's own reaction to it, fail `/readyz` but go on serving.

    Load balancers need a moment to notice; the server would refuse connections at once.
    """

    def __init__(self, process: Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._previous: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            delay = self._seconds if number == signal.SIGTERM and not self._process.health.draining else 0
            loop.call_soon_threadsafe(self._process.announce_end)
            loop.call_soon_threadsafe(loop.call_later, delay, end, number, frame)

        def end(number: int, frame: FrameType | None) -> None:
            self._process.drain()
            self._previous[number](number, frame)

        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            if callable(previous) and previous is not signal.default_int_handler:
                self._previous[number] = previous
                signal.signal(number, begin)

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
