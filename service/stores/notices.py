"""Something changed, look again: one subscription per process, however many wait.

A notice carries no state and may be lost; who waits looks after subscribing, and looks again after a while anyway.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

from service.stores.connection import Store
from service.telemetry import log

__all__ = ["Listener", "Notices", "Watch"]

_PING_SECONDS: Final = 5.0
_RECONNECT_SECONDS: Final = 0.5


class Listener(Protocol):
    """Whoever wants to know of a topic's changes."""

    def wake(self) -> None:
        """Something changed, or may have."""


class Watch:
    """Changes of one topic since this watch was made, or since the last wait."""

    def __init__(self, notices: "Notices", topic: str) -> None:
        self._changed = asyncio.Event()
        self._notices = notices
        self._topic = topic

    def __enter__(self) -> Self:
        self._notices.attach(self._topic, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notices.detach(self._topic, self)

    def wake(self) -> None:
        """Something changed, or may have."""
        self._changed.set()

    async def changed(self, seconds: float) -> None:
        """Return at the next change, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._changed.wait()
        self._changed.clear()


class Notices:
    """The subscription of this process, and those in it who wait."""

    def __init__(self, *, store: Store, channel: str) -> None:
        self._store = store
        self._channel = channel
        self._listeners: dict[str, set[Listener]] = {}
        self.subscribed = asyncio.Event()

    def watch(self, topic: str) -> Watch:
        """Watch a topic: make the watch, then look, then wait for it."""
        return Watch(self, topic)

    def attach(self, topic: str, listener: Listener) -> None:
        """Tell a listener of a topic's changes."""
        self._listeners.setdefault(topic, set()).add(listener)

    def detach(self, topic: str, listener: Listener) -> None:
        """Tell it no more."""
        listeners = self._listeners[topic]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[topic]

    def wake(self, topic: str) -> None:
        """Wake those who watch a topic in this process."""
        for listener in self._listeners.get(topic, ()):
            listener.wake()

    def wake_all(self) -> None:
        """Wake everybody: what happened while nobody listened is unknown."""
        for topic in self._listeners:
            self.wake(topic)

    async def listen(self) -> None:
        """Keep the subscription up, for as long as the process lives."""
        told = False
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 -- whatever a client raises: without this loop everybody waits too long
                if self.subscribed.is_set() or not told:
                    log.warning("notices_lost", error=type(error).__name__)
                told = True
            self.subscribed.clear()
            self.wake_all()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        await self._store.ping()  # a client of a Cluster learns of its nodes by a command, not by a subscription
        async with self._store.pubsub() as pubsub:
            async with asyncio.timeout(_PING_SECONDS):
                await pubsub.subscribe(self._channel)
            quiet = False
            while True:
                message = await pubsub.get_message(timeout=_PING_SECONDS)
                if message is None:
                    if quiet:
                        return
                    quiet = True
                    async with asyncio.timeout(_PING_SECONDS):
                        await pubsub.ping()
                    continue
                quiet = False
                if message["type"] == "subscribe":
                    self.subscribed.set()
                    self.wake_all()
                elif message["type"] == "message":
                    self.wake(message["data"])
