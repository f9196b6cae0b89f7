import json
import signal
from collections.abc import Callable

import httpx
import pytest

from tests.cli.conftest import Running, run, until
from tests.plain import NO_TLS
from tests.walk import sign_in

pytestmark = pytest.mark.xdist_group("sandbox command")
Start = Callable[..., Running]

RESOLVED = '"status":"OM200","message":"Resolved: User account(s) successfully linked"'


@pytest.fixture(scope="session")
def levers(sandbox: str) -> str:
    """The levers of the upstream behind the sandbox."""
    page = open_sign_in(sandbox)["authorizeUrl"]
    return f"{httpx.URL(page).copy_with(path='/_sandbox', query=None)}"


def open_sign_in(sandbox: str) -> dict[str, str]:
    with httpx.Client(base_url=sandbox, trust_env=False, verify=NO_TLS) as client:
        session = client.post("/v1/sessions", headers={"Authorization": "Bearer sandbox_api_key"}).json()["session"]
        headers = {"Authorization": f"Bearer {session['token']}"}
        body = {"providerId": "5eedc0de000000000000010b"}
        answer = client.post(f"/v1/sessions/{session['id']}/validations", headers=headers, json=body)
        shown: dict[str, str] = answer.json()["validation"]
        return shown


def test_without_arguments_a_script_links_at_the_first_password_provider(sandbox: str) -> None:
    ended = run("link", "--json", BFF_URL=sandbox)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert RESOLVED in ended.stdout
    assert len(json.loads(ended.stdout)["serviceAccounts"]) == 2


def test_a_wrong_password_ends_with_the_envelope_of_the_sign_in(sandbox: str) -> None:
    ended = run("link", "--json", "--url", sandbox, "--username", "user_bad", "--password", "pass_good")
    assert ended.returncode == 1
    envelope = json.loads(ended.stdout)
    assert (envelope["status"], envelope["code"]) == ("OM400", "incorrect_credentials")
    assert "history of your shell" in ended.stderr


def test_a_person_chooses_utility_and_accounts_by_number(sandbox: str) -> None:
    answers = "arizona\n1\nuser_quick\n2\n"
    ended = run("link", stdin=answers, BFF_URL=sandbox, BFF_PASSWORD="pass_good")
    assert ended.returncode == 0, ended.stderr
    assert "Arizona Public Service" in ended.stdout
    assert '"message": "Resolved: User account(s) successfully linked"' in ended.stdout
    assert ended.stdout.count('{\n      "id":') == 1


def test_only_accounts_that_are_offered_can_be_wished_for(sandbox: str) -> None:
    ended = run("link", "--json", "--account", "nobodys", BFF_URL=sandbox)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "--account nobodys is none of: " in ended.stderr


def test_a_provider_that_is_not_clear_is_asked_back(sandbox: str) -> None:
    assert "names several of" in run("link", "--json", "--provider", "electric", BFF_URL=sandbox).stderr
    assert "names none of" in run("link", "--json", "--provider", "\x1b[2J", BFF_URL=sandbox).stderr


def test_no_accounts_end_as_given_up(sandbox: str) -> None:
    ended = run("link", "--json", "--username", "user_none", BFF_URL=sandbox)
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["message"] == "Rejected: User closes the widget"


async def test_oauth_prints_the_page_and_waits(sandbox: str, start: Start) -> None:
    running = start("link", "--json", "--provider", "Kestrel Point Energy", BFF_URL=sandbox)
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as browser:
        (await sign_in(browser, running.line("Sign in at").split()[-1])).raise_for_status()
    assert running.process.wait(20) == 0
    assert running.process.stdout is not None
    assert RESOLVED in running.process.stdout.read()


def test_ctrl_c_closes_the_session_and_prints_its_outcome(sandbox: str, levers: str, start: Start) -> None:
    running = start("link", "--json", "--username", "user_never", BFF_URL=sandbox)
    httpx.delete(f"{levers}/calls", trust_env=False, verify=NO_TLS)
    until(lambda: "user_never" in httpx.get(f"{levers}/calls?route=jobs", trust_env=False, verify=NO_TLS).text)
    assert running.end(signal.SIGINT) == 1
    assert running.process.stdout is not None
    envelope = json.loads(running.process.stdout.read())
    assert (envelope["status"], envelope["message"]) == ("OM400", "Rejected: User closes the widget")


def test_it_says_when_nothing_or_something_else_answers(sandbox: str, levers: str) -> None:
    assert "Nothing answers at http://127.0.0.1:1." in run("link", "--url", "http://127.0.0.1:1").stderr
    other = str(httpx.URL(levers).copy_with(path="/"))
    assert "is not this service (HTTP 404" in run("link", "--url", other).stderr
    assert "is no http(s) URL" in run("link", "--url", "ftp://somewhere").stderr
    assert run("link", "--json", "--api-key", "wrong", BFF_URL=sandbox).returncode == 1
