"""The command line: pick a process."""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Final

import typer

from service import __version__
from service.environment import load_settings
from service.link.scopes import Scope
from service.settings import (
    SANDBOX_API_KEY,
    SANDBOX_CLIENT_ID,
    SANDBOX_SECRET,
    Settings,
    SettingsError,
)
from service.tenants import KEY_NAME, PREFIX

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

_DEFAULT_URL: Final = "http://127.0.0.1:8000"

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else; ask nothing.")]


def main() -> None:
    """Run the command line."""
    app()


# Each command imports what it needs, so that it starts without what only the others need.
# ruff: noqa: PLC0415


@app.command()
def serve() -> None:
    """Serve, with settings from OMNICONNECT_* environment variables."""
    from service import serve as serving

    settings = _settings()
    with _told(serving.StartError), serving.ended_by_signal(), serving.listen(settings) as listeners:
        serving.serve(settings, listeners)


@app.command()
def sandbox(
    upstream_port: Annotated[int, typer.Option(help="Port of the sandbox upstream.")] = 8001,
) -> None:
    """Serve with the sandbox upstream and the embedded store: nothing real is reached, nothing is needed."""
    from service import serve as serving
    from service.sandbox.server import SandboxServer

    with ExitStack() as stack:
        stack.enter_context(_told(serving.StartError))
        stack.enter_context(serving.ended_by_signal())
        with serving.listening_at("127.0.0.1", upstream_port, "--upstream-port"):
            upstream = stack.enter_context(SandboxServer(port=upstream_port))
        given = {
            "SANDBOX": "true",
            "CLIENT_ID": SANDBOX_CLIENT_ID,
            "SECRET": SANDBOX_SECRET,
            "UPSTREAM_URL": upstream.url,
        }
        for name, value in given.items():
            os.environ.setdefault(f"{PREFIX}{name}", value)
        settings = _settings()
        listeners = stack.enter_context(serving.listen(settings))
        _banner(settings.public_url or serving.address_of(listeners[0]), upstream.origin)
        serving.serve(settings, listeners)


@app.command()
def upstream(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8001,
    speed: Annotated[float, typer.Option(help="Multiplies how long jobs take.")] = 1.0,
    public_url: Annotated[str | None, typer.Option(help="Where browsers reach it, for sign-in pages.")] = None,
) -> None:
    """Run the sandbox upstream alone."""
    from service.sandbox.server import run
    from service.serve import StartError, ended_by_signal, listening_at

    with _told(StartError), ended_by_signal(), listening_at(host, port, "--port"):
        sys.stderr.write(f"Sandbox upstream on http://{host}:{port}/api, levers under /_sandbox\n")
        run(host, port, speed=speed, public_url=public_url)


