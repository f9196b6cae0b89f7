"""The serving process: its store if it has none, its workers, and in sandbox mode the upstream."""

import base64
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from pydantic import SecretStr
from uvicorn.supervisors import Multiprocess

from service.settings import PREFIX, Settings
from service.stores.embedded import EmbeddedStore
from service.telemetry import configure_logs, log

__all__ = ["serve"]

_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the 60 s of common load balancers, so that they and not we close idle connections."""

_GRACEFUL_SECONDS: Final = 30
_KEY_FILE: Final = "encryption.key"


def serve(settings: Settings) -> None:
    """Serve until a signal ends it."""
    configure_logs(settings.log_level)
    with ExitStack() as stack:
        if settings.redis_url is None:
            settings = stack.enter_context(_embedded_store(settings))
        config = _config(settings)
        sockets = [config.bind_socket()]
        stack.callback(sockets[0].close)
        host, port = sockets[0].getsockname()[:2]
        log.info("serving", url=f"http://{host}:{port}", mode="sandbox" if settings.sandbox else "production")
        if settings.workers > 1:
            stack.enter_context(_environment_of(settings))
            Multiprocess(config, sockets=sockets).run()
        else:
            uvicorn.Server(config).run(sockets=sockets)


def _config(settings: Settings) -> uvicorn.Config:
    # Imported late: the parent of several workers needs none of it.
    if settings.workers > 1:
        app: object = "service.app:from_environment"
    else:
        from service.app import create_app  # noqa: PLC0415

        app = create_app(settings)
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=settings.workers > 1,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        backlog=4096,
    )


@contextmanager
def _embedded_store(settings: Settings) -> Iterator[Settings]:
    """Settings that point to a Valkey of our own, for as long as it runs."""
    if settings.data_dir is None:
        log.warning("store_forgets", hint=f"without {PREFIX}DATA_DIR or {PREFIX}REDIS_URL a restart forgets everything")
    with EmbeddedStore(settings.data_dir) as store:
        keys = settings.encryption_keys or {"embedded": SecretStr(_embedded_key(settings.data_dir))}
        yield settings.model_copy(update={"redis_url": SecretStr(store.url), "encryption_keys": keys, "data_dir": None})


def _embedded_key(data_dir: Path | None) -> str:
    """A key that lives as long as the data that it seals."""
    fresh = base64.b64encode(secrets.token_bytes(32)).decode()
    if data_dir is None:
        return fresh
    path = data_dir / _KEY_FILE
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=data_dir, delete=False) as file:  # made with mode 600
            file.write(fresh)
        Path(file.name).rename(path)
    return path.read_text(encoding="ascii").strip()


@contextmanager
def _environment_of(settings: Settings) -> Iterator[None]:
    """Hand to the workers what this process has worked out; they read their settings themselves."""
    ring = ",".join(f"{name}:{key.get_secret_value()}" for name, key in settings.encryption_keys.items())
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    keys = ",".join(
        f"{name}:{digest}:{'+'.join(sorted(scopes))}" for name, (digest, scopes) in settings.api_keys.items()
    )
    handed = {
        "CLIENT_ID": settings.client_id,
        "SECRET": settings.secret.get_secret_value(),
        "UPSTREAM_URL": settings.upstream_url,
        "REDIS_URL": url,
        "ENCRYPTION_KEYS": ring,
        "API_KEYS": keys,
        "SANDBOX": str(settings.sandbox).lower(),
        "WORKERS": str(settings.workers),
    }
    with tempfile.TemporaryDirectory(prefix="omniconnect-metrics-") as metrics:
        os.environ.update({f"{PREFIX}{name}": value for name, value in handed.items()})
        os.environ.pop(f"{PREFIX}DATA_DIR", None)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        yield
