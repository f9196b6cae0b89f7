"""The magic people: what happens is decided by the user name, everywhere in the same way."""

import hashlib
import math
from dataclasses import dataclass
from typing import Final, Literal

from service.sandbox.companies import Company

__all__ = [
    "PASSWORD",
    "PEOPLE",
    "Outcome",
    "Person",
    "ServiceAccount",
    "UtilityAccount",
    "account_of",
    "accounts_of_grant",
    "loses_token",
    "oauth_choices",
    "planned_outcome",
]

PASSWORD: Final = "pass_good"  # noqa: S105 - the one password that works, public on purpose

INCORRECT_AFTER_SECONDS: Final = 1.0

Outcome = Literal["success", "incorrect", "server-error", "error"]
"""How a job ends; `error` is the job's own status, the others are told inside its response."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account at every utility, and what goes wrong for them."""

    username: str
    accounts: int = 2
    seconds: float = 2.0
    outcome: Outcome = "success"
    linking: Literal["works", "refused", "lost"] = "works"
    loses_token: bool = False


PEOPLE: Final = {
    person.username: person
    for person in (
        Person("user_good"),
        Person("user_one", accounts=1),
        Person("user_none", accounts=0),
        Person("user_forty", accounts=40),
        Person("user_quick", seconds=0.0),
        Person("user_slow", seconds=15.0),
        Person("user_never", seconds=math.inf),
        Person("user_bad", seconds=INCORRECT_AFTER_SECONDS, outcome="incorrect"),
        Person("user_server_error", outcome="server-error"),
        Person("user_job_error", outcome="error"),
        Person("user_link_refused", linking="refused"),
        Person("user_link_lost", linking="lost"),
        Person("user_token_revoked", loses_token=True),
    )
}


def planned_outcome(username: str, password: str) -> tuple[Outcome, float]:
    """How a job for these credentials ends, and after how many seconds."""
    person = PEOPLE.get(username)
    if person is None or password != PASSWORD:
        return "incorrect", INCORRECT_AFTER_SECONDS
    return person.outcome, person.seconds


def loses_token(username: str) -> bool:
    """Whether this person's jobs end the token that they were posted with."""
    person = PEOPLE.get(username)
    return person is not None and person.loses_token


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """One meter at one address; `person` decides how linking it goes."""

    id: str
    street: str
    meter_number: str | None
    person: Person

    @property
    def holder(self) -> str:
        """Whose account it is, in words."""
        return _display_name(self.person)

    def as_json(self) -> dict[str, object]:
        """The vendor's shape, with a field that nobody documented."""
        shown: dict[str, object] = {
            "id": self.id,
            "address": {"street": self.street, "city": "Tempe", "state": "AZ", "postalCode": "85281"},
            "legalNames": [self.holder],
            "rateCode": "R-1",
        }
        return shown if self.meter_number is None else {**shown, "meterNumber": self.meter_number}


@dataclass(frozen=True, slots=True)
class UtilityAccount:
    """A person's account at a utility, as the vendor tells it after a job."""

    id: str
    name: str
    service_accounts: tuple[ServiceAccount, ...]

    def as_json(self) -> dict[str, object]:
        """The vendor's shape, with a field that nobody documented."""
        return {
            "id": self.id,
            "name": self.name,
            "serviceAccounts": [service_account.as_json() for service_account in self.service_accounts],
            "internalRating": 7,
        }


def account_of(username: str, company: Company) -> UtilityAccount:
    """The one account of a user name at a company: the same ids whenever it is asked."""
    person = PEOPLE.get(username, Person(username))
    return UtilityAccount(
        _hex_id("account", company.id, username),
        f"{_display_name(person)} at {company.name}",
        tuple(_service_account(person, company, number) for number in range(person.accounts)),
    )


def oauth_choices(company: Company) -> tuple[ServiceAccount, ...]:
    """What a sign-in page offers: two accounts of a household and one of a business."""
    household, business = Person("user_household"), Person("user_business", accounts=1)
    return tuple(
        _service_account(person, company, number)
        for person in (household, business)
        for number in range(person.accounts)
    )


def accounts_of_grant(company: Company, granted: tuple[ServiceAccount, ...]) -> tuple[UtilityAccount, ...]:
    """The accounts behind a grant on the sign-in page; they show what was granted and nothing else."""
    by_person: dict[Person, list[ServiceAccount]] = {}
    for service_account in granted:
        by_person.setdefault(service_account.person, []).append(service_account)
    return tuple(
        UtilityAccount(
            _hex_id("grant", company.id, person.username, *(account.id for account in accounts)),
            f"{_display_name(person)} at {company.name}",
            tuple(accounts),
        )
        for person, accounts in by_person.items()
    )


def _service_account(person: Person, company: Company, number: int) -> ServiceAccount:
    meter_number = None if number % 5 == 1 else f"M-{_hex_id('meter', company.id, person.username, str(number))[:8]}"
    return ServiceAccount(
        _hex_id("service", company.id, person.username, str(number)),
        f"{100 + number} East University Drive",
        meter_number,
        person,
    )


def _display_name(person: Person) -> str:
    return person.username.replace("_", " ").title()


def _hex_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
