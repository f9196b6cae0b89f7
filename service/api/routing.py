"""How all routers here are made."""

from fastapi import APIRouter

__all__ = ["make_router"]


def make_router(prefix: str, tag: str) -> APIRouter:
    """A router whose operation ids are its handlers' names, so that generated clients read well."""
    return APIRouter(prefix=prefix, tags=[tag], generate_unique_id_function=lambda route: route.name)
