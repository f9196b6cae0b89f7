"""What can go wrong, as types: each class owns its stable code and its safe sentence.

Only `service.api.envelope` knows which HTTP status and which OM status belongs to which class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

__all__ = [
    "AlreadyInProgress",
    "BodyTooLarge",
    "Fault",
    "FieldError",
    "Forbidden",
    "IdempotencyKeyReused",
    "InternalError",
    "InvalidRequest",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "OutcomeUnknown",
    "Overloaded",
    "RateLimited",
    "ServiceError",
    "SessionClosed",
    "SessionExpired",
    "ShuttingDown",
    "StoreUnavailable",
    "TooManyAttempts",
    "Unauthenticated",
    "UnsupportedMediaType",
    "UpstreamBusy",
    "UpstreamCredentialsRejected",
    "UpstreamError",
    "UpstreamLate",
    "UpstreamMalformed",
    "UpstreamShut",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "ValidationRequired",
]


_PENDING_SECONDS: Final = 5
"""Until one of several pending validations may have finished."""


class Fault(Enum):
    """Whose fault it is; decides the OM status of the answer."""

    CALLER = "OM400"
    CREDENTIALS = "OM410"
    SERVER = "OM500"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field of a request. Never carries the value."""

    field: str
    message: str


class ServiceError(Exception):
    """Anything that ends a request without success.

    Attributes:
        code: Stable and snake_case; clients branch on it.
        message: English, for developers; never holds a value that came from outside.
        display_message: May be shown to the person; None unless the person can do something.
        retryable: The same request, unchanged, may succeed.
        retry_after: Seconds to wait first, told as `Retry-After`.
    """

    code: ClassVar[str]
    fault: ClassVar[Fault] = Fault.CALLER
    message: str
    display_message: str | None = None
    retryable: bool = False
    retry_after: int | None = None

    def __init__(self, message: str | None = None, *, retry_after: int | None = None) -> None:
        if message is not None:
            self.message = message
        if retry_after is not None:
            self.retry_after = retry_after
        super().__init__(self.message)


class MalformedRequest(ServiceError):
    """The request could not be read at all."""

    code = "malformed_request"
    message = "The request body is not valid JSON"


class InvalidRequest(ServiceError):
    """The request could be read, but its fields are wrong."""

    code = "invalid_request"
    message = "The request has invalid fields"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__()
        self.errors = tuple(errors)


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    message = "This method is not allowed here"

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = allowed


class NotAcceptable(ServiceError):
    """The caller accepts no JSON."""

    code = "not_acceptable"
    message = "Only application/json is produced"


class BodyTooLarge(ServiceError):
    """The request body is over the limit."""

    code = "body_too_large"
    message = "The request body is too large"


class UnsupportedMediaType(ServiceError):
    """The request body is not declared as JSON."""

    code = "unsupported_media_type"
    message = "The request body must be application/json"


class Unauthenticated(ServiceError):
    """No credential, or one that is not good (any more)."""

    code = "unauthenticated"
    message = "A valid bearer credential is required"


class Forbidden(ServiceError):
    """A known caller that lacks the right."""

    code = "forbidden"
    message = "This credential may not do this"


class NotFound(ServiceError):
    """Unknown, or somebody else's: the two look the same."""

    code = "not_found"
    message = "Not found"


class SessionClosed(ServiceError):
    """The session has ended, so no further step is possible in it."""

    code = "session_closed"
    message = "The session has ended"


class SessionExpired(ServiceError):
    """The session's lifetime is over."""

    code = "session_expired"
    message = "The session has expired"
    display_message = "This took too long. Please start again."


class AlreadyInProgress(ServiceError):
    """Another choice is being linked, or this provider is already being validated."""

    code = "already_in_progress"
    message = "This is already in progress"
    retryable = True
    retry_after = 1

    def __init__(self, message: str | None = None, *, location: str | None = None) -> None:
        super().__init__(message)
        self.location = location


class ValidationRequired(ServiceError):
    """No validation of this session has succeeded yet."""

    code = "validation_required"
    message = "No validation of this session has succeeded yet"


class IdempotencyKeyReused(ServiceError):
    """The same idempotency key came with a different request."""

    code = "idempotency_key_reused"
    message = "This Idempotency-Key was used for a different request"


class _Limited(ServiceError):
    """A limit was reached.

    Attributes:
        policy: Names the limit.
        limit: How many are allowed...
        window: ...in how many seconds.
    """

    def __init__(self, *, policy: str, limit: int, window: int, retry_after: int) -> None:
        super().__init__(retry_after=retry_after)
        self.policy = policy
        self.limit = limit
        self.window = window


class RateLimited(_Limited):
    """Too many requests of one kind in a window of time."""

    code = "rate_limited"
    message = "Too many requests"
    retryable = True


