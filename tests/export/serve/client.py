"""Requests to an application, without a server."""

import asyncio
import json
from typing import Any


async def ask(
    app: Any, path: str, body: bytes | None = None, *, headers: tuple = (), parts: int = 1
) -> tuple[int, Any]:
    """Status and JSON of the answer. Without a body, GET; otherwise POST, in so many parts."""
    size = -(-len(body or b"") // parts) or 1
    chunks = [(body or b"")[at : at + size] for at in range(0, len(body or b""), size)] or [b""]
    received = [{"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1]} for chunk in chunks]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return received.pop(0) if received else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def asked(app: Any, path: str, body: Any = None, **kwargs: Any) -> tuple[int, Any]:
    """The same, of JSON or of bytes, in an event loop of its own."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(ask(app, path, data, **kwargs))
