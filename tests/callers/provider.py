"""An identity provider: keys, tokens, and a tiny server that publishes the keys."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

__all__ = ["AUDIENCE", "ISSUER", "Key", "Provider", "encoded", "new_ec", "new_rsa", "running_provider"]

ISSUER: Final = "https://id.shop.example/"
AUDIENCE: Final = "omniconnect"


class Key:
    """A signing key with its id."""

    def __init__(self, key_id: str, algorithm: str, private: Any, public: dict[str, Any]) -> None:
        self.id = key_id
        self.algorithm = algorithm
        self.private = private
        self.public = public | {"kid": key_id, "use": "sig", "alg": algorithm}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        headers = {"kid": self.id} | header
        return jwt.encode(claims, self.private, algorithm=self.algorithm, headers=headers)


def new_rsa(key_id: str, algorithm: str = "RS256") -> Key:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return Key(key_id, algorithm, private, RSAAlgorithm.to_jwk(private.public_key(), as_dict=True))


def new_ec(key_id: str) -> Key:
    private = ec.generate_private_key(ec.SECP256R1())
    return Key(key_id, "ES256", private, ECAlgorithm.to_jwk(private.public_key(), as_dict=True))


def encoded(part: Any) -> str:
    """One segment of a token; text is taken as it is."""
    text = part if isinstance(part, str) else json.dumps(part)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


class Provider:
    """What the server publishes, and how it behaves."""

    def __init__(self, *keys: Key) -> None:
        self.keys = list(keys)
        self.status = 200
        self.body: bytes | None = None
        self.requests: list[str] = []
        self.url = ""

    def claims(self, subject: Any = "person-1", **changes: Any) -> dict[str, Any]:
        """Good ones; a change to None leaves one out."""
        now = int(time.time())
        given = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 300} | changes
        return {name: value for name, value in given.items() if value is not None}

    def token(self, subject: str = "person-1", **changes: Any) -> str:
        return self.keys[0].sign(self.claims(subject, **changes))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.split(b" ")[1].decode())
        body = self.body if self.body is not None else json.dumps({"keys": [key.public for key in self.keys]}).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (self.status, len(body)) + body
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def running_provider(*keys: Key) -> AsyncIterator[Provider]:
    provider = Provider(*keys)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield provider
