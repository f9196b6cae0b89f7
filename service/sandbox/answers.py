"""What the sandbox is about to answer, before anything happens to it."""

from dataclasses import dataclass
from http import HTTPStatus

import orjson

__all__ = ["Answer", "Refusal", "json_answer"]

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer; `lost` ones take effect but are never sent."""

    status: int
    body: bytes
    content_type: bytes = b"application/json; charset=utf-8"
    extra_headers: Headers = ()
    lost: bool = False

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers that the sandbox itself decides on."""
        length = str(len(self.body)).encode()
        return [(b"content-type", self.content_type), (b"content-length", length), *self.extra_headers]

    def raw(self) -> bytes:
        """The bytes of the whole answer, for cutting it at a chosen one."""
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}".encode(), b"server: omnimetic-sandbox"]
        lines += [name + b": " + value for name, value in self.headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


class Refusal(Exception):
    """A call that the vendor would not carry out; nothing has changed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def answer(self) -> Answer:
        """The refusal in words."""
        challenge: Headers = ((b"www-authenticate", b"Bearer"),) if self.status == HTTPStatus.UNAUTHORIZED else ()
        return Answer(self.status, orjson.dumps({"message": self.message}), extra_headers=challenge)


def json_answer(status: int, content: object) -> Answer:
    """An ordinary answer."""
    return Answer(status, orjson.dumps(content))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
