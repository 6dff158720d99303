"""Buckets of S3 in this process, which Ray's processes reach, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def bucket_named(name: str) -> Iterator[tuple[Any, str]]:
    """Make an empty bucket: a client of it, and the options of a URI that lead there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(key, "testing")
        server.start()
        try:
            host, port = server.get_host_and_port()
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket=name)
            yield client, f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        finally:
            server.stop()
