"""The HTTP application: POST /act, GET /health, GET /policy, GET /openapi.json. It needs FastAPI, and no Ray."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from rllib_kd.export.serve.batching import Batches
from rllib_kd.export.serve.policy import Question, ServedPolicy
from rllib_kd.export.serve.requests import MAX_ROWS, RequestError, parsed

logger = logging.getLogger(__name__)


class _TooLargeError(Exception):
    """A body is larger than any request to the policy."""


def make_app(policy: ServedPolicy) -> FastAPI:
    """Return the application of a policy.

    Requests that arrive while a forward pass runs share the next one. Bad requests are answered by 422 and a reason,
    bodies that are too large by 413.
    """
    limit = policy.reader.max_body
    app = FastAPI(title="A policy of rllib_kd", version="1", docs_url=None, redoc_url=None)
    batches: Batches[Question, Any] = Batches(
        policy.outputs, weigh=lambda question: question.num_rows, max_weight=MAX_ROWS
    )

    @app.post("/act", summary="Choose greedy actions", openapi_extra=_described(policy))
    async def act(request: Request) -> JSONResponse:
        try:
            question = policy.question(parsed(await _body(request, limit)))
            return JSONResponse(policy.answer(question, await batches(question)))
        except RequestError as error:
            return _problem(422, str(error))
        except _TooLargeError:
            return _problem(413, f"The body is too large. Expected at most {limit:,} bytes.")
        except ClientDisconnect:
            return _problem(400, "The client left before the request was complete.")
        except Exception:  # of a network of the user's own; its message may have paths of this machine
            logger.exception("A request failed.")
            return _problem(500, "The policy failed. The server's log has the reason.")

    @app.get("/health", summary="Check that the policy computes its outputs")
    async def health() -> JSONResponse:
        try:
            policy.check()
        except Exception:
            logger.exception("The policy is not healthy.")
            return _problem(503, "The policy fails on zeros. The server's log has the reason.")
        return JSONResponse({"status": "ok"})

    @app.get("/policy", summary="Describe the policy")
    async def description() -> JSONResponse:
        return JSONResponse(policy.description())

    return app


async def _body(request: Request, limit: int) -> bytes:
    """Return the body of a request, of which no more than `limit` bytes are read."""
    parts, size = [], 0
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 20 or int(length) > limit):
        raise _TooLargeError
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _TooLargeError
        parts.append(part)
    return b"".join(parts)


def _problem(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status_code=status)


def _described(policy: ServedPolicy) -> dict[str, Any]:
    """Return OpenAPI's description of `POST /act`."""
    reader, count = policy.reader, policy.num_actions
    number = {"type": ["number", "null"], "description": "null: the action is illegal"}
    outputs = {"type": "array", "items": {"type": "array", "items": number, "minItems": count, "maxItems": count}}
    actions = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": count - 1}}
    answer = {
        "type": "object",
        "required": ["actions", policy.network.outputs],
        "properties": {"actions": actions, policy.network.outputs: outputs},
    }
    reason = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reader.schema(), "example": reader.example()}},
        },
        "responses": {
            "200": {"description": "Actions", "content": {"application/json": {"schema": answer}}},
            "413": {"description": "Too large", "content": {"application/json": {"schema": reason}}},
            "422": {"description": "A reason", "content": {"application/json": {"schema": reason}}},
        },
    }