class TooManyAttempts(_Limited):
    """A limit that protects utility accounts from being locked by wrong passwords, or opened by stolen ones."""

    code = "too_many_attempts"
    message = "Too many attempts"
    display_message: str | None = "Too many attempts. Please try again later."

    @classmethod
    def pending(cls, *, limit: int) -> "TooManyAttempts":
        """Too many validations at the same time: it helps to wait until one of them has finished."""
        error = cls(policy="pending", limit=limit, window=_PENDING_SECONDS, retry_after=_PENDING_SECONDS)
        error.message = f"{limit} validations of this session are pending; wait for one to finish, or give one up"
        error.display_message = None
        error.retryable = True
        return error

    @classmethod
    def keys(cls, *, limit: int, seconds: int) -> "TooManyAttempts":
        """Too many names for requests to link; those that were used before are still good."""
        error = cls(policy="idempotency-keys", limit=limit, window=seconds, retry_after=seconds)
        error.message = f"This session has seen {limit} values of Idempotency-Key; use one of them, or none"
        error.display_message = None
        return error


class UpstreamCredentialsRejected(ServiceError):
    """The upstream refuses this service's own client id and secret."""

    code = "upstream_credentials_rejected"
    fault = Fault.CREDENTIALS
    message = "The upstream rejected the client id and secret of this service"


class UpstreamError(ServiceError):
    """The upstream gave a clear answer, and it was no."""

    code = "upstream_error"
    fault = Fault.SERVER
    message = "The upstream refused the call"
    retryable = True

    def __init__(self, status: int, *, retry_after: int | None = None) -> None:
        super().__init__(retry_after=retry_after)
        self.status = status


class UpstreamMalformed(ServiceError):
    """The upstream answered something that is not its protocol."""

    code = "upstream_malformed"
    fault = Fault.SERVER
    message = "The upstream gave an answer that makes no sense"
    retryable = True


class UpstreamUnavailable(ServiceError):
    """The upstream could not be reached, or broke off."""

    code = "upstream_unavailable"
    fault = Fault.SERVER
    message = "The upstream could not be reached"
    retryable = True
    retry_after = 5


class Overloaded(ServiceError):
    """Too much is under way: this was not even begun."""

    code = "overloaded"
    fault = Fault.SERVER
    message = "Too many requests are under way"
    retryable = True
    retry_after: int | None = 1


class UpstreamBusy(Overloaded):
    """Too many calls to the upstream are under way: this one had no turn in time, and nothing of it was sent."""

    message = "Too many calls to the upstream are under way"


class UpstreamShut(UpstreamBusy):
    """The upstream is left alone for a while, since it fails: nothing of this call was sent.

    To the caller it is the same as `UpstreamUnavailable`; not so to what decides whether a call may have taken effect.
    """

    code = UpstreamUnavailable.code
    message = "The upstream fails, and is left alone for a while"
    retry_after = 5


class UpstreamTimeout(ServiceError):
    """The upstream took too long to answer a read."""

    code = "upstream_timeout"
    fault = Fault.SERVER
    message = "The upstream took too long"
    retryable = True


class UpstreamLate(UpstreamBusy):
    """What came before this call took too long, and nobody waits for it any more: nothing of it was sent.

    To the caller it is the same as `UpstreamTimeout`; not so to what decides whether a call may have taken effect.
    """

    code = UpstreamTimeout.code
    message = UpstreamTimeout.message
    retry_after = None


class StoreUnavailable(ServiceError):
    """Redis did not answer in time, or refused.

    Attributes:
        done: What was asked for was done, but may be lost with its server: too few replicas have it.
    """

    code = "store_unavailable"
    fault = Fault.SERVER
    message = "The store could not be reached"
    retryable = True
    retry_after = 5

    def __init__(self, message: str | None = None, *, done: bool = False) -> None:
        super().__init__(message)
        self.done = done


class ShuttingDown(ServiceError):
    """This process is about to stop and takes no new work."""

    code = "shutting_down"
    fault = Fault.SERVER
    message = "This instance is shutting down"
    retryable = True
    retry_after = 1


class OutcomeUnknown(ServiceError):
    """A call that acts was sent and no clear answer came.

    Attributes:
        attempts: The unclear attempts; a caller who decides to send again names them in `resendUnknown`.
    """

    code = "outcome_unknown"
    fault = Fault.SERVER
    message = "The call was sent, but its outcome is unknown"
    display_message = "We could not confirm what your utility did. Please contact support before trying again."

    def __init__(self, attempts: Sequence[str] = ()) -> None:
        super().__init__()
        self.attempts = tuple(sorted(attempts))


class InternalError(ServiceError):
    """A bug of this service; details stand in the log under the request id."""

    code = "internal_error"
    fault = Fault.SERVER
    message = "Internal error"