@app.command()
def link(
    context: typer.Context,
    *,
    url: Annotated[str, typer.Option(envvar="BFF_URL", help="Where the service is.")] = _DEFAULT_URL,
    api_key: Annotated[
        str | None, typer.Option(envvar="BFF_API_KEY", help="Not needed in the sandbox.", show_envvar=True)
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Name or id of the utility.")] = None,
    username: Annotated[str | None, typer.Option(help="User name at the utility.")] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar="BFF_PASSWORD", help="Better asked for or in the environment: here it is in the history."),
    ] = None,
    account: Annotated[list[str] | None, typer.Option(help="Id of a service account to link; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Walk through the four steps against a running service; exit code 0 if accounts were linked."""
    from pydantic import SecretStr
    from rich.console import Console

    from service.cli import link as linking
    from service.cli.client import Service, WalkError
    from service.cli.prompts import Questions, Script

    told = Console(stderr=as_json)
    if password is not None and _typed(context, "password"):
        Console(stderr=True).print("The password is now in the history of your shell; BFF_PASSWORD keeps it out.")
    wishes = linking.Wishes(provider, username, SecretStr(password) if password else None, account or ())
    with _told(WalkError), Service(url) as service:
        # Not asked of others: behind a proxy nobody answers it.
        in_sandbox = api_key in {None, SANDBOX_API_KEY} and service.is_sandbox()
        if api_key is None and not in_sandbox:
            raise WalkError("An API key is needed: --api-key, or BFF_API_KEY in the environment")
        api_key = api_key or SANDBOX_API_KEY
        guide = Script(told, sandbox=in_sandbox) if as_json else Questions(told, sandbox=in_sandbox)
        envelope = linking.walk(service, SecretStr(api_key), wishes, guide)
    if as_json:
        typer.echo(linking.as_json(envelope))
    else:
        told.print_json(linking.as_json(envelope))
    raise typer.Exit(0 if envelope["status"] == "OM200" else 1)


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check settings, store, upstream and this machine, and say what to do; exit code 1 if something is wrong."""
    from service.cli.doctor import Finding, examine

    async def collect(settings: Settings) -> None:
        async for finding in examine(settings):
            told(finding)

    findings: list[Finding] = []

    def told(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            color = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.result]
            to_do = f"; {finding.to_do}" if finding.to_do else ""
            typer.echo(f"{typer.style(f'{finding.result:4}', fg=color)}  {finding.check:14}  {finding.told}{to_do}")

    try:
        settings = load_settings()
    except SettingsError as error:
        for fault in error.faults:
            told(Finding("settings", "fail", fault, "README.md lists all settings"))
    else:
        told(Finding("settings", "ok", "sandbox mode" if settings.sandbox else "production mode"))
        asyncio.run(collect(settings))
    if as_json:
        rows = [
            {"check": each.check, "result": each.result, "told": each.told, "toDo": each.to_do} for each in findings
        ]
        typer.echo(json.dumps(rows, indent=2))
    raise typer.Exit(1 if any(each.result == "fail" for each in findings) else 0)


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="What the key is called in the settings.")] = "server",
    *,
    encryption: Annotated[bool, typer.Option("--encryption", help="Make an encryption key instead.")] = False,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the key may do; may be repeated. Without it: everything.")
    ] = None,
) -> None:
    """Make an API key with the hash that the settings take, or an encryption key."""
    if not KEY_NAME.fullmatch(name):
        raise typer.BadParameter("1 to 64 letters, digits, - or _")
    if encryption:
        if scope:
            raise typer.BadParameter("an encryption key has no scopes")
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        typer.echo(f"{PREFIX}ENCRYPTION_KEYS={name}:{key}")
        return
    key = f"omk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    typer.echo(f"API key, shown this once: {key}")
    scopes = f":{'+'.join(dict.fromkeys(scope))}" if scope else ""
    typer.echo(f"{PREFIX}API_KEYS={name}:{digest}{scopes}")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from service.app import openapi_document

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


@contextmanager
def _told(*expected: type[Exception]) -> Iterator[None]:
    """Tell what is no bug in a sentence, not a traceback."""
    try:
        yield
    except expected as error:
        sys.stderr.write(f"omniconnect-bff: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, not by the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _banner(url: str, upstream: str) -> None:
    command = sys.argv[0] if sys.argv[0].endswith("omniconnect-bff") else "omniconnect-bff"
    elsewhere = "" if url == _DEFAULT_URL else f" --url {url}"
    sys.stderr.write(
        "\n"
        "  ***  SANDBOX: no real utility is reached, and these credentials are public  ***\n\n"
        f"  service   {url}   docs {url}/docs\n"
        f"  demo      {url}/   a page with all ways to integrate\n"
        f"  upstream  {upstream}   levers {upstream}/_sandbox\n"
        f"  API key   {SANDBOX_API_KEY}\n"
        "  people    password of all: pass_good\n"
        "            user_good (2 accounts), user_one, user_none, user_forty, user_quick (at once), user_slow (15 s)\n"
        "            user_never, user_bad (wrong password), user_server_error, user_job_error\n"
        "            user_link_refused, user_link_lost, user_token_revoked\n\n"
        f"  try       {command} link{elsewhere}\n\n"
    )
