"""The routes of the OpenAI API."""

from __future__ import annotations

from fastapi import APIRouter

from kad.server.desk import Desk


def router(desk: Desk, name: str) -> APIRouter:
    """The routes, for the pair at this desk, which is served under this name."""
    return APIRouter(prefix="/v1")
