"""The keys of an identity provider: asked for seldom, at the right moments, and by so many requests at most."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm
from structlog.testing import capture_logs

from service.clock import Millis
from service.errors import UpstreamUnavailable
from service.link import identity
from service.link.identity import KeySet
from service.link.tasks import Tasks
from tests.callers.provider import new_ec

KEY = new_ec("known")
KNOWN = KEY.public
ED25519 = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
PRIVATE = ECAlgorithm.to_jwk(KEY.private, as_dict=True)


@dataclass
class Clock:
    """Stands still."""

    seconds: float = 1000.0

    def now(self) -> Millis:
        return Millis(0)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Provider:
    """Answers once it is let."""

    answers: asyncio.Event = field(default_factory=asyncio.Event)
    says: dict[str, Any] = field(default_factory=lambda: {"keys": [KNOWN]})
    asked: int = 0

    async def fetch(self) -> bytes:
        self.asked += 1
        await self.answers.wait()
        return orjson.dumps(self.says)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def provider() -> Provider:
    provider = Provider()
    provider.answers.set()
    return provider


@pytest.fixture
async def keys(provider: Provider, clock: Clock) -> AsyncIterator[KeySet]:
    tasks = Tasks()
    yield KeySet(fetch=provider.fetch, tasks=tasks, clock=clock)
    provider.answers.set()
    await tasks.drain(1)


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _finds(keys: KeySet, key_id: str) -> bool:
    found = await keys.find(key_id) is not None
    await _settle()
    return found


async def test_known_keys_are_read_again_when_ten_minutes_are_over(
    keys: KeySet, provider: Provider, clock: Clock
) -> None:
    assert await _finds(keys, "known")
    for later, asked in ((600, 1), (1, 2), (600, 2), (1, 3)):
        clock.seconds += later
        assert await _finds(keys, "known")
        assert provider.asked == asked


async def test_an_unknown_key_has_them_read_again_from_half_a_minute_on(
    keys: KeySet, provider: Provider, clock: Clock
) -> None:
    assert not await _finds(keys, "unknown")
    for later, asked in ((29.9, 1), (0.1, 2), (29.9, 2), (0.1, 3)):
        clock.seconds += later
        assert not await _finds(keys, "unknown")
        assert provider.asked == asked


async def test_as_long_as_there_are_none_they_are_asked_for_every_two_seconds(
    keys: KeySet, provider: Provider, clock: Clock
) -> None:
    provider.says = {"keys": []}
    for later, asked in ((0, 1), (1.9, 1), (0.1, 2), (1.9, 2), (0.1, 3)):
        clock.seconds += later
        with pytest.raises(UpstreamUnavailable):
            await keys.find("known")
        assert provider.asked == asked


async def test_no_more_than_fifty_requests_wait_for_a_slow_provider(
    keys: KeySet, provider: Provider, clock: Clock
) -> None:
    for asked in (1, 2):
        provider.answers.clear()
        waiting = [asyncio.create_task(keys.find("unknown")) for _ in range(50)]
        await _settle()
        with pytest.raises(UpstreamUnavailable):
            await keys.find("unknown")
        provider.answers.set()
        assert await asyncio.gather(*waiting) == [None] * 50
        assert provider.asked == asked
        clock.seconds += 30


async def test_who_has_waited_long_enough_goes_without_and_the_reading_goes_on(
    keys: KeySet, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.answers.clear()
    monkeypatch.setattr(identity, "_WAIT_SECONDS", 0.01)
    with pytest.raises(UpstreamUnavailable):
        await keys.find("known")
    provider.answers.set()
    await _settle()
    assert await _finds(keys, "known")
    assert provider.asked == 1


@pytest.mark.parametrize(
    "other",
    [KNOWN | {"use": "enc"}, PRIVATE, PRIVATE | {"use": "enc"}, KNOWN | {"kty": "oct", "k": "AQAB"}, KNOWN | {"x": 1}],
    ids=["for encryption", "private", "private, for encryption", "a shared secret", "broken"],
)
async def test_public_keys_for_signatures_are_used_and_nothing_else(
    keys: KeySet, provider: Provider, other: dict[str, Any]
) -> None:
    provider.says = {"keys": [other | {"kid": "other"}, KNOWN, ED25519 | {"kid": "of no named use"}]}
    assert [await _finds(keys, each) for each in ("known", "of no named use", "other")] == [True, True, False]


async def test_that_they_cannot_be_read_is_told_in_the_log(keys: KeySet, provider: Provider) -> None:
    provider.says = {}
    with capture_logs() as logs, pytest.raises(UpstreamUnavailable):
        await keys.find("known")
    assert logs == [{"event": "signing_keys_not_read", "error": "KeyError", "log_level": "warning"}]
