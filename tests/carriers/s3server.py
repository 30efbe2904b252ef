"""An S3 server for tests: moto's, one PUT at a time.

It looks whether a name is free and stores under it in two steps. A bucket does both in one, and
who puts under the same name at once relies on that.

    python -m tests.carriers.s3server     says its address on stderr, and serves until it is killed
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

_storing = threading.Lock()
_moto = DomainDispatcherApplication(create_backend_app)


def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] != "PUT":
        return _moto(environ, start_response)
    with _storing:
        return _moto(environ, start_response)


if __name__ == "__main__":
    run_simple("127.0.0.1", 0, serve, threaded=True)
