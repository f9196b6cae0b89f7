"""The browser client and the providers' pictures, as they are served."""

import base64
import gzip
import hashlib

import pytest

from service import __version__
from service.api.cached import Cached
from service.api.logos import _picture
from tests.conftest import Replica
from tests.shared import lasting, shared
from tests.walk import APS

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


async def test_a_logo_is_served_as_a_picture_and_nothing_more(shared: Replica) -> None:
    answer = await shared.client.get(f"/logos/{APS}")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert answer.text.startswith("<svg")
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await shared.client.get(f"/logos/{APS}", headers=known)).status_code == 304


@pytest.mark.parametrize(
    ("address", "picture"),
    [
        ("data:image/png;base64,iVBORw==", ("image/png", b"\x89PNG")),
        ("data:image/svg+xml;charset=utf-8,%3Csvg/%3E", ("image/svg+xml", b"<svg/>")),
        ("data:IMAGE/GIF;base64,R0lG", ("image/gif", b"GIF")),
        ("data:image/png;base64,!", None),
        ("data:image/png,", None),
        ("data:text/html,<script>", None),
        ("data:image/x-icon;base64,AAAA", None),
        ("https://example.org/logo.png", None),
        ("", None),
        ("data:image/png," + "a" * 65_536, ("image/png", b"a" * 65_536)),
        ("data:image/png," + "a" * 65_537, None),
        ("data:image/png," + "%61" * 65_537, None),
    ],
)
def test_only_pictures_of_bearable_size_are_decoded(address: str, picture: tuple[str, bytes] | None) -> None:
    assert _picture(address) == picture


def test_a_short_file_is_not_packed() -> None:
    assert Cached.of(b"short", "text/plain", {}).packed is None
