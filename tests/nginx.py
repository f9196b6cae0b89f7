"""Configurations for a real nginx that the tests start themselves."""

__all__ = ["nginx_config"]


def nginx_config(http: str, *, main: str = "", events: str = "", error_level: str = "crit") -> str:
    """One process without a master, which writes nowhere but to its own directory and to stderr.

    Args:
        http: What stands in the block `http`.
        main: Further directives beside it.
        events: What stands in the block `events`.
        error_level: The least severe message that is written.
    """
    paths = "\n".join(f"{each}_temp_path {each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""daemon off;
master_process off;
pid nginx.pid;
error_log stderr {error_level};
{main}
events {{ {events} }}
http {{
access_log off;
{paths}
{http}
}}
"""
