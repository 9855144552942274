"""OpenAI-compatible endpoints."""

from fastapi import APIRouter

router = APIRouter()
