"""A web API on loopback that rates domains, many at a time, and how to ask it."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TypedDict

#: Names the API's URL.
URL_VARIABLE = "DEMO_API_URL"
#: Domains in one request: as many public APIs do, this one refuses more.
MAX_DOMAINS = 100
#: Seconds until it answers, however many domains were asked for.
LATENCY = 0.02


class Answer(TypedDict):
    """What the API says about one domain."""

    domain: str
    trust: int


def rate(domain: str) -> Answer:
    """Rates one domain from 0 to 100; always the same, so that anybody can check an answer."""
    return {"domain": domain, "trust": zlib.crc32(domain.encode()) % 101}


def ask(domains: Iterable[str]) -> dict[str, Answer]:
    """Returns the API's answer for each domain, in one request.

    Raises:
        urllib.error.HTTPError: There were more than `MAX_DOMAINS`.
    """
    body = json.dumps(sorted(domains)).encode()
    # Without proxies: the API is on loopback, whatever $http_proxy says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(os.environ[URL_VARIABLE], body, timeout=10) as response:
        answers: list[Answer] = json.load(response)
    return {answer["domain"]: answer for answer in answers}


class Api(ThreadingTCPServer):
    """Answers `POST` of a JSON list of domains for the length of a `with` block.

    Attributes:
        sizes: How many domains each request named.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sizes: list[int] = []
        self._thread = threading.Thread(target=self.serve_forever, name="api", daemon=True)

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self.server_address[1]}/trust"

    def __enter__(self) -> Api:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        domains = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(domains) > MAX_DOMAINS:
            self.send_error(400, f"more than {MAX_DOMAINS} domains")
            return
        self.server.sizes.append(len(domains))
        time.sleep(LATENCY)
        body = json.dumps([rate(domain) for domain in domains]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps the terminal for the demo."""
