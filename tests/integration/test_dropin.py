"""Every published example of celery-batches runs with only its import line changed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.dropin"


class WebOfTrust(BaseHTTPRequestHandler):
    """Answers a list of hosts with the length of each name."""

    calls = 0

    def do_POST(self) -> None:
        """Answers one request for many hosts."""
        type(self).calls += 1
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        hosts = [host for host in parse_qs(body)["hosts"][0].split("/") if host]
        answer = json.dumps({host: len(host) for host in hosts}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@pytest.fixture
def web_of_trust() -> Iterator[str]:
    """The URL of an API on loopback that takes lists."""
    WebOfTrust.calls = 0
    server = HTTPServer(("127.0.0.1", 0), WebOfTrust)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_click_counter_counts(cluster: Cluster, shop: Any) -> None:
    """All clicks are counted, in few batches."""
    cluster.worker("-Q", "celery,quick")
    for number in range(230):
        shop.count_click.delay(url=f"http://example.com/{number % 2}")

    def counted() -> dict[str, int]:
        total: dict[str, int] = {}
        for url, count in shop.read("clicks"):
            total[url] = total.get(url, 0) + count
        return total

    wait_until(lambda: sum(counted().values()) == 230, description="230 clicks")
    assert counted() == {"http://example.com/0": 115, "http://example.com/1": 115}
    assert len(shop.read("clicks")) == 6


def test_web_of_trust_returns_a_result_to_each_caller(
    cluster: Cluster, shop: Any, web_of_trust: str
) -> None:
    """One call of the API serves a hundred callers."""
    cluster.worker("-Q", "celery,quick", TEST_WOT_API=web_of_trust)
    hosts = [f"{'x' * (number % 30 + 1)}.example" for number in range(100)]

    results = [shop.wot_api.delay(f"http://{host}/page") for host in hosts]

    assert [result.get(timeout=15) for result in results] == [len(host) for host in hosts]
    assert WebOfTrust.calls == 1


def test_the_current_app_works_in_shared_tasks(cluster: Cluster, shop: Any) -> None:
    """`current_app.backend.mark_as_done` and `shared_task` as a plain call settle requests."""
    cluster.worker("-Q", "celery,quick")
    shop.app.set_current()

    results = [shop.shared.delay(number) for number in range(3)]
    without_request = [shop.plain_call.delay(a=1, b=number) for number in range(2)]

    assert [result.get(timeout=15) for result in results] == [1, 2, 3]
    assert without_request[1].get(timeout=15) == [["a", 1], ["b", 1]]


def test_the_retry_workaround_makes_a_new_call(cluster: Cluster, shop: Any) -> None:
    """Without the id the retry is another request."""
    cluster.worker("-Q", "celery,quick")

    shop.retry_new.delay("x")

    wait_until(lambda: len(shop.read("retry_new")) == 2, description="a second run")
    (first, args), (second, again) = shop.read("retry_new")
    assert first != second
    assert args == again == ["x"]


def test_the_retry_workaround_with_the_same_id_retries_the_request(
    cluster: Cluster, shop: Any
) -> None:
    """With its id it is the same request, whose caller waits for it."""
    cluster.worker("-Q", "celery,quick")

    result = shop.retry_same.delay("x")

    assert result.get(timeout=15) == "done"
    assert shop.read("retry_same") == [[result.id, ["x"]]] * 2
    wait_until(lambda: shop.retry_same.stats()["acked"] == 1, description="acked once")


def test_an_interval_of_nearly_nothing_runs_at_once(cluster: Cluster, shop: Any) -> None:
    """`flush_interval=0.00001`, `acks_late`, `queue` and `asyncio.run` work together."""
    cluster.worker("-Q", "celery,quick", TEST_SWEEPER="0")

    results = [shop.quick.delay(number) for number in range(23)]

    assert [result.get(timeout=15) for result in results] == [2 * n for n in range(23)]


@pytest.mark.parametrize("name", ["batches_first", "counted_first"])
def test_mixins_work_in_both_orders(cluster: Cluster, shop: Any, name: str) -> None:
    """A user's class that calls `self.run` is called, whichever base comes first."""
    cluster.worker("-Q", "celery,quick")
    task = getattr(shop, name)

    results = [task.delay(number) for number in range(2)]

    assert [result.get(timeout=15) for result in results] == [1, 1]


def test_a_request_has_every_attribute_and_can_be_pickled(cluster: Cluster, shop: Any) -> None:
    """The attributes are those of the call, in a copy too."""
    worker = cluster.worker("-Q", "celery,quick")

    result = shop.attributes.apply_async(
        ("a",), {"k": 1}, shadow="nick", headers={"mine": "x"}, priority=3
    )

    (found,) = wait_until(lambda: shop.read("attributes"), description="the attributes")
    assert found["id"] == found["correlation_id"] == result.id
    assert found["name"] == "nick"
    assert (found["args"], found["kwargs"]) == (["a"], {"k": 1})
    assert found["hostname"] in worker.output()
    assert found["delivery_info"]["routing_key"] == "celery"
    assert found["delivery_info"]["priority"] == 3
    assert found["ignore_result"] is False
    assert found["chord"] is None
    headers = found["request_dict"]
    assert headers["task"] == shop.attributes.name
    assert headers["mine"] == "x"
    assert headers["argsrepr"] == "('a',)"
    assert headers["root_id"] == result.id
