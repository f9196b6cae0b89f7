"""What the vendor's widget knows of companies by name: job types and sign-in pages.

Source: `README.md` beside this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from service.upstream.wire import Company

__all__ = ["KNOWN_COMPANIES", "CompanyRule", "CompanyTable", "SignIn", "is_web_address"]

SignIn = Literal["password", "oauth"]


@dataclass(frozen=True, slots=True)
class CompanyRule:
    """How people sign in at one company.

    Attributes:
        job_type: Value of the `type` header; None sends no such header.
        sign_in: By password here, or at the company's own page.
        authorize_url: That page, where the vendor's list names none.
        client_id: The vendor's public OAuth client id there.
        redirect_uri: The vendor's page that finishes the job.
    """

    job_type: str | None = None
    sign_in: SignIn = "password"
    authorize_url: str | None = None
    client_id: str | None = None
    redirect_uri: str | None = None


KNOWN_COMPANIES: Final[Mapping[str, CompanyRule]] = {
    "Arizona Public Service": CompanyRule("APSLogin"),
    "Salt River Project": CompanyRule("SRPLogin"),
    "Tuscan Electric Power": CompanyRule("TEPLogin"),
    "Pacific Gas and Electric Company": CompanyRule(
        "PGELogin",
        "oauth",
        authorize_url="https://sharemydata.pge.com/myAuthorization",
        client_id="494ee81b3ca1470babfb6bb59ee64e07",
        redirect_uri="https://app.omnimetic.com/oauth2/pge/authorize",
    ),
    "San Diego Gas & Electric": CompanyRule(None, "oauth"),
    "Southern California Edison": CompanyRule(None, "oauth"),
}


class CompanyTable:
    """The rules by company name; what a deployment adds wins over what is known."""

    def __init__(self, *, extra: Mapping[str, CompanyRule], https_only: bool) -> None:
        self._rules = {name.casefold(): rule for name, rule in {**KNOWN_COMPANIES, **extra}.items()}
        self._https_only = https_only

    def rule(self, company: Company) -> CompanyRule:
        """The rule for a company; one that is in no table signs in by password, or by its `loginUrl` if it has one."""
        known = self._rules.get(company.name.casefold())
        if known is not None:
            return known
        return CompanyRule(sign_in="oauth" if company.login_url else "password")

    def sign_in_page(self, company: Company) -> str | None:
        """Where people sign in at an OAuth company; None if unknown, or not a web address."""
        address = company.login_url or self.rule(company).authorize_url
        return address if address and is_web_address(address, https_only=self._https_only) else None

    def authorize_url(self, company: Company, job_id: str) -> str | None:
        """The sign-in page for one job, as the vendor's widget opens it. Never holds a secret."""
        page = self.sign_in_page(company)
        if page is None:
            return None
        rule = self.rule(company)
        parts = urlsplit(page)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name, value in (("client_id", rule.client_id), ("redirect_uri", rule.redirect_uri)):
            if value is not None:
                query.setdefault(name, value)
        query.setdefault("response_type", "code")
        query["state"] = f"jobId={job_id}"
        return urlunsplit(parts._replace(query=urlencode(query)))


def is_web_address(address: str, *, https_only: bool) -> bool:
    """Whether a browser may be sent there: the vendor's list could hold `javascript:` or worse."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and parts.scheme in ({"https"} if https_only else {"https", "http"}) and address.isprintable()
