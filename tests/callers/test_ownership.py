"""The ownership matrix: every route and every kind of id in it, as every kind of caller.

Both come from the OpenAPI document of all routes, the widget's and the hosted page's included, so that neither a route
nor a field can be added without saying here whose its ids are.
"""

import copy
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.api import widget
from service.api.caller import policies_of
from service.app import _bare_app
from service.link import limits
from service.sandbox.server import SandboxServer
from service.stores.limits import Limit
from tests.callers.pages import CLIENTS, HOST, OTHER_HOST, PAGE, page_headers
from tests.callers.provider import AUDIENCE, ISSUER, Provider, new_ec, running_provider
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import APS, PASSWORD, SRP

PLENTY: Final = 1_000_000

KINDS: Final[Mapping[str, str | None]] = {
    "path.session_id": "session",
    "path.validation_id": "validation",
    "path.job_id": "job",
    "path.account_id": "utility account",
    "path.account_id of widget_link": "account",
    "query.clientId": "client",
    "body.clientId": "client",
    "body.serviceAccountIds": "service account",
    "body of widget_link": "service account",
    "body.resendUnknown": "attempt",
    # Public: anybody may name any of them.
    "body.providerId": None,
    "body.utilityCompanyId": None,
    # Credentials: whoever knows one is its owner.
    "body.secret": None,
    "body.username": None,
    "body.password": None,
    # No ids.
    "query.search": None,
    "body.subject": None,
    "body.metadata": None,
    "body.hosted.returnUrl": None,
    "body.hosted.cancelUrl": None,
    "body.consent.version": None,
    "body.consent.acceptedAt": None,
}
"""Whose each text in a request is; None for what is nobody's."""

ABSENT: Final[Mapping[str, Any]] = {
    "session": "ses_" + "0" * 32,
    "validation": "val_" + "0" * 24,
    "job": "0" * 24,
    "utility account": "0" * 24,
    "account": "0" * 24,
    "client": "nobody-web",
    "service account": ["0" * 24],
    "attempt": ["att_" + "0" * 24],
}

_PER_ANSWER: Final = {"date", "x-request-id", "ratelimit", "ratelimit-policy"}


