"""A page that is registered as a publishable client, and what its browser sends."""

from typing import Any, Final

import httpx

from service.tenants import ClientRule
from tests.conftest import Replica

__all__ = ["CLIENTS", "HOST", "OTHER_HOST", "PAGE", "open_by_page", "page_headers", "without_request_id"]

PAGE: Final = "shop-web"
HOST: Final = "https://shop.example"
OTHER_HOST: Final = "https://other.example:8443"
OFF_HOST: Final = "https://off.example"

CLIENTS: Final = {
    PAGE: ClientRule(name="Shop", origins=frozenset({HOST, "https://www.shop.example"})),
    "other-web": ClientRule(origins=frozenset({OTHER_HOST})),
    "off-web": ClientRule(origins=frozenset({OFF_HOST}), enabled=False),
}


def page_headers(token: str | None = None, *, origin: str | None = HOST) -> dict[str, str]:
    """What a browser sends for a page."""
    headers = {"Origin": origin} if origin is not None else {}
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


async def open_by_page(
    replica: Replica, client_id: Any = PAGE, *, origin: str | None = HOST, **body: Any
) -> httpx.Response:
    headers = page_headers(origin=origin)
    return await replica.client.post("/v1/sessions", headers=headers, json={"clientId": client_id, **body})


def without_request_id(answer: httpx.Response) -> bytes:
    """The body, but for what differs in every answer."""
    return answer.content.replace(answer.headers["x-request-id"].encode(), b"")
