"""What is mutated, and the tests that are its proof: quick ones first, since most mutants die early."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["MODULES", "Module"]


@dataclass(frozen=True, slots=True)
class Module:
    """A module whose mutants must die.

    Attributes:
        path: From the top of the repository.
        tests: What pytest is given.
        functions: Of these alone; empty for all.
    """

    path: str
    tests: Sequence[str]
    functions: frozenset[str] = frozenset()


_LINK: Final = "tests/link"
_WIDGET: Final = "tests/callers/test_widget_api.py"
_HOSTED: Final = "tests/hosted/test_hosted_page.py"
_LIFE: Final = (
    f"{_LINK}/test_session_life.py::test_an_expired_session_takes_no_steps_and_is_readable_for_a_day",
    f"{_LINK}/test_session_life.py::test_a_closed_session_takes_no_steps_and_is_readable_for_a_day",
    f"{_LINK}/test_session_life.py::test_a_session_is_over_and_forgotten_from_the_very_moment_on",
    f"{_WIDGET}::test_expired_and_closed_sessions",
)
_OWNERSHIP: Final = tuple(
    "tests/callers/test_ownership.py"
    f"::test_what_is_anothers_looks_like_what_does_not_exist_and_reaches_nobody[{operation}]"
    for operation in ("get_session", "close_session", "get_validation", "replace_session_token", "widget_job")
)
_TENANTS: Final = (
    "tests/callers/test_scopes.py",
    "tests/callers/test_tenants.py::test_users_are_known_by_their_issuers_keys_alone",
    "tests/callers/test_tenants.py::test_the_widgets_client_id_chooses_the_tenant_and_takes_no_other_tenants_session",
    "tests/callers/test_tenants.py::test_a_picture_is_found_in_its_own_tenants_list",
)
_USERS: Final = tuple(
    f"tests/callers/test_user_tokens.py::{name}"
    for name in (
        "test_a_user_opens_reads_and_closes_a_session_of_its_own[RS256]",
        "test_a_user_acts_in_no_session_and_makes_no_tokens",
        "test_a_publishable_id_beside_a_users_token_is_ignored",
        "test_without_a_provider_no_users_token_is_good",
    )
)
_SHARES: Final = tuple(
    f"tests/callers/test_limits.py::{name}"
    for name in (
        "test_a_client_has_its_share_whatever_the_address",
        "test_a_subject_has_its_share",
        "test_a_key_has_its_share",
        "test_guessing_is_slowed_down_by_address",
        "test_session_routes_tell_what_is_left",
        "test_servers_are_told_no_quota_of_a_session",
        "test_servers_and_users_have_shares_of_their_own_in_reading_a_session",
        "test_a_session_has_its_share_over_both_apis",
    )
)
_REQUESTS: Final = tuple(
    f"{_LINK}/test_link_requests.py::{name}"
    for name in (
        "test_another_choice_that_overlaps_is_refused_while_the_first_is_being_linked",
        "test_joiners_share_how_the_call_ended",
        "test_what_is_linked_replays_and_says_so",
        "test_what_another_session_linked_is_linked_without_a_call",
        "test_of_what_is_partly_linked_one_call_links_the_rest",
        "test_a_session_links_once",
        "test_a_session_that_was_closed_says_so_whatever_is_chosen",
        "test_what_the_person_agreed_to_is_kept_with_the_link",
        "test_a_key_names_one_request",
        "test_accounts_that_the_session_never_learned_are_not_found",
        "test_a_lost_answer_sticks_until_the_caller_decides_to_send_again",
        "test_an_unknown_session_links_no_other_choice_and_cannot_be_closed",
        "test_a_session_takes_a_hundred_idempotency_keys",
        "test_a_session_cannot_be_closed_while_its_call_is_under_way",
        "test_after_a_confirmed_close_nothing_is_sent",
    )
)
_ANSWERS: Final = tuple(
    f"{_LINK}/test_link_upstream_answers.py::{name}"
    for name in (
        "test_after_a_refusal_another_choice_may_be_made_and_the_session_closed",
        "test_a_complete_401_is_repeated_once_with_a_new_token",
        "test_a_second_401_is_om410_and_nothing_sticks",
        "test_a_401_that_breaks_off_means_unknown",
        "test_without_a_token_nothing_is_sent_and_nothing_sticks",
    )
)

MODULES: Final = (
    Module(
        "service/link/access.py",
        (
            f"{_LINK}/test_access_credentials.py",
            "tests/callers/test_publishable_clients.py",
            *_LIFE,
            *_OWNERSHIP,
            *_TENANTS,
            *_USERS,
            *_SHARES,
        ),
    ),
    Module(
        "service/api/caller.py",
        (
            "tests/api/test_policies.py",
            f"{_LINK}/test_access_credentials.py",
            "tests/callers/test_publishable_clients.py",
            *_OWNERSHIP,
            *_TENANTS,
            *_USERS,
            *_SHARES,
            f"{_HOSTED}::test_the_same_browser_goes_on_without_the_secret",
            f"{_HOSTED}::test_opening_pages_is_limited_by_address",
            f"{_WIDGET}::test_expired_and_closed_sessions",
            f"{_WIDGET}::test_a_widget_that_is_opened_again_still_sends_its_old_token",
        ),
    ),
    Module("service/link/identity.py", (f"{_LINK}/test_signing_keys.py", "tests/callers/test_user_tokens.py")),
    Module(
        "service/link/clients.py",
        ("tests/callers/test_publishable_clients.py", "tests/callers/test_cors.py"),
    ),
    Module(
        "service/link/token.py",
        (f"{_LINK}/test_token_life.py", f"{_LINK}/test_token_sharing.py", f"{_LINK}/test_give_up.py"),
    ),
    Module("service/stores/tokens.py", (f"{_LINK}/test_token_sharing.py",)),
    Module(
        "service/link/refresh.py",
        (f"{_LINK}/test_token_sharing.py", f"{_LINK}/test_give_up.py", "tests/faults/test_refresh_strikes.py"),
    ),
    Module(
        "service/link/validate.py",
        (
            f"{_LINK}/test_validation_results.py",
            f"{_LINK}/test_validation_faults.py",
            f"{_LINK}/test_give_up.py",
            "tests/callers/test_lockout.py",
            "tests/upstream/test_breaker.py",
            f"{_LINK}/test_session_life.py",
            *_OWNERSHIP,
        ),
    ),
    Module(
        "service/link/attempt.py",
        (
            f"{_LINK}/test_link_settlement.py",
            f"{_LINK}/test_link_in_time.py",
            f"{_LINK}/test_link_store_lost.py",
            *_REQUESTS,
            *_ANSWERS,
        ),
    ),
    Module(
        "service/link/attach.py",
        (
            f"{_LINK}/test_link_settlement.py",
            f"{_LINK}/test_link_in_time.py",
            f"{_LINK}/test_link_store_lost.py",
            *_REQUESTS,
            *_ANSWERS,
        ),
    ),
    Module(
        "service/link/settle.py",
        (
            f"{_HOSTED}::test_what_a_browser_began_before_another_took_over_does_not_reach_its_session",
            f"{_LINK}/test_link_settlement.py",
            f"{_LINK}/test_link_in_time.py",
            f"{_LINK}/test_link_store_lost.py",
            *_REQUESTS,
        ),
    ),
    Module(
        "service/telemetry.py",
        (
            "tests/test_telemetry.py",
            "tests/test_canary.py::test_log_lines_of_libraries_show_no_values",
            "tests/test_canary.py::test_a_log_that_cannot_be_written_stops_nothing",
        ),
    ),
    Module(
        "service/stores/guards.py",
        (f"{_LINK}/test_guard_scripts.py", f"{_LINK}/test_link_settlement.py", f"{_LINK}/test_link_store_lost.py"),
    ),
    Module("service/stores/sealing.py", ("tests/stores/test_sealing.py", f"{_LINK}/test_token_sharing.py")),
    Module(
        "service/link/limits.py",
        (
            "tests/callers/test_lockout.py",
            "tests/callers/test_limits.py",
            "tests/callers/test_tenants.py::test_what_one_tenant_has_used_up_the_other_still_has",
            "tests/callers/test_tenants.py::test_the_first_tenants_keys_in_redis_keep_their_names",
            f"{_HOSTED}::test_opening_pages_is_limited_by_address",
        ),
    ),
    Module("service/link/usernames.py", (f"{_LINK}/test_usernames.py",)),
    Module(
        "service/api/envelope.py",
        (
            "tests/api/test_envelope_errors.py",
            *_REQUESTS,
            *_SHARES,
            f"{_LINK}/test_session_life.py::test_a_new_session_is_told_once_with_its_token",
        ),
    ),
    Module(
        "service/app.py",
        ("tests/api/test_canary.py", "tests/api/test_envelope_errors.py"),
        functions=frozenset({"_render_invalid_request", "_field_error"}),
    ),
)
