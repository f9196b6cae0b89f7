"""The utility companies of the sandbox: the six that the vendor names, and twelve invented ones."""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

__all__ = ["COMPANIES", "PGE_CLIENT_ID", "PGE_REDIRECT_URI", "Company"]

PGE_CLIENT_ID: Final = "494ee81b3ca1470babfb6bb59ee64e07"
"""The vendor's public client id at Pacific Gas and Electric."""

PGE_REDIRECT_URI: Final = "https://app.omnimetic.com/oauth2/pge/authorize"


@dataclass(frozen=True, slots=True)
class Company:
    """A utility company.

    `job_type` is the header that its jobs must carry, None when they must carry none. `advertised` says whether the
    list tells the address of the company's sign-in page, which only OAuth companies have.
    """

    id: str
    name: str
    url: str
    colour: str
    sign_in: Literal["password", "oauth"] = "password"
    job_type: str | None = None
    advertised: bool = False

    @property
    def initials(self) -> str:
        """Up to three letters for the logo."""
        return "".join(word[0] for word in self.name.split() if word[0].isupper())[:3]

    @property
    def logo(self) -> str:
        """A coloured square with the initials, as a data URL."""
        svg = (
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 64 64' width='64' height='64'>"
            f"<rect width='64' height='64' rx='12' fill='{self.colour}'/>"
            "<text x='32' y='41' font-family='sans-serif' font-size='24' font-weight='700' text-anchor='middle' "
            f"fill='#fff'>{self.initials}</text></svg>"
        )
        return f"data:image/svg+xml,{quote(svg, safe='=:/')}"


def _invented(number: int, name: str, colour: str) -> Company:
    host = name.lower().replace(" ", "-")
    return Company(f"5eedc0de00000000000001{number:02x}", name, f"https://{host}.example", colour)


def _invented_oauth(number: int, name: str, colour: str) -> Company:
    host = name.lower().replace(" ", "-")
    return Company(
        f"5eedc0de00000000000001{number:02x}", name, f"https://{host}.example", colour, sign_in="oauth", advertised=True
    )


_ALL: Final = (
    Company(
        "5eedc0de0000000000000001", "Arizona Public Service", "https://www.aps.com", "#0a5ca8", job_type="APSLogin"
    ),
    Company("5eedc0de0000000000000002", "Salt River Project", "https://www.srpnet.com", "#00788a", job_type="SRPLogin"),
    Company("5eedc0de0000000000000003", "Tuscan Electric Power", "https://www.tep.com", "#a8480a", job_type="TEPLogin"),
    Company(
        "5eedc0de0000000000000004",
        "Pacific Gas and Electric Company",
        "https://www.pge.com",
        "#1f5fbf",
        sign_in="oauth",
        job_type="PGELogin",
        advertised=True,
    ),
    Company("5eedc0de0000000000000005", "San Diego Gas & Electric", "https://www.sdge.com", "#0b7a4b", sign_in="oauth"),
    Company(
        "5eedc0de0000000000000006", "Southern California Edison", "https://www.sce.com", "#2f6b2f", sign_in="oauth"
    ),
    _invented(0x01, "Acacia Light and Power", "#6b4fbb"),
    _invented(0x02, "Bluebonnet Valley Electric", "#2457a6"),
    _invented(0x03, "Cinder Cone Energy", "#b5382a"),
    _invented(0x04, "Driftwood Municipal Power", "#5f6b2f"),
    _invented(0x05, "Eastmarch Electric Cooperative", "#3d6f8e"),
    _invented(0x06, "Fernhollow Gas", "#2d7d5a"),
    _invented(0x07, "Gullwing Island Utility", "#127c9c"),
    _invented(0x08, "Harrow County Power", "#8a5a14"),
    _invented(0x09, "Ironbark Public Utility", "#544a45"),
    _invented(0x0A, "Juniper Mesa Electric", "#7a3f8f"),
    _invented_oauth(0x0B, "Kestrel Point Energy", "#9c2f5c"),
    _invented_oauth(0x0C, "Lanternlight Power", "#8f6a00"),
)

COMPANIES: Final = {company.id: company for company in _ALL}
"""By id, in the order of the vendor's list."""
