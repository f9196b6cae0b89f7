"""The vendor's JSON, read leniently: what the flow needs must fit, everything else is dropped and counted."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Required, TypeVar

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function, union_schema
from typing_extensions import TypedDict

from service.errors import UpstreamMalformed
from service.telemetry import dropped

__all__ = [
    "UPSTREAM_ID",
    "Address",
    "Company",
    "FetchedToken",
    "JobAnswer",
    "JobResult",
    "OAuthAccount",
    "ServiceAccount",
    "UtilityAccount",
    "parse_companies",
    "parse_job",
    "parse_job_id",
    "parse_token",
    "parse_utility_account",
]

UPSTREAM_ID: Final = r"^[A-Za-z0-9_-]{1,128}$"
"""What an id may look like before it becomes part of an upstream path."""

LONGEST_TOKEN_LIFE_SECONDS: Final = 3600.0
"""The vendor's documentation says "one-hour active life" while its example token says 24 h."""

MAX_COMPANIES: Final = 5000
MAX_SERVICE_ACCOUNTS: Final = 2000

_Model = TypeVar("_Model", bound=BaseModel)
UpstreamId = Annotated[str, StringConstraints(pattern=UPSTREAM_ID)]
Text = Annotated[str, StringConstraints(max_length=512)]


def _none(_value: object) -> None:
    return None


def _counted(_value: object) -> None:
    dropped("optional_field")


@dataclass(frozen=True, slots=True)
class _IfFits:
    """What the flow can do without is None when it does not fit; its neighbours stay."""

    otherwise: Callable[[object], None] = _counted

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return union_schema([handler(source), no_info_plain_validator_function(self.otherwise)], mode="left_to_right")


OptionalText = Annotated[Text | None, _IfFits()]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class _TokenBody(_Lenient):
    id: UpstreamId
    # RFC 6750, section 2.1: what may stand in an Authorization header
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~+/-]+=*$", max_length=8192)] = Field(repr=False)


@dataclass(frozen=True, slots=True)
class FetchedToken:
    """What `POST /access-token` answered."""

    account_id: str
    value: SecretStr
    life_seconds: float


class Company(_Lenient):
    """A utility company as the vendor lists it."""

    id: UpstreamId
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    url: Annotated[Annotated[str, StringConstraints(max_length=2048)] | None, _IfFits()] = None
    logo: Annotated[Annotated[str, StringConstraints(max_length=65536)] | None, _IfFits()] = None
    # Not left out: a company whose own page asks for the password would then be taken for one that we ask it for.
    login_url: Annotated[str, StringConstraints(max_length=2048)] | None = Field(None, alias="loginUrl")


class Address(TypedDict, total=False):
    """Where a service account's meter is."""

    street: OptionalText
    city: OptionalText
    state: OptionalText
    postalCode: OptionalText


class ServiceAccount(TypedDict, total=False):
    """One metered account at a utility, by the vendor's own names: it is passed on, not worked with."""

    id: Required[UpstreamId]
    address: Annotated[Address | None, _IfFits()]
    meterNumber: OptionalText
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # to count what is unknown
    legalNames: Annotated[Annotated[list[Text], Field(max_length=50)] | None, _IfFits()]


class _UtilityAccountBody(_Lenient):
    id: UpstreamId
    name: OptionalText = None
    service_accounts: Annotated[
        list[Annotated[ServiceAccount | None, _IfFits(_none)]], Field(max_length=MAX_SERVICE_ACCOUNTS)
    ] = Field(alias="serviceAccounts")


@dataclass(frozen=True, slots=True)
class UtilityAccount:
    """A person's account at a utility, with its service accounts."""

    id: str
    name: str | None
    service_accounts: Sequence[ServiceAccount]


class OAuthAccount(_Lenient):
    """One account that a person allowed at the utility's own sign-in page."""

    account_id: UpstreamId = Field(alias="accountId")
    service_account_id: UpstreamId | None = Field(None, alias="serviceAccountId")


class _JobId(_Lenient):
    id: UpstreamId


class _JobResponse(_Lenient):
    status: Any = None
    account_id: UpstreamId | None = Field(None, alias="accountId")
    accounts: Annotated[list[OAuthAccount], Field(max_length=200)] | None = None


