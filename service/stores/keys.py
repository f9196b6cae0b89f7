"""Names of all keys, in one place. A hash tag (`{...}`) names the slot in which a script works."""

from dataclasses import dataclass

__all__ = ["Keys", "operation_key"]


def operation_key(key: str, operation: str) -> str:
    """Where Redis remembers that an operation ran, in the slot of a key that it works on; that key has a hash tag."""
    prefix, _, rest = key.partition("{")
    tag, _, _ = rest.partition("}")
    return f"{prefix}op:{{{tag}}}:{operation}"


@dataclass(frozen=True, slots=True)
class Keys:
    """The key builder of one tenant: its name is part of every key, but for sessions, whose ids are unguessable."""

    prefix: str
    tenant: str

    @property
    def channel(self) -> str:
        """Where changes are announced."""
        return f"{self.prefix}:notices"

    def session(self, session_id: str) -> str:
        """A session's hash."""
        return f"{self.prefix}:{{s:{session_id}}}"

    def session_reads(self, session_id: str, reader: str) -> str:
        """How often somebody read a session in the current window."""
        return f"{self.prefix}:{{s:{session_id}}}:reads:{reader}"

    def session_streams(self, session_id: str) -> str:
        """Who holds a stream of a session's events open, sorted by the end of the hold."""
        return f"{self.prefix}:{{s:{session_id}}}:streams"

    def guard(self, account_id: str, service_account_id: str) -> str:
        """What is known about linking one service account to one upstream account."""
        return f"{self.prefix}:{{g:{self.tenant}}}:{account_id}:{service_account_id}"

    def void(self, attempt: str) -> str:
        """Forbids an attempt to send."""
        return f"{self.prefix}:{{g:{self.tenant}}}:void:{attempt}"

    def limit(self, policy: str, who: str) -> str:
        """How often somebody did something in the current window."""
        return f"{self.prefix}:{{l:{policy}:{who}}}"

    def attempts(self, policy: str, who: str) -> str:
        """Which attempts of somebody count in the current window, in their order."""
        return f"{self.limit(policy, who)}:attempts"

    def given_back(self, policy: str, who: str, attempt: str) -> str:
        """Forbids an attempt to count."""
        return f"{self.limit(policy, who)}:back:{attempt}"

    def durations(self, provider_id: str) -> str:
        """How long a provider's jobs took."""
        return f"{self.prefix}:{{d:{self.tenant}}}:{provider_id}"

    @property
    def token(self) -> str:
        """The upstream token, sealed."""
        return f"{self.prefix}:{{t:{self.tenant}}}:token"

    @property
    def providers(self) -> str:
        """The vendor's list of utility companies."""
        return f"{self.prefix}:{{p:{self.tenant}}}:providers"

    @property
    def job_leases(self) -> str:
        """Running jobs, sorted by the end of their poller's lease."""
        return f"{self.prefix}:{{j:{self.tenant}}}:leases"

    @property
    def job_holders(self) -> str:
        """Which process polls which job."""
        return f"{self.prefix}:{{j:{self.tenant}}}:holders"
