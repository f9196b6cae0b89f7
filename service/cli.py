"""The command line: pick a process."""

import base64
import hashlib
import json
import os
import secrets
import sys
from typing import Annotated, Any, Final

import typer

from service import __version__
from service.settings import (
    PREFIX,
    SANDBOX_API_KEY,
    SANDBOX_CLIENT_ID,
    SANDBOX_SECRET,
    Settings,
    SettingsError,
    load_settings,
)

__all__ = ["main"]

app: Final = typer.Typer(
    name="omniconnect-bff",
    help="Link people's utility accounts through Omnimetic's OmniConnect without putting the secret into a browser.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys: Final = typer.Typer(help="Make keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Host = Annotated[str, typer.Option(help="Address to listen on.")]


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def serve() -> None:
    """Serve, with settings from OMNICONNECT_* environment variables."""
    from service.serve import serve as run  # noqa: PLC0415 -- other commands start without a server

    run(_settings())


@app.command()
def sandbox(
    upstream_port: Annotated[int, typer.Option(help="Port of the sandbox upstream.")] = 8001,
) -> None:
    """Serve with the sandbox upstream and the embedded store: nothing real is reached, nothing is needed."""
    from service.sandbox.server import SandboxServer  # noqa: PLC0415
    from service.serve import serve as run  # noqa: PLC0415

    with SandboxServer(port=upstream_port) as upstream:
        given = {
            "SANDBOX": "true",
            "CLIENT_ID": SANDBOX_CLIENT_ID,
            "SECRET": SANDBOX_SECRET,
            "UPSTREAM_URL": upstream.url,
        }
        for name, value in given.items():
            os.environ.setdefault(f"{PREFIX}{name}", value)
        settings = _settings()
        _banner(settings, upstream.origin)
        run(settings)


@app.command()
def upstream(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8001,
    speed: Annotated[float, typer.Option(help="Multiplies how long jobs take.")] = 1.0,
    public_url: Annotated[str | None, typer.Option(help="Where browsers reach it, for sign-in pages.")] = None,
) -> None:
    """Run the sandbox upstream alone."""
    from service.sandbox.server import run  # noqa: PLC0415

    sys.stderr.write(f"Sandbox upstream on http://{host}:{port}/api, levers under /_sandbox\n")
    run(host, port, speed=speed, public_url=public_url)


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="What the key is called in the settings.")] = "server",
    scopes: Annotated[str, typer.Option(help="Scopes, joined with +.")] = "",
    *,
    encryption: Annotated[bool, typer.Option("--encryption", help="Make an encryption key instead.")] = False,
) -> None:
    """Make an API key with the hash that the settings take, or an encryption key."""
    if encryption:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        typer.echo(f"{PREFIX}ENCRYPTION_KEYS={name}:{key}")
        return
    key = f"omk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    typer.echo(f"API key, shown this once: {key}")
    typer.echo(f"{PREFIX}API_KEYS={name}:{digest}" + (f":{scopes}" if scopes else ""))


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from service.app import openapi_document  # noqa: PLC0415

    typer.echo(json.dumps(openapi_document(), indent=2, ensure_ascii=False))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings(**given: Any) -> Settings:  # noqa: ANN401 -- any setting
    try:
        return load_settings(**given)
    except SettingsError as error:
        sys.stderr.write("omniconnect-bff cannot start:\n" + "".join(f"  - {fault}\n" for fault in error.faults))
        raise typer.Exit(2) from None


def _banner(settings: Settings, upstream: str) -> None:
    url = settings.public_url or f"http://{settings.host}:{settings.port}"
    sys.stderr.write(
        "\n"
        "  ***  SANDBOX: no real utility is reached, and these credentials are public  ***\n\n"
        f"  service   {url}   docs {url}/docs\n"
        f"  upstream  {upstream}   levers {upstream}/_sandbox\n"
        f"  API key   {SANDBOX_API_KEY}\n"
        "  people    user_good, user_one, user_quick, user_slow, user_bad ... password pass_good\n\n"
    )
