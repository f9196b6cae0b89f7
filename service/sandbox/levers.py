"""The levers over HTTP: what a test in another process or language uses."""

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.sandbox.calls import ROUTES
from service.sandbox.calls import Route as VendorRoute
from service.sandbox.companies import COMPANIES
from service.sandbox.faults import Kind
from service.sandbox.people import Outcome, oauth_choices
from service.sandbox.world import AlreadyFinished, Settings, World

__all__ = ["Levers"]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=False)


class FaultOrder(_Order):
    """Body of POST /_sandbox/faults; see Fault."""

    route: VendorRoute
    kind: Kind
    value: NotNegative | None = None
    times: Annotated[int, Field(ge=1)] | None = 1
    after: bool = False


class SettingsOrder(_Order):
    """Body of POST /_sandbox/settings; what is left out stays."""

    speed: NotNegative | None = None
    token_lifetime: Positive | None = None
    token_server_lifetime: Positive | None = None


class FinishOrder(_Order):
    """Body of POST /_sandbox/jobs/{id}; `accounts` is how many of the sign-in page's are granted (OAuth only)."""

    outcome: Outcome
    accounts: Literal[1, 2, 3] = 1


class Levers:
    """The routes under /_sandbox of one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """All levers."""
        return [
            Route("/", self.state, methods=["GET"]),
            Route("/faults", self.list_faults, methods=["GET"]),
            Route("/faults", self.add_fault, methods=["POST"]),
            Route("/faults", self.clear_faults, methods=["DELETE"]),
            Route("/settings", self.change_settings, methods=["POST"]),
            Route("/revoke", self.revoke, methods=["POST"]),
            Route("/calls", self.list_calls, methods=["GET"]),
            Route("/calls", self.clear_calls, methods=["DELETE"]),
            Route("/links", self.list_links, methods=["GET"]),
            Route("/jobs/{job}", self.finish_job, methods=["POST"]),
            Route("/reset", self.reset, methods=["POST"]),
        ]

    async def state(self, _request: Request) -> Response:
        """Say that this is the sandbox, and how it is set."""
        return _json(200, {"sandbox": True, "companies": len(COMPANIES), "settings": _shown(self._world.settings)})

    async def list_faults(self, _request: Request) -> Response:
        """Show the faults that are still to come."""
        return _json(200, {"faults": [fault.as_json() for fault in self._world.faults.waiting()]})

    async def add_fault(self, request: Request) -> Response:
        """Let the next calls of a route go wrong."""
        try:
            order = FaultOrder.model_validate_json(await request.body())
        except ValidationError as exc:
            return _refusal(exc)
        if order.kind == "status" and order.value is not None and not 200 <= order.value <= 599:  # noqa: PLR2004 - HTTP
            return _json(400, {"message": "a status is between 200 and 599"})
        fault = self._world.faults.add(order.route, order.kind, value=order.value, times=order.times, after=order.after)
        return _json(201, fault.as_json())

    async def clear_faults(self, _request: Request) -> Response:
        """Let everything go right again."""
        self._world.faults.clear()
        return Response(status_code=204)

    async def change_settings(self, request: Request) -> Response:
        """Change what the body names."""
        try:
            order = SettingsOrder.model_validate_json(await request.body())
        except ValidationError as exc:
            return _refusal(exc)
        for name, value in order.model_dump(exclude_none=True).items():
            setattr(self._world.settings, name, value)
        return _json(200, _shown(self._world.settings))

    async def revoke(self, _request: Request) -> Response:
        """End all tokens."""
        self._world.tokens.revoke_all()
        return Response(status_code=204)

    async def list_calls(self, request: Request) -> Response:
        """Show the log, or the part of one `?route=`."""
        asked = request.query_params.get("route")
        route = next((known for known in ROUTES if known == asked), None)
        if asked is not None and route is None:
            return _json(400, {"message": f"route is one of: {', '.join(ROUTES)}"})
        return _json(200, {"calls": [call.as_json() for call in self._world.calls.all(route)]})

    async def clear_calls(self, _request: Request) -> Response:
        """Empty the log."""
        self._world.calls.clear()
        return Response(status_code=204)

    async def list_links(self, _request: Request) -> Response:
        """Show the batches that were carried out, and how often each service account was linked."""
        links = [
            {"seq": link.seq, "time": link.time, "serviceAccountIds": link.service_account_ids}
            for link in self._world.links
        ]
        return _json(200, {"links": links, "counts": self._world.link_counts})

    async def finish_job(self, request: Request) -> Response:
        """End a running job by hand."""
        try:
            order = FinishOrder.model_validate_json(await request.body())
        except ValidationError as exc:
            return _refusal(exc)
        job = self._world.job(request.path_params["job"])
        if job is None:
            return _json(404, {"message": "there is no such job"})
        granted = oauth_choices(job.company)[: order.accounts] if job.company.sign_in == "oauth" else None
        try:
            self._world.finish(job.id, order.outcome, granted)
        except AlreadyFinished:
            return _json(409, {"message": "the job has ended already"})
        return _json(200, {"id": job.id, "outcome": job.outcome})

    async def reset(self, _request: Request) -> Response:
        """Back to the first moment."""
        self._world.reset()
        return Response(status_code=204)


def _shown(settings: Settings) -> dict[str, float]:
    return {
        "speed": settings.speed,
        "tokenLifetime": settings.token_lifetime,
        "tokenServerLifetime": settings.token_server_lifetime,
    }


def _json(status: int, content: object) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _refusal(exc: ValidationError) -> Response:
    faults = exc.errors(include_url=False, include_input=False, include_context=False)
    return _json(400, {"message": "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)})
