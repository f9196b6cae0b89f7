"""The committed contract is the one that is served, and says what clients need to know."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.api.models import CreateLink, CreateSession, CreateValidation
from service.app import create_app, openapi_document
from service.settings import Settings
from tests.conftest import Replica, make_settings

COMMITTED = Path(__file__).parents[2] / "openapi" / "openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


def test_the_committed_document_is_up_to_date(document: dict[str, Any]) -> None:
    written = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    assert COMMITTED.read_text(encoding="utf-8") == written, "run `make openapi` and commit what it writes"


async def test_the_served_document_is_the_committed_one(shared: Replica) -> None:
    assert (await shared.client.get("/openapi.json")).json() == json.loads(COMMITTED.read_text(encoding="utf-8"))


async def test_the_document_is_packed_and_known_by_its_tag(shared: Replica) -> None:
    first = await shared.client.get("/openapi.json")
    assert first.headers["Content-Encoding"] == "gzip"
    again = await shared.client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_deployment_adds_nothing_but_its_address(settings: Settings) -> None:
    given = make_settings("redis://127.0.0.1:1", settings.upstream_url, "t", public_url="https://bff.example.com")
    served = create_app(given).openapi()
    assert served.pop("servers") == [{"url": "https://bff.example.com"}]
    assert served == json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_operation_ids_are_unique_and_read_well(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(each.isidentifier() and each.islower() for each in ids)


def test_every_operation_tells_its_failures_and_needs_a_credential(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["security"] == [{"bearer": []}]
    for operation in operations(document):
        assert {"401", "406", "422", "500", "503"} <= set(operation["responses"]), operation["operationId"]
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Failure"}
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= set(operation["responses"])


def test_pages_need_no_credential_where_they_name_their_client(document: dict[str, Any]) -> None:
    found = {each["operationId"]: each.get("security", document["security"]) for each in operations(document)}
    optional = {name for name, needed in found.items() if needed == [{"bearer": []}, {}]}
    assert optional == {"create_session", "list_providers"}
    assert all(needed == [{"bearer": []}] for name, needed in found.items() if name not in optional)


def test_every_body_has_an_example_that_is_taken(document: dict[str, Any]) -> None:
    for model in (CreateSession, CreateValidation, CreateLink):
        examples = document["components"]["schemas"][model.__name__]["examples"]
        assert [model.model_validate_json(json.dumps(each)) for each in examples]


def test_passwords_are_declared_as_such(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["CreateValidation"]["properties"]
    for name in ("username", "password"):
        [text] = [each for each in fields[name]["anyOf"] if each["type"] == "string"]
        assert (text["format"], text["writeOnly"]) == ("password", True)
