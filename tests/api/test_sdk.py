"""The browser client, as it is served."""

import base64
import gzip
import hashlib

import pytest

from service import __version__
from service.api.cached import Cached
from tests.conftest import Replica
from tests.shared import lasting, shared

__all__ = ["lasting", "shared"]

SCRIPTS = ["omniconnect.js", "omniconnect.mjs"]


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_is_small_cached_and_open_to_other_origins(shared: Replica, name: str) -> None:
    answer = await shared.client.get(f"/sdk/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert len(gzip.compress(answer.content)) < 12_000
    assert "innerHTML" not in answer.text
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await shared.client.get(f"/sdk/{name}", headers=known)).status_code == 304


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_version_never_changes_and_its_hash_is_told(shared: Replica, name: str) -> None:
    answer = await shared.client.get(f"/sdk/{__version__}/{name}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in answer.headers
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.content == (await shared.client.get(f"/sdk/{name}")).content
    told = (await shared.client.get("/sdk/integrity.json")).json()
    digest = base64.b64encode(hashlib.sha384(answer.content).digest()).decode()
    assert told["version"] == __version__
    assert told[name] == f"sha384-{digest}"


async def test_types_are_served(shared: Replica) -> None:
    answer = await shared.client.get("/sdk/omniconnect.d.ts")
    assert answer.headers["content-type"] == "text/typescript; charset=utf-8"
    assert "export class Omniconnect" in answer.text


@pytest.mark.parametrize("path", ["/sdk/client.js", "/sdk/9.9.9/omniconnect.js", "/sdk/..%2fapp.py", "/logos/nobody"])
async def test_nothing_else_is_served(shared: Replica, path: str) -> None:
    answer = await shared.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("path", ["/sdk/omniconnect.js", f"/sdk/{__version__}/omniconnect.mjs", "/sdk/integrity.json"])
async def test_a_head_request_is_answered_as_a_get_without_the_body(shared: Replica, path: str) -> None:
    got, head = await shared.client.get(path), await shared.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "cache-control", "etag", "content-length"):
        assert head.headers[name] == got.headers[name]
    assert (await shared.client.head("/sdk/client.js")).status_code == 404
    refused = await shared.client.post(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_a_short_file_is_not_packed() -> None:
    assert Cached.of(b"short", "text/plain", {}).packed is None