# What there is to call


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method, and the kinds of the ids that a request to it names, by their places."""

    name: str
    method: str
    path: str
    places: Mapping[str, str]


def document(routes: Sequence[Any]) -> dict[str, Any]:
    """The OpenAPI document of all routes that have an owner to ask for."""
    owned = []
    for route in routes:
        if isinstance(route, APIRoute) and policies_of(route):
            shown = copy.copy(route)
            shown.include_in_schema = True
            owned.append(shown)
    return get_openapi(title="all", version="1", routes=owned)


def operations_of(described: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            name = operation["operationId"]
            places = [f"{each['in']}.{each['name']}" for each in operation.get("parameters", ())]
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                places += texts(content["schema"], described, "body", name)
            kinds = {place: kind_of(place, name) for place in places if not place.startswith("header.")}
            yield Operation(name, method.upper(), path, {place: kind for place, kind in kinds.items() if kind})


def texts(schema: dict[str, Any], described: dict[str, Any], place: str, name: str) -> Iterator[str]:
    """Where a body takes texts."""
    if "$ref" in schema:
        yield from texts(described["components"]["schemas"][schema["$ref"].rpartition("/")[2]], described, place, name)
    for choice in schema.get("anyOf", ()):
        yield from texts(choice, described, place, name)
    for each, inner in schema.get("properties", {}).items():
        yield from texts(inner, described, f"{place}.{each}", name)
    if schema.get("type") == "array":
        yield from texts(schema["items"], described, place if "." in place else f"{place} of {name}", name)
    elif schema.get("type") == "string" or ("additionalProperties" in schema and "properties" not in schema):
        yield place


def kind_of(place: str, name: str) -> str | None:
    """Raises KeyError for a place that nobody has thought about yet."""
    return KINDS[f"{place} of {name}"] if f"{place} of {name}" in KINDS else KINDS[place]


ROUTES: Final = (*_bare_app().routes, *widget.router.routes)
"""Of an app that has no clients yet: it would start threads, and what has threads cannot be forked."""

OPERATIONS: Final = {each.name: each for each in operations_of(document(ROUTES))}

BODIES: Final[Mapping[str, Callable[["Person"], Any]]] = {
    "create_session": lambda _: {},
    "create_validation": lambda _: {"providerId": APS, "username": "user_quick", "password": PASSWORD},
    "create_link": lambda mine: {"serviceAccountIds": mine.ids["service account"]},
    "enter_hosted_page": lambda mine: {"secret": mine.secret, "begin": True},
    "widget_access_token": lambda _: {},
    "widget_create_job": lambda _: {"utilityCompanyId": APS, "username": "user_quick", "password": PASSWORD},
    "widget_link": lambda mine: mine.ids["service account"],
}
"""Good ones, which the ids are put into."""


def named(operation: Operation, mine: "Person", ids: Mapping[str, Any]) -> tuple[str, dict[str, str], Any]:
    """Path, query and body of a request that names these ids, by place."""
    path, query = operation.path, {}
    body = BODIES[operation.name](mine) if operation.name in BODIES else None
    for place, value in ids.items():
        source, _, name = place.partition(".")
        match source:
            case "path":
                path = path.replace(f"{{{name}}}", value)
            case "query":
                query[name] = value
            case "body":
                body = dict(body or {}, **{name: value})
            case _:
                body = value
    return path, query, body


# Who calls


@dataclass
class Person:
    """Somebody who has been through the steps, and what is theirs by kind of id."""

    ids: dict[str, Any]
    token: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """One column of the matrix.

    Attributes:
        headers: Of its requests; from the session that it names as its own, if it has one.
        entitled: Operations on another's session that are this caller's right.
    """

    name: str
    headers: Callable[["Matrix", Person], dict[str, str]]
    entitled: frozenset[str] = frozenset()


READS: Final = frozenset({"get_session", "close_session"})

CALLERS: Final = (
    # A further column is a further line.
    Caller("other session", lambda _, mine: page_headers(mine.token, origin=None)),
    Caller("session of another client", lambda matrix, _: page_headers(matrix.other_client, origin=OTHER_HOST)),
    Caller("other user", lambda matrix, _: page_headers(matrix.provider.token("person-2"), origin=None)),
    Caller("its user", lambda matrix, _: page_headers(matrix.provider.token("person-1"), origin=None), READS),
    Caller("server", lambda matrix, _: matrix.site.walk().server_headers, READS | {"replace_session_token"}),
    Caller("page", lambda _, __: page_headers()),
    Caller("page of another client", lambda _, __: page_headers(origin=OTHER_HOST)),
    Caller("anonymous", lambda _, __: {}),
)


@dataclass
class Matrix:
    """The service, somebody who is after another's, and how victims are made."""

    site: Replica
    vendor: SandboxServer
    provider: Provider
    attacker: Person
    other_client: str

    async def call(
        self, operation: Operation, headers: Mapping[str, str], mine: Person, ids: Mapping[str, Any]
    ) -> httpx.Response:
        """Call, and read what ends."""
        path, query, body = named(operation, mine, ids)
        request = self.site.client.build_request(operation.method, path, headers=headers, params=query, json=body)
        answer = await self.site.client.send(request, stream=True)
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
        await answer.aclose()
        return answer


async def person(site: Replica, provider: Provider | None = None, *, lost: bool = False, at: str = APS) -> Person:
    """Somebody after step 3, or after a link whose outcome is unknown."""
    walk = site.walk()
    if provider is not None:
        walk.server_headers = {"Authorization": f"Bearer {provider.token('person-1')}"}
    await walk.open()
    started = (await walk.validate("user_link_lost" if lost else "user_quick", provider=at)).json()["validation"]
    assert started["state"] == "succeeded"
    found = (await walk.accounts()).json()
    session = await site.app.state.steps.access._sessions.read(walk.id)
    ids: dict[str, Any] = {
        "session": walk.id,
        "validation": started["id"],
        "job": session.validations[0].job_id,
        "utility account": found["utilityAccounts"][0]["id"],
        "account": session.account_id,
        "service account": [each["id"] for each in found["serviceAccounts"]],
        "client": PAGE,
    }
    if lost:
        refused = await walk.link(ids["service account"])
        assert refused.status_code == 504
        ids["attempt"] = refused.json()["attempts"]
    return Person(ids, walk.token)


