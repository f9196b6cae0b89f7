"""Ownership and permission checks, each removed by hand: the tests that are named for it must go red, every time."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.mutants.making import copy_of_repository
from tests.mutants.running import Broken

__all__ = ["CHECKS", "NAME", "Check", "run"]

NAME: Final = "checks"
_SECONDS: Final = 240.0
_FAILED: Final = 1

_ACCESS: Final = "service/link/access.py"
_LUA: Final = "service/stores/lua"
_CREDENTIALS: Final = "tests/link/test_access_credentials.py"
_PAGES: Final = "tests/callers/test_publishable_clients.py"
_USERS: Final = "tests/callers/test_user_tokens.py"
_SCOPES: Final = "tests/callers/test_scopes.py::test_a_key_does_what_its_scopes_name_and_nothing_else"
_TENANTS: Final = "tests/callers/test_tenants.py"
_WIDGET: Final = "tests/callers/test_widget_api.py"
_HOSTED: Final = "tests/hosted/test_hosted_page.py"
_GUARDS: Final = "tests/link/test_guard_scripts.py"


def _matrix(operation: str) -> str:
    """The row of the ownership matrix."""
    name = "test_what_is_anothers_looks_like_what_does_not_exist_and_reaches_nobody"
    return f"tests/callers/test_ownership.py::{name}[{operation}]"


_READABLE: Final = "__import__('service.api.caller', fromlist=['*']).ReadableSession"


@dataclass(frozen=True, slots=True)
class Check:
    """A check, and how the code looks without it.

    Attributes:
        code: Stands in the file exactly once.
        tests: At least one of them must fail.
        second: File, code and replacement of another lock at the same door: each of the two holds by itself.
    """

    what: str
    path: str
    code: str
    without: str
    tests: Sequence[str]
    second: tuple[str, str, str] | None = None


CHECKS: Final = (
    Check(
        "a session's token is compared",
        _ACCESS,
        "if not hmac.compare_digest(session.token_hash, presented):",
        "if False:",
        (f"{_CREDENTIALS}::test_a_new_token_kills_the_old_one",),
    ),
    Check(
        "a session's token opens sessions of its tenant alone",
        _ACCESS,
        "if session.tenant not in self._tenants or self._is_forgotten(session):",
        "if self._is_forgotten(session):",
        (f"{_CREDENTIALS}::test_another_tenants_session_looks_unknown",),
    ),
    Check(
        "a session that is forgotten lets nobody in",
        _ACCESS,
        "if session.tenant not in self._tenants or self._is_forgotten(session):",
        "if session.tenant not in self._tenants:",
        (f"{_WIDGET}::test_expired_and_closed_sessions", "tests/link/test_session_life.py"),
    ),
    Check(
        "a token acts in its own session",
        _ACCESS,
        "if caller.session.id != session_id:",
        "if False:",
        (_matrix("get_validation"),),
    ),
    Check(
        "nobody but a session's token acts in it",
        _ACCESS,
        "        if not isinstance(caller, SessionCaller):\n            raise Forbidden\n        if caller.session.id",
        "        if caller.session.id",
        (_matrix("list_service_accounts"),),
    ),
    Check(
        "a user reads its own sessions",
        _ACCESS,
        "if subject is not None and session.subject != subject:",
        "if False:",
        (_matrix("get_session"),),
    ),
    Check(
        "a server reads sessions of its tenant",
        _ACCESS,
        "if session.tenant != tenant or self._is_forgotten(session):",
        "if self._is_forgotten(session):",
        (f"{_CREDENTIALS}::test_another_tenants_session_looks_unknown",),
    ),
    Check(
        "a page reads no session",
        _ACCESS,
        "            case ClientCaller():\n                raise Forbidden",
        "            case ClientCaller():\n"
        '                return await self.tenant_session(session_id, caller.client.tenant, reader="page")',
        (f"{_PAGES}::test_a_page_that_named_its_client_could_read_no_session_either",),
    ),
    Check(
        "a session's token opens no session",
        _ACCESS,
        "            case SessionCaller():\n                raise Forbidden",
        "            case SessionCaller():\n                return KeyCaller(ApiKey('any', caller.tenant))",
        (f"{_CREDENTIALS}::test_a_session_token_opens_no_sessions_and_makes_no_tokens",),
    ),
    Check(
        "what only servers may do is refused to others",
        _ACCESS,
        "        if not isinstance(caller, KeyCaller):\n            raise Forbidden\n        self.require_scope",
        "        if not isinstance(caller, KeyCaller):\n"
        "            caller = KeyCaller(ApiKey('any', caller.tenant))\n        self.require_scope",
        (f"{_CREDENTIALS}::test_a_session_token_opens_no_sessions_and_makes_no_tokens",),
    ),
    *(
        Check(f"a key without the scope {what}", path, code, without, (_SCOPES,))
        for what, path, code, without in (
            (
                "opens no sessions",
                _ACCESS,
                "                self.require_scope(caller, Scope.SESSIONS_WRITE)\n                await self._doors",
                "                await self._doors",
            ),
            (
                "makes no tokens",
                _ACCESS,
                "        self.require_scope(caller, scope)\n        return caller",
                "        return caller",
            ),
            (
                "neither reads nor ends a session",
                _ACCESS,
                "                self.require_scope(caller, scope)\n                return await self.tenant_session",
                "                return await self.tenant_session",
            ),
            (
                "lists no providers",
                "service/api/caller.py",
                "    _access(request).require_scope(caller, Scope.PROVIDERS_READ)\n",
                "",
            ),
        )
    ),
    Check(
        "who may read a session may not end it",
        "service/api/caller.py",
        "await _identify(request), Scope.SESSIONS_WRITE)\n\n\nasync def key_session",
        "await _identify(request), Scope.SESSIONS_READ)\n\n\nasync def key_session",
        (_SCOPES,),
    ),
    Check(
        "who may open and end sessions may not make tokens of them",
        "service/api/caller.py",
        "await _identify(request), Scope.SESSIONS_TOKENS)",
        "await _identify(request), Scope.SESSIONS_WRITE)",
        (_SCOPES,),
    ),
    Check(
        "what a caller reads is counted within its tenant",
        _ACCESS,
        'reader=f"{tenant}:{reader}"',
        "reader=reader",
        (f"{_TENANTS}::test_nobody_uses_up_the_reads_of_another_tenants_caller_of_the_same_name",),
    ),
    Check(
        "an unknown API key lets nobody in",
        _ACCESS,
        "        if key is None:\n            raise Unauthenticated",
        "        if key is None:\n            key = next(iter(self._api_keys.values()))",
        (f"{_CREDENTIALS}::test_nobody_gets_in_without_a_good_credential",),
    ),
    Check(
        "without a provider no user's token is taken",
        _ACCESS,
        "            if users is None:\n                raise Unauthenticated",
        "            if users is None:\n                return UserCaller('anybody', next(iter(self._tenants)))",
        (f"{_USERS}::test_without_a_provider_no_users_token_is_good",),
    ),
    Check(
        "the widget takes no step in a session that is over",
        _ACCESS,
        "if state_of(caller.session, self._clock.now()) is State.EXPIRED:",
        "if False:",
        (f"{_WIDGET}::test_expired_and_closed_sessions",),
    ),
    Check(
        "a client is known from its own pages alone",
        "service/link/clients.py",
        "or origin not in client.origins",
        "",
        (f"{_PAGES}::test_every_other_page_gets_the_same_401",),
    ),
    Check(
        "a client that is switched off is unknown",
        "service/link/clients.py",
        "or not client.enabled",
        "",
        (f"{_PAGES}::test_every_other_page_gets_the_same_401",),
    ),
    *(
        Check(
            f"a user's token: {what}",
            "service/link/identity.py",
            code,
            without,
            (f"{_USERS}::test_a_forged_token_opens_nothing",),
        )
        for what, code, without in (
            ("only algorithms of the list", 'header.get("alg") not in self._rules.algorithms or ', ""),
            ("for this audience", "audience=self._rules.audience,", ""),
            ("with an end", '"require": ["exp", ', '"require": ['),
            ("its signature", 'options={"require"', 'options={"verify_signature": False, "require"'),
        )
    ),
    Check(
        "a user's token: from an issuer of ours",
        "service/link/identity.py",
        "issuer=self._rules.issuer,",
        "",
        (f"{_USERS}::test_a_forged_token_opens_nothing",),
        second=(_ACCESS, "self._users.get(issuer_of(credential))", "next(iter(self._users.values()))"),
    ),
    Check(
        "a session links what it was told of",
        "service/link/attach.py",
        "if not self._accounts.learned(session).issuperset(choice.accounts):",
        "if False:",
        (_matrix("create_link"), _matrix("widget_link")),
    ),
    Check(
        "a validation belongs to its session",
        "service/link/validate.py",
        "if validation.id == validation_id:",
        "if validation.id:",
        (_matrix("get_validation"),),
    ),
    Check(
        "a job belongs to its session",
        "service/api/widget.py",
        "if each.job_id == job_id",
        "if each.job_id",
        (_matrix("widget_job"),),
    ),
    Check(
        "a utility account belongs to its session",
        "service/api/widget.py",
        'if each["id"] == account_id',
        'if each["id"]',
        (_matrix("widget_utility_account"),),
    ),
    Check(
        "the widget links to its session's account",
        "service/api/widget.py",
        "if account_id != session.account_id:",
        "if False:",
        (f"{_WIDGET}::test_another_upstream_account_is_404",),
    ),
    Check(
        "a page with a session's token needs to be a known page as well",
        "service/api/widget.py",
        "caller = await door.admit(wanted.client_id)",
        "secret = wanted.secret.get_secret_value()\n"
        "    with_token = secret.startswith(SESSION_TOKEN_PREFIX)\n"
        "    caller = await door.access.session_of(secret) if with_token else await door.admit(wanted.client_id)",
        (f"{_WIDGET}::test_a_session_token_needs_a_good_page_too_and_must_live",),
    ),
    Check(
        "a page takes up sessions of its own tenant",
        "service/api/widget.py",
        "        if holder.tenant != caller.tenant:\n            raise Unauthenticated\n",
        "",
        (f"{_TENANTS}::test_the_widgets_client_id_chooses_the_tenant_and_takes_no_other_tenants_session",),
    ),
    *(
        Check(
            f"only a session's own token {what}",
            f"service/api/{module}.py",
            code,
            code.replace("OwnSession", _READABLE),
            (_matrix(operation),),
        )
        for what, module, operation, code in (
            ("reads its accounts", "accounts", "list_service_accounts", "session: OwnSession"),
            ("validates", "validations", "create_validation", "session: OwnSession, wanted: CreateValidation"),
            (
                "reads a validation",
                "validations",
                "get_validation",
                "get_validation(request: Request, session: OwnSession",
            ),
            (
                "gives a validation up",
                "validations",
                "cancel_validation",
                "cancel_validation(request: Request, session: OwnSession",
            ),
            ("links", "links", "create_link", "session: OwnSession"),
            ("listens", "events", "stream_events", "session: OwnSession"),
        )
    ),
    Check(
        "a stream ends with the token that opened it",
        "service/link/events.py",
        "if session is None or session.token_hash != self._token:",
        "if session is None:",
        ("tests/events/test_stream.py::test_a_replaced_token_ends_its_streams",),
    ),
    Check(
        "only servers make tokens",
        "service/api/sessions.py",
        "session: KeySession",
        "session: ReadableSession",
        (_matrix("replace_session_token"),),
    ),
    Check(
        "only servers invite to pages",
        "service/link/sessions.py",
        "        if not isinstance(caller, KeyCaller):\n            raise Forbidden\n        self._return_urls",
        "        self._return_urls",
        (f"{_HOSTED}::test_only_a_hosts_server_asks_for_a_page",),
    ),
    Check(
        "people are sent to addresses of the settings alone",
        "service/link/sessions.py",
        "        self._return_urls.require(page)\n",
        "",
        (f"{_HOSTED}::test_people_are_sent_nowhere_else",),
    ),
    Check(
        "a browser's cookie enters for the page itself alone",
        "service/api/hosted.py",
        'if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":',
        "if False:",
        (f"{_HOSTED}::test_the_cookie_does_nothing_for_a_sibling_site",),
    ),
    Check(
        "only servers say for whom a session is",
        "service/link/sessions.py",
        "if not isinstance(caller, KeyCaller) and (subject is not None or metadata or ttl_seconds is not None):",
        "if False:",
        (
            f"{_USERS}::test_a_user_decides_nothing_of_its_session",
            f"{_PAGES}::test_a_page_decides_nothing_of_its_session",
        ),
    ),
    Check(
        "a user's session is the user's",
        "service/link/sessions.py",
        'return "user", caller.tenant, caller.subject',
        'return "user", caller.tenant, subject',
        (f"{_USERS}::test_a_user_opens_reads_and_closes_a_session_of_its_own",),
    ),
    Check(
        "a hosted page's session gets its token from the page alone",
        "service/link/sessions.py",
        "        if session.hosted is not None:\n            raise Forbidden\n",
        "",
        (f"{_HOSTED}::test_its_token_comes_from_the_page_alone",),
    ),
    Check(
        "a browser closes what is its own by then",
        "service/link/settle.py",
        "            if session.browser != asked.browser:\n                raise NotFound\n",
        "",
        (f"{_HOSTED}::test_what_a_browser_began_before_another_took_over_does_not_reach_its_session",),
    ),
    Check(
        "a page opens with its secret",
        f"{_LUA}/hosted_enter.lua",
        "if not known and secret ~= ARGV[2] then return 'refused' end",
        "",
        (f"{_HOSTED}::test_nobody_enters_without_secret_or_cookie",),
    ),
    Check(
        "a browser is known by its cookie",
        f"{_LUA}/hosted_enter.lua",
        "local known = browser and browser == ARGV[3]",
        "local known = browser",
        (
            f"{_HOSTED}::test_nobody_enters_without_secret_or_cookie",
            f"{_HOSTED}::test_another_browser_starts_anew_and_sees_nothing_earlier",
        ),
    ),
    Check(
        "a page is its tenant's",
        f"{_LUA}/hosted_enter.lua",
        "not ours or ",
        "",
        (f"{_HOSTED}::test_another_tenants_page_is_unknown",),
    ),
    Check(
        "another browser sees nothing of the one before",
        f"{_LUA}/hosted_enter.lua",
        "if #found > 0 then redis.call('HDEL', KEYS[1], unpack(found)) end",
        "",
        (f"{_HOSTED}::test_another_browser_starts_anew_and_sees_nothing_earlier",),
    ),
    *(
        Check(
            f"the browser before {what}",
            f"{_LUA}/{script}.lua",
            code,
            without,
            (f"{_HOSTED}::test_what_a_browser_began_before_another_took_over_does_not_reach_its_session",),
        )
        for what, script, code, without in (
            (
                "validates no more",
                "validation_add",
                "if (session['browser'] or '') ~= ARGV[14] then return {'missing'} end",
                "",
            ),
            ("links no more", "link_begin", " or (redis.call('HGET', KEYS[1], 'browser') or '') ~= ARGV[9]", ""),
            (
                "closes no more",
                "session_close",
                "if (redis.call('HGET', KEYS[1], 'browser') or '') ~= ARGV[5] then return 'missing' end",
                "",
            ),
            (
                "keeps no accounts",
                "accounts_put",
                "if (redis.call('HGET', KEYS[1], 'browser') or '') ~= ARGV[1] then return 0 end",
                "",
            ),
        )
    ),
    Check(
        "a sealed value opens in its place alone",
        "service/stores/sealing.py",
        "raw[_NONCE_BYTES:], place.encode())",
        "raw[_NONCE_BYTES:], b'')",
        ("tests/stores/test_sealing.py::test_it_opens_where_it_was_sealed_and_nowhere_else",),
    ),
    Check(
        "an attempt marks what it holds",
        f"{_LUA}/guard_mark.lua",
        "(r[1] ~= me or r[2])",
        "r[2]",
        (f"{_GUARDS}::test_a_mark_needs_every_account_and_gives_the_others_back",),
    ),
    Check(
        "an attempt waits for who holds its choice",
        f"{_LUA}/guard_claim.lua",
        "if held then return {'held', held, tostring(left)} end",
        "",
        (f"{_GUARDS}::test_the_same_choice_waits_for_the_attempt_that_holds_it",),
    ),
    Check(
        "a late result frees nothing of another attempt",
        f"{_LUA}/guard_result.lua",
        "if mine then redis.call",
        "if true then redis.call",
        (f"{_GUARDS}::test_a_late_result_does_not_free_what_another_attempt_sends",),
    ),
    Check(
        "only the token that was refused is dropped",
        f"{_LUA}/token_drop.lua",
        "if redis.call('HGET', KEYS[1], 'version') == ARGV[1] then return",
        "if true then return",
        ("tests/link/test_token_sharing.py::test_a_newer_token_is_never_dropped",),
    ),
    Check(
        "an address is believed of trusted proxies alone",
        "service/app.py",
        "trusted_hosts=_networks(settings.trusted_proxies)",
        'trusted_hosts="*"',
        ("tests/callers/test_limits.py::test_what_a_stranger_puts_before_the_proxys_word_counts_nothing",),
    ),
    Check(
        "metrics are shown to a listener of their own alone",
        "service/api/dispatch.py",
        "return route.kind is not RouteKind.METRICS",
        "return True",
        ("tests/api/test_operations.py::test_operations_have_a_listener_of_their_own",),
    ),
    Check(
        "browsers let the answers be read by registered pages alone",
        "service/api/cors.py",
        "allow_origins=sorted(origins)",
        'allow_origins=["*"]',
        ("tests/callers/test_cors.py::test_no_other_origin_is_let_in",),
    ),
)


def run(console: Console, checks: Sequence[Check] = CHECKS) -> bool:
    """Remove one check after the other; whether each was noticed to be missing."""
    with tempfile.TemporaryDirectory(prefix="checks-") as directory:
        place = Path(directory)
        copy_of_repository(place)
        if _pytest(place, sorted({test for check in checks for test in check.tests})) != 0:
            raise Broken("the tests of the checks do not pass with all of them in place")
        unmissed = [check for check in checks if not _missed(place, check)]
    for check in unmissed:
        console.print(f"nobody misses: {check.what} ({check.path})", style="red", markup=False)
    console.print(f"{len(checks)} ownership checks removed, {len(checks) - len(unmissed)} noticed by tests")
    return not unmissed


def _missed(place: Path, check: Check) -> bool:
    with ExitStack() as stack:
        for path, code, without in ((check.path, check.code, check.without), *filter(None, [check.second])):
            stack.enter_context(_removed(place / path, code, without))
        return _pytest(place, check.tests) == _FAILED


@contextmanager
def _removed(path: Path, code: str, without: str) -> Iterator[None]:
    text = path.read_text(encoding="utf-8")
    if text.count(code) != 1:
        raise Broken(f"{path} does not hold this once: {code}")
    try:
        path.write_text(text.replace(code, without), encoding="utf-8")
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def _pytest(place: Path, tests: Sequence[str]) -> int:
    # Without bytecode: two versions of a file within one second and of one length would share it.
    return subprocess.run(  # noqa: S603 -- our own command
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-o",
            "addopts=",
            "-p",
            "no:schemathesis",
            "-p",
            "no:cacheprovider",
            *tests,
        ],
        cwd=place,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_SECONDS,
        check=False,
    ).returncode
