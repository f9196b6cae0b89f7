"""For those who run the service: alive, ready, metrics. Open to whoever reaches the listener; tells no secret."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from starlette.responses import Response

from service.api.envelope import encode
from service.api.routing import RouteKind, make_router

__all__ = ["OPEN_PATHS", "Health", "metrics_router", "router"]

OPEN_PATHS: Final = frozenset(
    {"/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/docs/assets/{name}"}
    | {"/sdk/{name}", "/sdk/{version}/{name}", "/logos/{provider_id}", "/link/{session_id}"}
)

router: Final = make_router("", "operations", RouteKind.PROBE)
metrics_router: Final = make_router("", "operations", RouteKind.METRICS)


class Upstream(Protocol):
    """What knows whether the vendor answers."""

    reachable: bool | None


@dataclass(slots=True)
class Health:
    """How this process is.

    Attributes:
        mode: Which upstream it speaks to.
        upstreams: Of each tenant.
        started: Redis has answered at least once.
        draining: It is about to stop; requests are still served, so that load balancers have time to notice.
        closing: It takes no new work any more.
        store_answers: Redis answered the last time.
    """

    mode: Literal["sandbox", "production"]
    upstreams: Sequence[Upstream]
    started: bool = False
    draining: bool = False
    closing: bool = False
    store_answers: bool = False

    def report(self) -> dict[str, Any]:
        """As `/readyz` tells it."""
        status = "draining" if self.draining else "ready" if self.started else "starting"
        reachable = {each.reachable for each in self.upstreams}
        upstream = "unreachable" if False in reachable else "ok" if True in reachable else "unknown"
        store = "ok" if self.store_answers else "unavailable"
        return {"status": status, "mode": self.mode, "store": store, "upstream": upstream}


@router.get("/livez", include_in_schema=False)
async def livez() -> Response:
    """The process is alive; asks nothing else."""
    return Response(encode({"status": "alive"}), media_type="application/json")


@router.get("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """Whether to send requests here: 503 while starting or draining; a store lost later is told, not a reason."""
    health: Health = request.app.state.health
    report = health.report()
    return Response(encode(report), 200 if report["status"] == "ready" else 503, media_type="application/json")


@metrics_router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format, over all processes of this instance."""
    if not request.app.state.many_processes:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
