"""What the OpenAPI document says of answers that are no success."""

from typing import Any, Final

from service.api.envelope import HTTP_STATUS
from service.api.models import Failure

__all__ = ["failures"]

_CODES: Final[dict[int, list[str]]] = {
    status: sorted(error.code for error, its in HTTP_STATUS.items() if its == status) for status in HTTP_STATUS.values()
}


def failures(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Document failures by status; `body` adds those of every request that carries one."""
    listed = {*statuses, 406, 422, 500, *((400, 413, 415) if body else ())}
    return {
        status: {"model": Failure, "description": " or ".join(f"`{code}`" for code in _CODES[status])}
        for status in sorted(listed)
    }