class _JobBody(_Lenient):
    status: Any = None
    response: Any = None


JobResult = Literal["running", "succeeded", "incorrect_credentials", "server_error", "broken"]


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """How a job stands.

    Attributes:
        account_ids: Utility user accounts that it found.
        services: Service accounts that it named, each with its utility user account: (utility, service).
    """

    result: JobResult
    account_ids: Sequence[str] = ()
    services: Sequence[tuple[str, str]] = ()


_COMPANIES: Final = TypeAdapter(Annotated[list[Any], Field(max_length=MAX_COMPANIES)])
_SERVICE_FIELDS: Final = frozenset(ServiceAccount.__annotations__)


def parse_token(body: bytes) -> FetchedToken:
    """Read the answer to `POST /access-token`.

    Raises:
        UpstreamMalformed: The body does not fit.
    """
    fields = _validate(_TokenBody, body)
    return FetchedToken(fields.id, SecretStr(fields.token), _life_of(fields.token))


def _life_of(token: str) -> float:
    """Seconds a token lives by its own claims, relative to its issue so that the two clocks need not agree."""
    try:
        payload = token.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        life = float(claims["exp"]) - float(claims["iat"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return LONGEST_TOKEN_LIFE_SECONDS
    # A life that is not positive is a broken claim, not a token that nobody may use.
    return min(life, LONGEST_TOKEN_LIFE_SECONDS) if life > 0 else LONGEST_TOKEN_LIFE_SECONDS


def parse_companies(body: bytes) -> list[Company]:
    """Read the answer to `GET /utility-companies`; entries that do not fit are dropped and counted.

    Raises:
        UpstreamMalformed: Not a list, or too long, or nothing in it fits. Neither does an empty list: it would take a
            good one's place.
    """
    try:
        entries = _COMPANIES.validate_json(body)
    except ValidationError as error:
        raise UpstreamMalformed from error
    companies: dict[str, Company] = {}
    for entry in entries:
        try:
            company = Company.model_validate(entry)
        except ValidationError:
            dropped("company")
            continue
        companies.setdefault(company.id, company)
    if not companies:
        raise UpstreamMalformed
    return list(companies.values())


def parse_job_id(body: bytes) -> str:
    """Read the answer to `POST /jobs`.

    Raises:
        UpstreamMalformed: The body does not fit.
    """
    return _validate(_JobId, body).id


def parse_job(body: bytes) -> JobAnswer:
    """Read the answer to `GET /jobs/<id>`.

    Raises:
        UpstreamMalformed: The body is not an object, or says "finished" without saying how.
    """
    job = _validate(_JobBody, body)
    if job.status == "error":
        return JobAnswer("broken")
    if job.status != "success":
        return JobAnswer("running")
    try:
        response = _JobResponse.model_validate(job.response)
    except ValidationError as error:
        raise UpstreamMalformed from error
    if response.status == "incorrect-credential":
        return JobAnswer("incorrect_credentials")
    if response.status == "server-error":
        return JobAnswer("server_error")
    accounts = response.accounts or []
    named = [response.account_id] if response.account_id else []
    account_ids = dict.fromkeys([*named, *(account.account_id for account in accounts)])
    services = dict.fromkeys((each.account_id, each.service_account_id) for each in accounts if each.service_account_id)
    if not account_ids:
        raise UpstreamMalformed
    return JobAnswer("succeeded", tuple(account_ids), tuple(services))


def parse_utility_account(body: bytes) -> UtilityAccount:
    """Read the answer to `GET /utility-user-account/<id>`; service accounts that do not fit are dropped and counted.

    Raises:
        UpstreamMalformed: The body does not fit.
    """
    fields = _validate(_UtilityAccountBody, body)
    known: dict[str, ServiceAccount] = {}
    unknown_fields = 0
    for account in fields.service_accounts:
        if account is None:
            dropped("service_account")
        else:
            for unknown in account.keys() - _SERVICE_FIELDS:
                del account[unknown]  # type: ignore[misc]
                unknown_fields += 1
            known.setdefault(account["id"], account)
    if unknown_fields:
        dropped("service_account_field", unknown_fields)
    return UtilityAccount(fields.id, fields.name, tuple(known.values()))


def _validate(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise UpstreamMalformed from error
