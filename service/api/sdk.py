"""`/sdk`: the browser client, built once at start-up from its one source `service/web/client.js`."""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Final

from fastapi import Request
from starlette.responses import Response

from service import __version__
from service.api.cached import Cached
from service.api.envelope import encode
from service.api.routing import RouteKind, make_router
from service.errors import NotFound

__all__ = ["build", "router"]

_SCRIPT: Final = "text/javascript; charset=utf-8"
_FOR_A_WHILE: Final = "public, max-age=300"
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
"""A page of another origin can check `integrity=` only of what it may read."""

_BANNER: Final = f"/*! omniconnect.js {__version__} | MIT */\n"
_CLASSIC: Final = (
    '(() => {{\n"use strict";\nconst scriptUrl = document.currentScript?.src;\n'
    "{body}\nwindow.Omniconnect = window.Omnimetic = Omniconnect;\n}})();\n"
)
_MODULE: Final = "const scriptUrl = import.meta.url;\n{body}\nexport {{ Omniconnect, Omniconnect as Omnimetic }};\n"

_COMMENTS_AND_INDENTATION: Final = re.compile(r"^[ ]*/\*\*[\s\S]*?\*/\n|^[ ]*//.*\n|^[ ]+", re.MULTILINE)
"""A browser needs neither, and they would be an eighth of the download. No literal in the source begins so."""

router: Final = make_router("", "sdk", RouteKind.PAGE)


def build() -> Mapping[str, Cached]:
    """All files by what follows `/sdk/`."""
    web = resources.files("service") / "web"
    body = _COMMENTS_AND_INDENTATION.sub("", (web / "client.js").read_text("utf-8"))
    scripts = {
        "omniconnect.js": (_BANNER + _CLASSIC.format(body=body)).encode(),
        "omniconnect.mjs": (_BANNER + _MODULE.format(body=body)).encode(),
    }
    hashes = {name: _integrity(script) for name, script in scripts.items()}
    files = {name: _file(script, _SCRIPT) for name, script in scripts.items()}
    files["omniconnect.d.ts"] = _file((web / "omniconnect.d.ts").read_bytes(), "text/typescript; charset=utf-8")
    files["integrity.json"] = _file(encode({"version": __version__, **hashes}), "application/json")
    files["hosted.js"] = _file((web / "hosted.js").read_bytes(), _SCRIPT)
    files["hosted.css"] = _file((web / "hosted.css").read_bytes(), "text/css; charset=utf-8")
    files["reroute.js"] = _file((web / "reroute.js").read_bytes(), _SCRIPT)
    for name, script in scripts.items():
        files[f"{__version__}/{name}"] = _file(script, _SCRIPT, keep=_FOR_EVER)
    return files


def _file(body: bytes, media_type: str, *, keep: str = _FOR_A_WHILE) -> Cached:
    return Cached.of(body, media_type, {"Cache-Control": keep, **_ANY_ORIGIN})


def _integrity(script: bytes) -> str:
    """As in `integrity=` (Subresource Integrity, section 3.1)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(script).digest()).decode()


@router.api_route("/sdk/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def sdk_file(request: Request, name: str) -> Response:
    """The newest client, its types, and the hashes for `integrity=`."""
    return _served(request, name)


@router.api_route("/sdk/{version}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def sdk_version(request: Request, version: str, name: str) -> Response:
    """The client of this version; another version is served by the release that has it."""
    return _served(request, f"{version}/{name}")


def _served(request: Request, name: str) -> Response:
    files: Mapping[str, Cached] = request.app.state.sdk
    if name not in files:
        raise NotFound
    return files[name].answer(request)
