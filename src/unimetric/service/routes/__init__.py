"""Routes of the service, a router for each part of the API."""

from fastapi import APIRouter

from unimetric.service.routes import health, items, page, search
from unimetric.service.state import Service


def routers(service: Service) -> list[APIRouter]:
    """Return all routers of a service."""
    return [search.router(service), items.router(service), health.router(service), page.router()]
