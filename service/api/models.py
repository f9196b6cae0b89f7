"""What goes over the wire, as the OpenAPI document describes it. Requests are strict: unknown fields are refused."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    StringConstraints,
)
from pydantic.alias_generators import to_camel

from service.link.sessions import LONGEST_TTL_SECONDS

__all__ = [
    "CreateLink",
    "CreateSession",
    "CreateValidation",
    "EnterHostedPage",
    "Failure",
    "LinkCreated",
    "ProviderListed",
    "ServiceAccountsFound",
    "SessionCreated",
    "SessionShown",
    "TokenReplaced",
    "ValidationShown",
]

UpstreamId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]

_SIGN_IN: Final[dict[str, JsonValue]] = {
    "providerId": "5eedc0de0000000000000001",
    "username": "user_good",
    "password": "as the sandbox tells it at its start",
}
_CHOICE: Final[dict[str, JsonValue]] = {"serviceAccountIds": ["e48c5867a752b7f114e42612", "6f44c5abc9fb71cd57716b04"]}
"""The sandbox's, for whoever tries them there."""


def _whole(value: object) -> object:
    """JSON Schema takes 60.0 for an integer, and callers whose only numbers are floats write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Request(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, hide_input_in_errors=True
    )


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", validate_by_name=True)


class Hosted(_Request):
    """A page of this service walks the person through the steps and comes back to you."""

    return_url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] = Field(
        description="Where the person goes afterwards; `sessionId` and `status` are added to its query as hints. "
        "One of the deployment's own, but for the query."
    )
    cancel_url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = Field(
        None, description="Where the person goes after giving up; by default the same."
    )
    open_within: Annotated[int, Field(ge=60, le=7 * 24 * 3600), BeforeValidator(_whole)] = Field(
        24 * 3600, description="Seconds in which the page must be opened first; the session's own time begins then."
    )


class CreateSession(_Request):
    """Who the session is for; all of it optional."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"subject": "person-7"}]})

    subject: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        None, description="The host's own id of the person."
    )
    metadata: Annotated[
        dict[
            Annotated[str, StringConstraints(min_length=1, max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ],
        Field(max_length=16),
    ] = Field(default_factory=dict, description="Up to 16 keys that come back with the session.")
    ttl_seconds: Annotated[int, Field(ge=60, le=LONGEST_TTL_SECONDS), BeforeValidator(_whole)] | None = Field(
        None, description="How long the session lives; 30 minutes by default."
    )
    hosted: Hosted | None = Field(
        None, description="Answer with the address of a page that does it all, instead of a token."
    )
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, description="A page that opens its own session names its publishable client; all else is for servers."
    )


class EnterHostedPage(_Request):
    """What the page's address carried; nothing, if this browser has been there before."""

    secret: Annotated[SecretStr, Field(min_length=1, max_length=128)] | None = None
    begin: bool = False


class CreateValidation(_Request):
    """Where to sign in; username and password only for providers whose `signIn` is `password`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SIGN_IN]})

    provider_id: UpstreamId
    username: Annotated[SecretStr, Field(min_length=1, max_length=320)] | None = None
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024)] | None = None


class Consent(_Request):
    """What the person agreed to."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    accepted_at: Annotated[AwareDatetime, Field(strict=False)]


class CreateLink(_Request):
    """Which service accounts to link."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHOICE]})

    service_account_ids: Annotated[
        list[UpstreamId], Field(min_length=1, max_length=200, json_schema_extra={"uniqueItems": True})
    ]
    consent: Consent | None = None
    resend_unknown: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^att_[0-9a-f]{24}$")]], Field(max_length=50)
    ] = Field(
        default_factory=list,
        description="Attempts of unknown outcome that may be sent again; a decision of the host, never of a library.",
    )


class _Envelope(_Answer):
    status: Literal["OM200", "OM400", "OM410", "OM500"]
    message: str
    request_id: str


class _Told(_Envelope):
    code: str | None = Field(None, description="Why the step did not succeed; an open set.")
    retryable: bool | None = None
    display_message: str | None = None


class FieldProblem(_Answer):
    """One bad field."""

    field: str
    message: str


class Failure(_Envelope):
    """Any request that did not work."""

    status: Literal["OM400", "OM410", "OM500"]
    code: str = Field(description="Stable, snake_case; an open set.")
    retryable: bool = Field(description="The same request, unchanged, may succeed.")
    display_message: str | None = Field(
        description="May be shown to the person; null unless the person can do something."
    )
    errors: list[FieldProblem] | None = None
    attempts: list[str] | None = Field(None, description="`outcome_unknown`: the attempts that ended unclear.")


class AccountId(_Answer):
    """A linked service account."""

    id: str


class Outcome(_Answer):
    """The object with which the vendor's promise would settle, plus `accountId`."""

    status: Literal["OM200", "OM400", "OM410", "OM500"]
    message: str
    account_id: str | None = None
    service_accounts: list[AccountId] | None = None


class Link(_Answer):
    """A link as it was made."""

    id: str
    linked_at: datetime
    consent: dict[str, str] | None = None


class Validation(_Answer):
    """One try to sign in at one utility."""

    id: str
    state: Literal["pending", "succeeded", "rejected", "failed"]
    provider_id: str
    reason: str | None = Field(None, description="Why it was rejected or failed; an open set.")
    attempts_left: int | None = Field(None, description="Rejected: how many more passwords may be tried.")
    authorize_url: str | None = Field(None, description="OAuth: where the person signs in.")


class Session(_Answer):
    """One person's walk through the steps."""

    id: str
    state: Literal["open", "linking", "linked", "unknown", "closed", "expired"]
    created_at: datetime
    expires_at: datetime
    subject: str | None = None
    metadata: dict[str, str]
    validations: list[Validation]
    choice: list[str] | None = Field(None, description="The service accounts that were linked, or may have been.")
    link: Link | None = None
    attempts: list[str] | None = Field(None, description="`unknown`: the attempts that ended unclear.")
    outcome: Outcome | None = None


class OpenedSession(Session):
    """A session with its token, shown this once."""

    token: str = Field(repr=False, description="For the person's frontend.")


class InvitedSession(Session):
    """A session with the address of its hosted page, shown this once."""

    url: str = Field(repr=False, description="For the person alone.")


class SessionCreated(_Envelope):
    """The answer to opening a session; `url` in place of `token` if `hosted` asked for it."""

    session: OpenedSession | InvitedSession


class TokenReplaced(_Envelope):
    """The answer to replacing a session's token."""

    session: OpenedSession


class SessionShown(_Told):
    """A session as it is now; the envelope tells of its outcome once it has one."""

    session: Session


class Provider(_Answer):
    """A utility."""

    id: str
    name: str
    url: str | None
    logo: str | None = Field(description="A `data:` picture, or a path on this service.")
    sign_in: Literal["password", "oauth"]
    available: bool


class ProviderListed(_Envelope):
    """Utilities to choose from."""

    providers: list[Provider]


class ValidationShown(_Told):
    """A validation as it is now; the envelope tells how it ended."""

    validation: Validation


class UtilityAccount(_Answer):
    """A person's account at a utility."""

    id: str
    name: str | None
    provider_id: str
    validation_id: str


class Address(_Answer):
    """Where the meter is."""

    street: str | None
    city: str | None
    state: str | None
    postal_code: str | None


class ServiceAccount(_Answer):
    """One metered account."""

    id: str
    utility_account_id: str
    address: Address | None
    meter_number: str | None = None
    legal_names: list[str] | None = None


class ServiceAccountsFound(_Envelope):
    """What the person may choose from."""

    utility_accounts: list[UtilityAccount]
    service_accounts: list[ServiceAccount]


class LinkCreated(_Envelope):
    """The vendor's OM200, plus the account id and the link."""

    account_id: str
    service_accounts: list[AccountId]
    link: Link


def field_names() -> frozenset[str]:
    """Names of request fields: the only ones that an error message repeats."""
    models: list[type[BaseModel]] = [CreateSession, Hosted, EnterHostedPage, CreateValidation, CreateLink, Consent]
    fields: list[dict[str, Any]] = [dict(model.model_fields) for model in models]
    return frozenset(info.alias or name for each in fields for name, info in each.items())
