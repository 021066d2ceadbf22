"""Health and metrics."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from unimetric.service import schemas
from unimetric.service.routes.responses import errors
from unimetric.service.state import Service


def router(service: Service) -> APIRouter:
    """Return the routes for the operator of the service."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", response_model=schemas.State, responses=errors(), summary="Check that the process runs")
    async def alive() -> Any:
        return schemas.State(status="ok")

    @routes.get("/readyz", response_model=schemas.State, responses=errors(503), summary="Check that searches work now")
    async def ready() -> Any:
        service.check_ready()
        return schemas.State(status="ready")

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401)},
        dependencies=service.access.reading(),
        summary="Get metrics for Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.telemetry.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
