"""This service as its callers see it: one call after the other, over HTTP."""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Self

import httpx
from pydantic import SecretStr

__all__ = ["Credentials", "Envelope", "LinkSession", "Refused", "Service", "WalkError", "printable"]

Envelope = dict[str, Any]
"""An answer of the service, as it came."""

_WAIT_SECONDS: Final = 20
_CALL_SECONDS: Final = 45.0
_TRIES: Final = 5
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class WalkError(Exception):
    """Why the walk cannot go on, in words."""


class _Unreachable(WalkError):
    """No answer, or a broken one."""


class Refused(Exception):
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


class Service:
    """The service behind a URL."""

    def __init__(self, url: str) -> None:
        try:
            address = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in {"http", "https"} or not address.host:
            raise WalkError(f"{printable(url)} is no http(s) URL")
        if address.scheme == "http" and address.host not in _LOCAL:
            raise WalkError(f"{printable(url)} is not https: API key and password would be readable on the way")
        self._client = httpx.Client(base_url=address, timeout=_CALL_SECONDS, trust_env=address.host not in _LOCAL)
        self._url = printable(str(address))

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
            Refused: The service said no.
            WalkError: It said nothing, or something that it never says.
        """
        headers = {"Authorization": f"Bearer {credential.get_secret_value()}", **(headers or {})}
        for _ in range(_TRIES - 1 if repeatable else 0):
            try:
                return self._call(method, path, body, headers)
            except _Unreachable:
                time.sleep(1)
            except Refused as refused:
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
            raise Refused(envelope, float(wait) if wait.isdecimal() else 0)
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


class LinkSession:
    """The person's session. Its calls raise what `Service.call` raises."""

    def __init__(self, service: Service, path: str, token: SecretStr) -> None:
        self._service = service
        self._path = path
        self._token = token

    def get(self, path: str, *, wait: bool = False) -> Envelope:
        """Read what is at a path below the session's; with `wait`, for up to 20 s until it changes."""
        headers = {"Prefer": f"wait={_WAIT_SECONDS}"} if wait else {}
        return self._service.call(
            "GET", f"{self._path}{path}", credential=self._token, headers=headers, repeatable=True
        )

    def providers(self, search: str) -> list[Envelope]:
        """The utilities whose name contains a text."""
        path = f"/v1/providers?{httpx.QueryParams(search=search)}"
        found: list[Envelope] = self._service.call("GET", path, credential=self._token, repeatable=True)["providers"]
        return found

    def validate(self, provider: Envelope, credentials: Credentials | None) -> Envelope:
        """Begin to validate credentials; None for OAuth."""
        body = {"providerId": provider["id"]}
        if credentials is not None:
            body |= {"username": credentials.username, "password": credentials.password.get_secret_value()}
        return self._service.call("POST", f"{self._path}/validations", credential=self._token, body=body)

    def link(self, accounts: Sequence[str]) -> Envelope:
        """Link service accounts."""
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
        except Refused:
            return self.get("")

    def leave(self) -> None:
        """End the session, as far as that is possible."""
        with suppress(Refused, WalkError):
            self._service.call("DELETE", self._path, credential=self._token)


def printable(text: str) -> str:
    """Text from outside, without what could command a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
