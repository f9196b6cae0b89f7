"""`omniconnect-bff link`: one person's walk through the four steps, against a running service."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import SecretStr

from service.cli.client import Credentials, Envelope, LinkSession, Refused, Service, WalkError, printable

__all__ = ["Guide", "Wishes", "as_json", "walk"]

_PAUSE_SECONDS: Final = 0.2


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


def walk(service: Service, api_key: SecretStr, wishes: Wishes, guide: Guide) -> Envelope:
    """Go through the steps and return the envelope with which they ended.

    Ctrl+C closes the session, as a person does who closes the dialog.

    Raises:
        WalkError: The service cannot be used, or a wish not be granted.
    """
    try:
        opened = service.call("POST", "/v1/sessions", credential=api_key, body={})["session"]
    except Refused as refused:
        return refused.envelope
    session = LinkSession(service, f"/v1/sessions/{opened['id']}", SecretStr(opened["token"]))
    try:
        return _steps(session, wishes, guide)
    except (KeyboardInterrupt, EOFError):
        return session.close()
    except Refused as refused:
        if refused.envelope.get("code") != "outcome_unknown":
            session.leave()
        return refused.envelope
    except WalkError:
        session.leave()
        raise


def _steps(session: LinkSession, wishes: Wishes, guide: Guide) -> Envelope:
    provider = _wanted(wishes.provider, session.providers("")) if wishes.provider else guide.provider(session.providers)
    _sign_in(session, provider, wishes, guide)
    offered: list[Envelope] = session.get("/service-accounts")["serviceAccounts"]
    if not offered:
        guide.tell("There are no service accounts to link.")
        return session.close()
    chosen = _among(offered, wishes.accounts) if wishes.accounts else guide.accounts(offered)
    with guide.waiting("linking"):
        return session.link(chosen)


def _sign_in(session: LinkSession, provider: Envelope, wishes: Wishes, guide: Guide) -> None:
    oauth = provider["signIn"] == "oauth"
    if not provider["available"]:
        raise WalkError(f"{printable(provider['name'])} has no known sign-in page; choose another utility")
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
            raise Refused(envelope)
        wishes = Wishes()


def _wanted(wish: str, providers: Sequence[Envelope]) -> Envelope:
    exact = [each for each in providers if wish == each["id"] or wish.casefold() == each["name"].casefold()]
    found = exact or [each for each in providers if wish.casefold() in each["name"].casefold()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(printable(each["name"]) for each in found or providers)
    raise WalkError(f"--provider {printable(wish)} names {'several' if found else 'none'} of: {names}")


def _among(offered: Sequence[Envelope], wishes: Sequence[str]) -> list[str]:
    ids = [each["id"] for each in offered]
    unknown = [each for each in wishes if each not in ids]
    if unknown:
        raise WalkError(f"--account {printable(', '.join(unknown))} is none of: {printable(', '.join(ids))}")
    return list(dict.fromkeys(wishes))


def as_json(envelope: Envelope, *, indent: int | None = None) -> str:
    """An envelope as text."""
    return json.dumps(envelope, indent=indent, separators=None if indent else (",", ":"), ensure_ascii=True)
