from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.carriers.servers import make_bucket, picture_host, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a server with the bucket `pieces`, which believes every key."""
    with s3_server() as address:
        make_bucket(address)
        yield address


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a well-behaved host of pictures."""
    with picture_host(tmp_path_factory.mktemp("pictures")) as address:
        yield address