async def invited(site: Replica) -> Person:
    """Somebody with the address of a hosted page, who has not opened it yet."""
    body = {"hosted": {"returnUrl": "http://localhost:4200/"}}
    answer = await site.client.post("/v1/sessions", headers=site.walk().server_headers, json=body)
    session = answer.json()["session"]
    return Person({"session": session["id"]}, secret=session["url"].partition("#")[2])


@pytest.fixture(scope="module")
async def matrix(valkey: str, omniconnect_sandbox_server: SandboxServer) -> AsyncIterator[Matrix]:
    world = omniconnect_sandbox_server.world
    world.faults.clear()
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("DOOR_BY_ADDRESS", "DOOR_BY_CLIENT", "DOOR_BY_SUBJECT"):
            patch.setattr(limits, name, Limit(name, PLENTY, 60))
        provider = await stack.enter_async_context(running_provider(new_ec("ec")))
        settings = make_settings(
            valkey,
            omniconnect_sandbox_server.url,
            "ownership",
            clients=CLIENTS,
            account_attempts=PLENTY,
            session_reads=PLENTY,
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            jwt_jwks_url=provider.url,
        )
        site = await stack.enter_async_context(running_replica(settings))
        attacker = await person(site, at=SRP)
        opened = await site.client.post(
            "/v1/sessions", headers=page_headers(origin=OTHER_HOST), json={"clientId": "other-web"}
        )
        yield Matrix(site, omniconnect_sandbox_server, provider, attacker, opened.json()["session"]["token"])


