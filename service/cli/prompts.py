"""Who makes a person's choices in `omniconnect-bff link`: the person at the terminal, or nobody."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Prompt
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from service.cli.client import Credentials, Envelope, WalkError, printable
from service.cli.link import Wishes

__all__ = ["Questions", "Script"]


class Script:
    """Asks nobody: for scripts. In the sandbox there is a choice for everything."""

    def __init__(self, console: Console, *, sandbox: bool) -> None:
        self._console = console
        self._sandbox = sandbox

    def provider(self, search: Callable[[str], list[Envelope]]) -> Envelope:
        """The first that takes a password."""
        if not self._sandbox:
            raise WalkError("--json asks nothing, so it needs --provider")
        return next(each for each in search("") if each["signIn"] == "password")

    def credentials(self, wishes: Wishes) -> Credentials:
        """As given; in the sandbox, the person with whom all goes well."""
        username = wishes.username or ("user_good" if self._sandbox else None)
        password = wishes.password or (SecretStr("pass_good") if self._sandbox else None)
        if username is None or password is None:
            raise WalkError("--json asks nothing, so it needs --username and the password in BFF_PASSWORD")
        return Credentials(username, password)

    def again(self, envelope: Envelope) -> bool:  # noqa: ARG002 -- as the guide has it
        """Never."""
        return False

    def open_page(self, address: str) -> None:
        """Print it where it is in nobody's way."""
        self._console.print(f"Sign in at {printable(address)}", markup=False, soft_wrap=True, highlight=False)

    def accounts(self, offered: Sequence[Envelope]) -> list[str]:
        """All."""
        return [each["id"] for each in offered]

    def waiting(self, for_what: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Silently."""
        return nullcontext()

    def tell(self, text: str) -> None:
        """Print it where it is in nobody's way."""
        self._console.print(text, markup=False, highlight=False)


class Questions(Script):
    """Asks the person at the terminal."""

    @override
    def provider(self, search: Callable[[str], list[Envelope]]) -> Envelope:
        found = search("")
        while True:
            self._show(found)
            asked = Prompt.ask("Number, or part of a name to search for", console=self._console).strip()
            if asked.isdecimal() and 1 <= int(asked) <= len(found):
                return found[int(asked) - 1]
            found = search(asked)
            if not found:
                self.tell(f"No utility has {printable(asked)} in its name.")
                found = search("")

    @override
    def credentials(self, wishes: Wishes) -> Credentials:
        if self._sandbox and wishes.username is None:
            self.tell("Sandbox: user_good and pass_good work, user_bad does not.")
        username = wishes.username or self._ask("User name at the utility")
        return Credentials(username, wishes.password or SecretStr(self._ask("Password", hidden=True)))

    @override
    def again(self, envelope: Envelope) -> bool:
        self.tell(envelope.get("displayMessage") or envelope["message"])
        if envelope.get("code") != "incorrect_credentials":
            return False
        return Prompt.ask("Try again?", choices=["y", "n"], default="y", console=self._console) == "y"

    @override
    def open_page(self, address: str) -> None:
        self.tell("Open this address in a browser and sign in there:")
        super().open_page(address)

    @override
    def accounts(self, offered: Sequence[Envelope]) -> list[str]:
        table = Table("", "Service account", "Address", "Meter")
        for number, each in enumerate(offered, 1):
            address = ", ".join(part for part in (each.get("address") or {}).values() if part)
            table.add_row(str(number), *map(_cell, (each["id"], address, each.get("meterNumber") or "")))
        self._console.print(table)
        while True:
            asked = Prompt.ask("Which to link (numbers)", default="all", console=self._console)
            numbers = asked.replace(",", " ").split()
            if numbers == ["all"]:
                return [each["id"] for each in offered]
            if numbers and all(each.isdecimal() and 1 <= int(each) <= len(offered) for each in numbers):
                return [offered[number - 1]["id"] for number in sorted({int(each) for each in numbers})]

    @override
    @contextmanager
    def waiting(self, for_what: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(for_what)
            yield

    def _ask(self, what: str, *, hidden: bool = False) -> str:
        while True:
            given = Prompt.ask(what, password=hidden, console=self._console)
            if given:
                return given

    def _show(self, providers: Sequence[Envelope]) -> None:
        table = Table("", "Utility", "Sign-in")
        for number, each in enumerate(providers, 1):
            sign_in = "password" if each["signIn"] == "password" else "its own page"
            table.add_row(str(number), _cell(each["name"]), sign_in if each["available"] else "not available")
        self._console.print(table)


def _cell(text: str) -> Text:
    return Text(printable(text))
