"""The flow in a terminal: one person's walk through the four steps, against a running service."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol, Self

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Prompt
from rich.table import Table
from rich.text import Text
from typing_extensions import override

__all__ = [
    "Credentials",
    "Envelope",
    "Guide",
    "Questions",
    "Script",
    "Service",
    "WalkError",
    "Wishes",
    "as_json",
    "walk",
]

Envelope = dict[str, Any]
"""An answer of the service, as it came."""

_WAIT_SECONDS: Final = 20
_PAUSE_SECONDS: Final = 0.2
_CALL_SECONDS: Final = 45.0
_TRIES: Final = 5
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class WalkError(Exception):
    """Why the walk cannot go on, in words."""


class _Unreachable(WalkError):
    """No answer, or a broken one."""


class _Refused(Exception):
    """The service said no, or the step did not succeed."""

    def __init__(self, envelope: Envelope, retry_after: float = 0) -> None:
        super().__init__()
        self.envelope = envelope
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the person signs in with."""

    username: str
    password: SecretStr


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was said on the command line; what is missing is asked for."""

    provider: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    accounts: Sequence[str] = ()


class Guide(Protocol):
    """Whoever makes the person's choices."""

    def provider(self, search: Callable[[str], list[Envelope]]) -> Envelope:
        """Choose a utility."""

    def credentials(self, wishes: Wishes) -> Credentials:
        """Say who signs in; not asked for OAuth."""

    def again(self, envelope: Envelope) -> bool:
        """After a sign-in that did not succeed: whether to try once more."""

    def open_page(self, address: str) -> None:
        """Send the person to the utility's own sign-in page."""

    def accounts(self, offered: Sequence[Envelope]) -> list[str]:
        """Choose among service accounts, of which there is at least one."""

    def waiting(self, for_what: str) -> AbstractContextManager[object]:
        """Show that something takes its time."""

    def tell(self, text: str) -> None:
        """Say something."""


# The walk


def walk(service: "Service", api_key: SecretStr, wishes: Wishes, guide: Guide) -> Envelope:
    """Go through the steps and return the envelope with which they ended.

    Ctrl+C closes the session, as a person does who closes the dialog.

    Raises:
        WalkError: The service cannot be used, or a wish not be granted.
    """
    try:
        opened = service.call("POST", "/v1/sessions", credential=api_key, body={})["session"]
    except _Refused as refused:
        return refused.envelope
    session = _Session(service, f"/v1/sessions/{opened['id']}", SecretStr(opened["token"]))
    try:
        return _steps(session, wishes, guide)
    except (KeyboardInterrupt, EOFError):
        return session.close()
    except _Refused as refused:
        if refused.envelope.get("code") != "outcome_unknown":
            session.leave()
        return refused.envelope
    except WalkError:
        session.leave()
        raise


def _steps(session: "_Session", wishes: Wishes, guide: Guide) -> Envelope:
    provider = _wanted(wishes.provider, session.providers("")) if wishes.provider else guide.provider(session.providers)
    _sign_in(session, provider, wishes, guide)
    offered: list[Envelope] = session.get("/service-accounts")["serviceAccounts"]
    if not offered:
        guide.tell("There are no service accounts to link.")
        return session.close()
    chosen = _among(offered, wishes.accounts) if wishes.accounts else guide.accounts(offered)
    with guide.waiting("linking"):
        return session.link(chosen)


def _sign_in(session: "_Session", provider: Envelope, wishes: Wishes, guide: Guide) -> None:
    oauth = provider["signIn"] == "oauth"
    if not provider["available"]:
        raise WalkError(f"{_plain(provider['name'])} has no known sign-in page; choose another utility")
    while True:
        envelope = session.validate(provider, None if oauth else guide.credentials(wishes))
        if "authorizeUrl" in envelope["validation"]:
            guide.open_page(envelope["validation"]["authorizeUrl"])
        with guide.waiting("waiting for the sign-in" if oauth else "asking the utility"):
            while envelope["validation"]["state"] == "pending":
                time.sleep(_PAUSE_SECONDS)  # a service that is about to stop answers at once
                envelope = session.get(f"/validations/{envelope['validation']['id']}", wait=True)
        if envelope["validation"]["state"] == "succeeded":
            return
        if not guide.again(envelope):
            raise _Refused(envelope)
        wishes = Wishes()


