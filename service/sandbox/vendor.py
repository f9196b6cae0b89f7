"""The vendor's seven calls: what each demands, and what it answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import orjson

from service.sandbox.answers import Answer, Refusal, json_answer
from service.sandbox.calls import Route
from service.sandbox.companies import COMPANIES, Company
from service.sandbox.people import ServiceAccount, loses_token
from service.sandbox.strict import Request, bearer, json_array, json_object, no_body, single_header
from service.sandbox.world import Job, World

__all__ = ["ENDPOINTS", "Endpoint", "Handler", "sign_in_url"]

Handler = Callable[[World, Request, dict[str, str]], Answer]


def post_access_token(world: World, request: Request, _path: dict[str, str]) -> Answer:
    """Exchange the integrator's credentials for a token."""
    body = json_object(request, "clientId", "secret", "name")
    if body["name"] != "Omnimetic":
        raise Refusal(400, "name must be Omnimetic")
    if body["clientId"] != world.client_id or body["secret"] not in world.secrets:
        raise Refusal(401, "clientId or secret is wrong")
    return json_answer(200, {"id": world.account_id, "token": world.issue_token()})


def get_companies(world: World, request: Request, _path: dict[str, str]) -> Answer:
    """List the utility companies."""
    _authorize(world, request)
    no_body(request)
    return Answer(200, _companies_json(world.public_url or request.origin))


def post_job(world: World, request: Request, _path: dict[str, str]) -> Answer:
    """Start the check of somebody's utility credentials."""
    token = _authorize(world, request)
    body = json_object(request, "username", "password", "utilityCompanyId")
    company = COMPANIES.get(body["utilityCompanyId"])
    if company is None:
        raise Refusal(400, "there is no such utility company")
    if single_header(request, "type") != company.job_type:
        raise Refusal(400, f"header type must be {company.job_type or 'absent'} for {company.name}")
    if company.sign_in == "oauth" and (body["username"], body["password"]) != ("username", "password"):
        raise Refusal(400, "an OAuth company takes the literal strings username and password")
    job = world.create_job(company, body["username"], body["password"])
    if loses_token(body["username"]):
        world.tokens.revoke(token)
    return json_answer(201, {"id": job.id, "status": "pending"})


def get_job(world: World, request: Request, path: dict[str, str]) -> Answer:
    """Tell how a job is going."""
    _authorize(world, request)
    no_body(request)
    job = world.job(path["job"])
    if job is None:
        raise Refusal(404, "there is no such job")
    return json_answer(200, _job_json(job))


def get_account(world: World, request: Request, path: dict[str, str]) -> Answer:
    """Show an account with its service accounts."""
    _authorize(world, request)
    no_body(request)
    account = world.account(path["account"])
    if account is None:
        raise Refusal(404, "there is no such utility user account")
    return json_answer(200, account.as_json())


def post_batch(world: World, request: Request, path: dict[str, str]) -> Answer:
    """Link service accounts to the integrator's account."""
    _authorize(world, request)
    if path["integrator"] != world.account_id:
        raise Refusal(403, "the account of the path is not the token's")
    ids = json_array(request)
    linking = {_known_service_account(world, service_account_id).person.linking for service_account_id in ids}
    if "refused" in linking:
        raise Refusal(400, "the utility refuses to link this account")
    world.link(ids)
    return Answer(201, orjson.dumps({"linked": len(ids)}), lost="lost" in linking)


def get_data(world: World, request: Request, path: dict[str, str]) -> Answer:
    """Give the utility data of a linked service account."""
    _authorize(world, request)
    no_body(request)
    if path["integrator"] != world.account_id:
        raise Refusal(403, "the account of the path is not the token's")
    if not world.is_linked(path["service"]):
        raise Refusal(404, "no such service account is linked")
    return json_answer(200, _data_json(path["service"]))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call by name, method and path, with the status of its success."""

    route: Route
    method: str
    path: re.Pattern[str]
    success: int
    handler: Handler


ENDPOINTS: Final = (
    Endpoint("job", "GET", re.compile(r"/jobs/(?P<job>[^/]+)"), 200, get_job),
    Endpoint("token", "POST", re.compile(r"/access-token"), 200, post_access_token),
    Endpoint("companies", "GET", re.compile(r"/utility-companies"), 200, get_companies),
    Endpoint("jobs", "POST", re.compile(r"/jobs"), 201, post_job),
    Endpoint("account", "GET", re.compile(r"/utility-user-account/(?P<account>[^/]+)"), 200, get_account),
    Endpoint("batch", "POST", re.compile(r"/(?P<integrator>[^/]+)/utility-service-accounts/batch"), 201, post_batch),
    Endpoint(
        "data",
        "GET",
        re.compile(r"/accounts/(?P<integrator>[^/]+)/utility-service-accounts/(?P<service>[^/]+)/download-data"),
        200,
        get_data,
    ),
)


def sign_in_url(origin: str, company: Company) -> str:
    """Where a person signs in at an OAuth company of the sandbox."""
    return f"{origin}/sign-in/{company.id}"


def _authorize(world: World, request: Request) -> str:
    token = bearer(request)
    if not world.tokens.valid(token):
        raise Refusal(401, "the token is unknown, revoked or expired")
    return token


def _known_service_account(world: World, service_account_id: str) -> ServiceAccount:
    found = world.service_account(service_account_id)
    if found is None:
        raise Refusal(400, f"there is no service account {service_account_id}")
    return found


@lru_cache(maxsize=16)
def _companies_json(origin: str) -> bytes:
    return orjson.dumps([_company_json(company, origin) for company in COMPANIES.values()])


def _company_json(company: Company, origin: str) -> dict[str, str]:
    shown = {"id": company.id, "name": company.name, "url": company.url, "logo": company.logo}
    return {**shown, "loginUrl": sign_in_url(origin, company)} if company.advertised else shown


def _job_json(job: Job) -> dict[str, object]:
    if not job.finished:
        return {"status": "pending"}
    match job.outcome:
        case "error":
            return {"status": "error"}
        case "incorrect":
            return {"status": "success", "response": {"status": "incorrect-credential"}}
        case "server-error":
            return {"status": "success", "response": {"status": "server-error"}}
        case "success":
            return {"status": "success", "response": _found_json(job)}


def _found_json(job: Job) -> dict[str, object]:
    if job.company.sign_in == "password":
        return {"accountId": job.accounts[0].id}
    return {
        "accounts": [
            {"accountId": account.id, "serviceAccountId": service_account.id}
            for account in job.accounts
            for service_account in account.service_accounts
        ]
    }


def _data_json(service_account_id: str) -> dict[str, object]:
    month = {"month": "January", "year": 2024, "amountInCents": 11250, "energyConsumptionInWatts": 812000}
    use = {"onPeakUsageInWatts": 312000, "offPeakUsageInWatts": 500000}
    hour = {"date": "2024-01-01", "hour": 0, "totalUsage": 1.2, "onPeakUsage": 0.0, "offPeakUsage": 1.2}
    return {
        "serviceAccountId": service_account_id,
        "historicalData": [{"serviceAccountId": service_account_id, **month, **use}],
        "intervalData": [hour],
    }
