"""Step 2a: the utilities that people can choose from, cached and searched here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.clock import Clock, Millis
from service.errors import NotFound, ServiceError, StoreUnavailable
from service.link.refresh import Refresh
from service.link.tasks import Tasks
from service.link.token import TokenSource
from service.stores.connection import Store
from service.stores.locks import Locks
from service.stores.notices import Notices
from service.telemetry import log
from service.upstream.client import UpstreamClient
from service.upstream.companies import CompanyTable, is_web_address
from service.upstream.wire import Company

__all__ = ["Provider", "ProviderList", "Providers"]

FRESH_MS: Final = 5 * 60 * 1000
STALE_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Provider:
    """One utility, ready to be searched and sent."""

    company: Company
    folded_name: str
    encoded: bytes


@dataclass(frozen=True, slots=True)
class ProviderList:
    """The vendor's list at one moment.

    Attributes:
        version: Changes when the list does; part of the `ETag`.
    """

    fetched: Millis
    version: str
    providers: Sequence[Provider]

    def search(self, text: str) -> list[bytes]:
        """Encoded providers whose name contains `text`, those that begin with it first; all for an empty text."""
        folded = text.casefold().strip()
        if not folded:
            return [each.encoded for each in self.providers]
        hits = [each for each in self.providers if folded in each.folded_name]
        hits.sort(key=lambda each: not each.folded_name.startswith(folded))
        return [each.encoded for each in hits]


class Providers:
    """The shared list: fresh for five minutes, then refreshed in the background, served stale for up to a day.

    Args:
        logos_query: Ends the addresses of pictures, so that they lead to this tenant's list; empty for the first one.
    """

    def __init__(
        self,
        *,
        client: UpstreamClient,
        tokens: TokenSource,
        table: CompanyTable,
        store: Store,
        key: str,
        https_only: bool,
        logos_query: str,
        locks: Locks,
        notices: Notices,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._table = table
        self._store = store
        self._key = key
        self._https_only = https_only
        self._logos_query = logos_query
        self._clock = clock
        self._list: ProviderList | None = None
        self._refresh = Refresh(
            key=key,
            look=self._look,
            fetch=self._fetch,
            keep=self._share,
            locks=locks,
            notices=notices,
            tasks=tasks,
            clock=clock,
        )

    async def get(self, give_up: float = math.inf) -> ProviderList:
        """The list, not older than a day; waits for one as long as callers do, or until `give_up` if that comes first.

        Raises:
            ServiceError: There is none, and none can be had.
        """
        known = self._list
        age = self._clock.now() - known.fetched if known else STALE_MS
        if known is None or age >= STALE_MS:
            return await self._first(give_up)
        if age >= FRESH_MS:
            self._refresh.start_ahead()
        return known

    async def find(self, provider_id: str, give_up: float = math.inf) -> Company:
        """One utility; waits as `get`.

        Raises:
            NotFound: The vendor lists no such utility.
        """
        for provider in (await self.get(give_up)).providers:
            if provider.company.id == provider_id:
                return provider.company
        raise NotFound

    async def _first(self, give_up: float) -> ProviderList:
        try:
            return await self._refresh.join(give_up)
        except ServiceError as error:
            try:
                stale = await self._read()
            except StoreUnavailable:
                stale = None
            if stale is None:
                raise
            log.warning("providers_stale", error=error.code)
            return stale

    async def _look(self) -> ProviderList | None:
        found = await self._read()
        return found if found is not None and self._clock.now() - found.fetched < FRESH_MS else None

    async def _read(self) -> ProviderList | None:
        text = await self._store.get(self._key)
        if text is None:
            return None
        try:
            stored = orjson.loads(text)
            companies = [Company.model_validate(each) for each in stored["companies"]]
            # Another process's clock may be ahead of ours, and its list must not stay fresh for longer than ours.
            fetched = min(Millis(int(stored["fetched"])), self._clock.now())
        except (ValueError, KeyError, TypeError):
            return None
        if self._clock.now() - fetched >= STALE_MS:
            return None
        return self._adopt(companies, fetched)

    async def _fetch(self, give_up: float) -> ProviderList:
        fetched = self._clock.now()
        return self._adopt(await self._tokens.authorized(self._client.list_companies, give_up=give_up), fetched)

    async def _share(self, providers: ProviderList) -> None:
        companies = [each.company.model_dump(by_alias=True) for each in providers.providers]
        text = orjson.dumps({"fetched": providers.fetched, "companies": companies}).decode()
        await self._store.put(self._key, text, keep_ms=STALE_MS)

    def _adopt(self, companies: Sequence[Company], fetched: Millis) -> ProviderList:
        providers = [
            Provider(company, company.name.casefold(), orjson.dumps(self._view(company))) for company in companies
        ]
        providers.sort(key=lambda each: each.folded_name)
        digest = hashlib.sha256(b"\n".join(each.encoded for each in providers)).hexdigest()[:32]
        self._list = ProviderList(fetched, digest, providers)
        return self._list

    def _view(self, company: Company) -> dict[str, Any]:
        sign_in = self._table.rule(company).sign_in
        url = company.url if company.url and is_web_address(company.url, https_only=False) else None
        return {
            "id": company.id,
            "name": company.name,
            "url": url,
            "logo": self._picture(company),
            "signIn": sign_in,
            "available": sign_in == "password" or self._table.sign_in_page(company) is not None,
        }

    def _picture(self, company: Company) -> str | None:
        """The picture itself, or where we have it: a page that shows our list asks no other party for anything."""
        address = company.logo or ""
        here = f"/logos/{company.id}{self._logos_query}"
        if address.startswith("data:image/"):
            # The browser client takes pictures from here alone, by the address that it is told.
            return here if self._logos_query else address
        return here if is_web_address(address, https_only=self._https_only) else None
