"""A real server of S3's interface on this machine (moto), for programs that are started for a test.

In this process s3:// may be another thing by now (`tests.objects`): tests look into the bucket by boto3.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def serve() -> Iterator[Any]:
    """boto3's client of a server with an empty bucket, which programs find by the environment."""
    server = pytest.importorskip("moto.server", reason="extra s3_test is not installed")
    pytest.importorskip("s3fs", reason="extra s3_test is not installed")
    boto3 = pytest.importorskip("boto3")
    one = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    one.start()
    host, port = one.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="none",
        AWS_SECRET_ACCESS_KEY="none",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    finally:
        one.stop()
        os.environ.clear()
        os.environ.update(before)


def names(client: Any, prefix: str) -> set[str]:
    """Of all objects whose names begin so."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {one["Key"] for page in pages for one in page.get("Contents", ())}


def content(client: Any, name: str) -> bytes:
    return bytes(client.get_object(Bucket=BUCKET, Key=name)["Body"].read())
