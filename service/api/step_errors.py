"""How a session or a validation ends without success. A caller reads these in an envelope; no code raises them."""

from service.errors import Fault, ServiceError

__all__ = [
    "UserClosed",
    "UtilityUnavailable",
    "ValidationCanceled",
    "ValidationInterrupted",
    "ValidationRejected",
    "ValidationTimedOut",
]


class UserClosed(ServiceError):
    """The person has given up."""

    code = "user_closed"
    message = "Rejected: User closes the widget"


class ValidationRejected(ServiceError):
    """The utility does not know this username and password."""

    code = "incorrect_credentials"
    message = "The utility rejected the username or password"
    display_message = "The username or password is not correct."


class ValidationCanceled(ServiceError):
    """The validation was given up before it was finished."""

    code = "canceled"
    message = "The validation was given up"


class UtilityUnavailable(ServiceError):
    """The utility's site, or the vendor's way to it, is broken."""

    code = "utility_unavailable"
    fault = Fault.SERVER
    message = "The utility could not be reached"
    display_message = "Your utility cannot be reached right now. Please try again later."


class ValidationTimedOut(ServiceError):
    """The validation took longer than its time limit."""

    code = "timed_out"
    fault = Fault.SERVER
    message = "The validation took too long"
    display_message = "Your utility did not answer in time. Please try again."


class ValidationInterrupted(ServiceError):
    """The process died while it sent the credentials."""

    code = "interrupted"
    fault = Fault.SERVER
    message = "The validation was interrupted"
    display_message = "Something went wrong on our side. Please try again."