def seen(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that an answer tells, but for what differs in every answer."""
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in _PER_ANSWER)
    return answer.status_code, headers, answer.content.replace(answer.headers["X-Request-Id"].encode(), b"")


def exchanged(operation: Operation) -> Iterator[tuple[str, ...]]:
    """Each place by itself, and all together."""
    yield from ((place,) for place in operation.places)
    if len(operation.places) > 1:
        yield tuple(operation.places)


async def both(
    matrix: Matrix, operation: Operation, caller: Caller, people: tuple[Person, Person], places: Sequence[str]
) -> tuple[httpx.Response, httpx.Response]:
    """What the first of two people is told for naming the second's ids in some places, and ids that do not exist."""
    mine, theirs = people
    own = {place: mine.ids[kind] for place, kind in operation.places.items() if kind in mine.ids}
    told = []
    for ids_of in (theirs.ids, ABSENT):
        ids = {place: ids_of[operation.places[place]] for place in places}
        told.append(await matrix.call(operation, caller.headers(matrix, mine), mine, own | ids))
    return told[0], told[1]


# The matrix


@pytest.mark.parametrize("name", [name for name, each in OPERATIONS.items() if each.places])
async def test_what_is_anothers_looks_like_what_does_not_exist_and_reaches_nobody(matrix: Matrix, name: str) -> None:
    operation = OPERATIONS[name]
    lost = "attempt" in operation.places.values()
    victim = await person(matrix.site, matrix.provider)
    mine, theirs = matrix.attacker, victim
    if name == "enter_hosted_page":
        mine, theirs = await invited(matrix.site), await invited(matrix.site)
    elif lost:
        theirs = await person(matrix.site, matrix.provider, lost=True)
        mine = await person(matrix.site, lost=True, at=SRP)
    elif "client" in operation.places.values():
        theirs.ids["client"] = "other-web"
    matrix.vendor.world.calls.clear()
    compared = 0
    for caller in CALLERS:
        for places in exchanged(operation):
            if name in caller.entitled or not matters(operation, caller, places):
                continue
            foreign, absent = await both(matrix, operation, caller, (mine, theirs), places)
            assert seen(foreign) == seen(absent), (caller.name, places)
            assert foreign.status_code in REFUSALS.get(name, {401, 403, 404}), (caller.name, places, foreign.text)
            compared += 1
    assert compared > 1
    assert matrix.vendor.world.calls.all() == []
    await untouched(matrix, victim)


REFUSALS: Final = {"create_link": {401, 403, 404, 504}, "widget_utility_account": {401, 403, 404, 409}}
"""Somebody else's attempt makes no unknown outcome known; who has signed in nowhere is told so."""


def matters(operation: Operation, caller: Caller, places: Sequence[str]) -> bool:
    """Whether an id can be another's."""
    kinds = {operation.places[place] for place in places}
    if kinds == {"account"}:
        return False  # everybody of a tenant has the same
    # A client's id is asked for only where there is no credential, and is that client's own at its origin.
    return kinds != {"client"} or caller.name in {"page", "anonymous"}


async def untouched(matrix: Matrix, victim: Person) -> None:
    """Its token still opens the session, which is as it was."""
    path = f"/v1/sessions/{victim.ids['session']}"
    shown = await matrix.site.client.get(path, headers=page_headers(victim.token, origin=None))
    session = shown.json()["session"]
    assert (session["state"], [each["id"] for each in session["validations"]]) == ("open", [victim.ids["validation"]])


@pytest.mark.parametrize("name", OPERATIONS)
async def test_whoever_is_entitled_gets_in_by_the_very_same_request(matrix: Matrix, name: str) -> None:
    """Else the matrix could compare refusals that every request meets."""
    operation = OPERATIONS[name]
    server = matrix.site.walk().server_headers
    owner = await person(matrix.site, matrix.provider)
    by: dict[str, dict[str, str]] = {"the owner": page_headers(owner.token, origin=None)}
    match name:
        case "create_session" | "replace_session_token":
            by = {"server": server}
        case "widget_access_token":
            by = {"page": page_headers(origin=HOST)}
        case "enter_hosted_page":
            owner, by = await invited(matrix.site), {"anybody who knows the secret": {}}
        case "create_link":
            owner = await person(matrix.site, matrix.provider, lost=True)
            by = {"the owner": page_headers(owner.token, origin=None)}
            owner.ids["service account"] = await fresh_accounts(matrix, owner)
        case "get_session":
            by |= {each.name: each.headers(matrix, owner) for each in CALLERS if name in each.entitled}
    for who, headers in by.items():
        ids = {place: owner.ids[kind] for place, kind in operation.places.items()}
        answer = await matrix.call(operation, headers, owner, ids)
        assert answer.status_code in {200, 201, 202}, (who, answer.status_code)
    if name == "stream_events":
        await matrix.site.client.delete(f"/v1/sessions/{owner.ids['session']}", headers=server)


async def fresh_accounts(matrix: Matrix, owner: Person) -> list[str]:
    """What an owner may send again after an unknown outcome; this time the vendor answers."""
    matrix.vendor.world.faults.add("batch", "status", value=201)
    return list(owner.ids["service account"])


def test_every_operation_of_the_contract_is_in_the_matrix(matrix: Matrix) -> None:
    served = {
        operation["operationId"]
        for methods in matrix.site.app.openapi()["paths"].values()
        for operation in methods.values()
    }
    guarded = {each.name for each in matrix.site.app.routes if isinstance(each, APIRoute) and policies_of(each)}
    assert served <= set(OPERATIONS) == guarded
    assert {kind for each in OPERATIONS.values() for kind in each.places.values()} == set(ABSENT)


def test_a_new_id_must_be_said_to_be_somebodys() -> None:
    described = document(ROUTES)
    described["paths"]["/v1/providers"]["get"]["parameters"].append({"in": "query", "name": "linkId"})
    with pytest.raises(KeyError, match="linkId"):
        list(operations_of(described))