def _wanted(wish: str, providers: Sequence[Envelope]) -> Envelope:
    exact = [each for each in providers if wish == each["id"] or wish.casefold() == each["name"].casefold()]
    found = exact or [each for each in providers if wish.casefold() in each["name"].casefold()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(_plain(each["name"]) for each in found or providers)
    raise WalkError(f"--provider {_plain(wish)} names {'several' if found else 'none'} of: {names}")


def _among(offered: Sequence[Envelope], wishes: Sequence[str]) -> list[str]:
    ids = [each["id"] for each in offered]
    unknown = [each for each in wishes if each not in ids]
    if unknown:
        raise WalkError(f"--account {_plain(', '.join(unknown))} is none of: {_plain(', '.join(ids))}")
    return list(dict.fromkeys(wishes))


def _plain(text: str) -> str:
    """Text from outside, without what could command a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


# The service


class Service:
    """The service behind a URL."""

    def __init__(self, url: str) -> None:
        try:
            address = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in {"http", "https"} or not address.host:
            raise WalkError(f"{_plain(url)} is no http(s) URL")
        if address.scheme == "http" and address.host not in _LOCAL:
            raise WalkError(f"{_plain(url)} is not https: API key and password would be readable on the way")
        self._client = httpx.Client(base_url=address, timeout=_CALL_SECONDS, trust_env=address.host not in _LOCAL)
        self._url = _plain(str(address))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_sandbox(self) -> bool:
        """Whether no real utility is behind it.

        Raises:
            WalkError: Nothing answers, or something else.
        """
        answer = self._send("GET", "/readyz")
        with suppress(ValueError, AttributeError, KeyError):
            return bool(answer.json()["mode"] == "sandbox")
        raise self._strange(answer)

    def call(
        self,
        method: str,
        path: str,
        *,
        credential: SecretStr,
        body: object = None,
        headers: dict[str, str] | None = None,
        repeatable: bool = False,
    ) -> Envelope:
        """One call, or several if it may be repeated and the service says that this helps.

        Raises:
            _Refused: The service said no.
            WalkError: It said nothing, or something that it never says.
        """
        headers = {"Authorization": f"Bearer {credential.get_secret_value()}", **(headers or {})}
        for _ in range(_TRIES - 1 if repeatable else 0):
            try:
                return self._call(method, path, body, headers)
            except _Unreachable:
                time.sleep(1)
            except _Refused as refused:
                if not refused.envelope.get("retryable"):
                    raise
                time.sleep(max(refused.retry_after, 1))
        return self._call(method, path, body, headers)

    def _call(self, method: str, path: str, body: object, headers: dict[str, str]) -> Envelope:
        answer = self._send(method, path, json=body, headers=headers)
        try:
            envelope: object = answer.json()
        except ValueError:
            envelope = None
        if not isinstance(envelope, dict) or not str(envelope.get("status")).startswith("OM"):
            raise self._strange(answer)
        if answer.is_error:
            wait = answer.headers.get("Retry-After", "")
            raise _Refused(envelope, float(wait) if wait.isdecimal() else 0)
        return envelope

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 -- httpx's own
        try:
            return self._client.request(method, path, **options)
        except httpx.ConnectError as error:
            raise _Unreachable(
                f"Nothing answers at {self._url}. Start the service (`omniconnect-bff sandbox` to try things), "
                "or say where it is with --url."
            ) from error
        except httpx.TransportError as error:
            raise _Unreachable(f"{self._url} did not answer ({type(error).__name__}).") from error

    def _strange(self, answer: httpx.Response) -> WalkError:
        status = HTTPStatus(answer.status_code).phrase if answer.status_code in set(HTTPStatus) else ""
        return WalkError(
            f"What answers at {self._url} is not this service (HTTP {answer.status_code} {status}). Check --url."
        )


class _Session:
    """The person's session."""

    def __init__(self, service: Service, path: str, token: SecretStr) -> None:
        self._service = service
        self._path = path
        self._token = token

    def get(self, path: str, *, wait: bool = False) -> Envelope:
        headers = {"Prefer": f"wait={_WAIT_SECONDS}"} if wait else {}
        return self._service.call(
            "GET", f"{self._path}{path}", credential=self._token, headers=headers, repeatable=True
        )

    def providers(self, search: str) -> list[Envelope]:
        path = f"/v1/providers?{httpx.QueryParams(search=search)}"
        found: list[Envelope] = self._service.call("GET", path, credential=self._token, repeatable=True)["providers"]
        return found

    def validate(self, provider: Envelope, credentials: Credentials | None) -> Envelope:
        body = {"providerId": provider["id"]}
        if credentials is not None:
            body |= {"username": credentials.username, "password": credentials.password.get_secret_value()}
        return self._service.call("POST", f"{self._path}/validations", credential=self._token, body=body)

    def link(self, accounts: Sequence[str]) -> Envelope:
        # Repeating it is safe: one choice is sent once.
        return self._service.call(
            "POST",
            f"{self._path}/links",
            credential=self._token,
            body={"serviceAccountIds": list(accounts)},
            headers={"Idempotency-Key": uuid.uuid4().hex},
            repeatable=True,
        )

    def close(self) -> Envelope:
        """End the session; one that is being linked stays, and is told as it is."""
        try:
            return self._service.call("DELETE", self._path, credential=self._token)
        except _Refused:
            return self.get("")

    def leave(self) -> None:
        """End the session, as far as that is possible."""
        with suppress(_Refused, WalkError):
            self._service.call("DELETE", self._path, credential=self._token)


# Guides


class Script:
    """Asks nobody: for scripts. In the sandbox there is a choice for everything."""

    def __init__(self, console: Console, *, sandbox: bool) -> None:
        self._console = console
        self._sandbox = sandbox

    def provider(self, search: Callable[[str], list[Envelope]]) -> Envelope:
        """The first that takes a password."""
        if not self._sandbox:
            raise WalkError("--json asks nothing, so it needs --provider")
        return next(each for each in search("") if each["signIn"] == "password")

    def credentials(self, wishes: Wishes) -> Credentials:
        """As given; in the sandbox, the person with whom all goes well."""
        username = wishes.username or ("user_good" if self._sandbox else None)
        password = wishes.password or (SecretStr("pass_good") if self._sandbox else None)
        if username is None or password is None:
            raise WalkError("--json asks nothing, so it needs --username and the password in BFF_PASSWORD")
        return Credentials(username, password)

    def again(self, envelope: Envelope) -> bool:  # noqa: ARG002 -- as the guide has it
        """Never."""
        return False

    def open_page(self, address: str) -> None:
        """Print it where it is in nobody's way."""
        self._console.print(f"Sign in at {_plain(address)}", markup=False, soft_wrap=True, highlight=False)

    def accounts(self, offered: Sequence[Envelope]) -> list[str]:
        """All."""
        return [each["id"] for each in offered]

    def waiting(self, for_what: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Silently."""
        return nullcontext()

    def tell(self, text: str) -> None:
        """Print it where it is in nobody's way."""
        self._console.print(text, markup=False, highlight=False)


class Questions(Script):
    """Asks the person at the terminal."""

    @override
    def provider(self, search: Callable[[str], list[Envelope]]) -> Envelope:
        found = search("")
        while True:
            self._show(found)
            asked = Prompt.ask("Number, or part of a name to search for", console=self._console).strip()
            if asked.isdecimal() and 1 <= int(asked) <= len(found):
                return found[int(asked) - 1]
            found = search(asked)
            if not found:
                self.tell(f"No utility has {_plain(asked)} in its name.")
                found = search("")

    @override
    def credentials(self, wishes: Wishes) -> Credentials:
        if self._sandbox and wishes.username is None:
            self.tell("Sandbox: user_good and pass_good work, user_bad does not.")
        username = wishes.username or self._ask("User name at the utility")
        return Credentials(username, wishes.password or SecretStr(self._ask("Password", hidden=True)))

    @override
    def again(self, envelope: Envelope) -> bool:
        self.tell(envelope.get("displayMessage") or envelope["message"])
        if envelope.get("code") != "incorrect_credentials":
            return False
        return Prompt.ask("Try again?", choices=["y", "n"], default="y", console=self._console) == "y"

    @override
    def open_page(self, address: str) -> None:
        self.tell("Open this address in a browser and sign in there:")
        super().open_page(address)

    @override
    def accounts(self, offered: Sequence[Envelope]) -> list[str]:
        table = Table("", "Service account", "Address", "Meter")
        for number, each in enumerate(offered, 1):
            address = ", ".join(part for part in (each.get("address") or {}).values() if part)
            table.add_row(str(number), *map(_cell, (each["id"], address, each.get("meterNumber") or "")))
        self._console.print(table)
        while True:
            asked = Prompt.ask("Which to link (numbers)", default="all", console=self._console)
            numbers = asked.replace(",", " ").split()
            if numbers == ["all"]:
                return [each["id"] for each in offered]
            if numbers and all(each.isdecimal() and 1 <= int(each) <= len(offered) for each in numbers):
                return [offered[number - 1]["id"] for number in sorted({int(each) for each in numbers})]

    @override
    @contextmanager
    def waiting(self, for_what: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(for_what)
            yield

    def _ask(self, what: str, *, hidden: bool = False) -> str:
        while True:
            given = Prompt.ask(what, password=hidden, console=self._console)
            if given:
                return given

    def _show(self, providers: Sequence[Envelope]) -> None:
        table = Table("", "Utility", "Sign-in")
        for number, each in enumerate(providers, 1):
            sign_in = "password" if each["signIn"] == "password" else "its own page"
            table.add_row(str(number), _cell(each["name"]), sign_in if each["available"] else "not available")
        self._console.print(table)


def _cell(text: str) -> Text:
    return Text(_plain(text))


def as_json(envelope: Envelope, *, indent: int | None = None) -> str:
    """An envelope as text."""
    return json.dumps(envelope, indent=indent, separators=None if indent else (",", ":"), ensure_ascii=True)
