"""The status page in a real Chromium: over a real llama-server under load, a real router of twenty models, a machine
without servers, a server that is down, and names and errors that would break it."""

import http.server
import json
import re
import threading

import pytest

from support import MODEL_NAME
from support.exporter import Exporter, http_get
from support.exposition import Exposition
from support.http_client import free_port
from support.wait import wait_for

MAX_BYTES = 64 << 10
VIEWS = ("wide", "narrow", "dark")
HOSTILE = "<script>document.title='broken'</script>\"'><img src=x onerror=alert(1)>\u202e\u2066" + "x" * 10_000


@pytest.fixture
def start_page(log_path, request):
    """Starts an exporter whose page is looked at: it is not scraped."""

    def start(base_url, *options, **settings):
        exporter = Exporter(base_url, log_path("exporter"), *options, record_polls=False, **settings)
        request.addfinalizer(exporter.stop)
        wait_for(lambda: exporter.get("/readyz")[0] == 200, "the first poll to end")
        return exporter

    return start


def check(browser, exporter, tmp_path):
    """What must hold of every page. Returns what Chromium saw in each view."""
    head, _, html = http_get(exporter.port, "/").partition("\r\n\r\n")
    assert len(html.encode()) <= MAX_BYTES
    assert "Content-Security-Policy: default-src 'none'" in head
    file = tmp_path / "page.html"
    file.write_text(html)
    assert browser.invalid_html(file) == []
    seen = browser.run("inspect", exporter.url)
    for view in VIEWS:
        of_view = seen[view]
        assert of_view["messages"] == [], view
        assert of_view["requests"] == [f"{exporter.url}/"], view
        assert of_view["axe"] == [], view
        assert of_view["axe_passes"] > 10, view
        assert of_view["overflow"] == 0, view
        assert of_view["scripts"] == 0, view
    assert seen["wide"]["background"] != seen["dark"]["background"]
    return seen


def values_of(html):
    """The last values of the plots of a page with one model, by metric; of two quantiles the first."""
    found = re.findall(r'<data value="([^"]+)" title="([^"]+)">', html)
    return {metric: float(value) for value, metric in reversed(found)}


def assert_values_are_those_of_metrics(exporter):
    """Between two scrapes of the same poll, the page has the values of both."""
    for _ in range(50):
        before, html, after = exporter.scrape(), exporter.get("/")[1], exporter.scrape()
        polls = [Exposition(text).value("exporter_polls_total") for text in (before, after)]
        if polls[0] == polls[1]:
            break
    else:
        pytest.fail("there was always a poll between two scrapes")
    values = values_of(html)
    metrics = Exposition(after)
    assert "llamacpp_tokens_per_second" in values and "llamacpp_memory_usage_bytes" in values, html
    for name, value in values.items():
        if name != "llamacpp_first_token_latency_seconds":
            assert value == metrics.value(name.removeprefix("llamacpp_")), name


def test_a_server_under_load(browser, start_page, start_program, tmp_path, one_core):
    log = tmp_path / "llama.log"
    server = start_program("--log-file", log, "--parallel", 2)
    exporter = start_page(server.url, "--log-file", log, interval="2s")
    stopping = threading.Event()

    def load(number):
        while not stopping.is_set():
            server.stream(40, prompt=f"Story number {number}").wait()

    clients = [threading.Thread(target=load, args=(number,)) for number in range(2)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: "Time to first token</b>" in exporter.get("/")[1], "a request to have ended")
        assert_values_are_those_of_metrics(exporter)
        seen = check(browser, exporter, tmp_path)
    finally:
        stopping.set()
        for client in clients:
            client.join()
    plots = ["Tokens per second", "Requests", "Time to first token", "Context by slot", "KV cache", "CPU", "Memory"]
    assert seen["wide"]["cards"] == plots
    assert seen["wide"]["images"] == len(plots)
    assert f"{MODEL_NAME} running" in seen["wide"]["text"]
    assert "Use --log-file" not in seen["wide"]["text"]

    place = browser.run("refresh", exporter.url)
    assert place["after"]["loaded"] > place["before"]["loaded"]
    assert place["after"]["y"] == place["before"]["y"] > 0
    assert place["after"]["url"] == place["before"]["url"]
    # After a jump within the page, too: a refresh without a URL would never load it again.
    jumped = browser.run("refresh", f"{exporter.url}/#absent")
    assert jumped["after"]["loaded"] > jumped["before"]["loaded"]
    assert jumped["after"]["y"] == jumped["before"]["y"] > 0


def test_a_router_of_twenty_models(browser, start_page, start_router, tmp_path):
    router = start_router(models=[f"team/model-{number:02}" for number in range(1, 21)])
    exporter = start_page(router.url, interval="1s")
    for number in (3, 7):
        router.stream(f"team/model-{number:02}", 8).wait()
    wait_for(lambda: exporter.get("/")[1].count("<h2><bdi>team/model-") == 2, "both models to be plotted")
    seen = check(browser, exporter, tmp_path)
    headings = [text for _, text in seen["wide"]["headings"]]
    assert headings[1:3] == ["team/model-03 idle", "team/model-07 idle"]
    assert "2 in memory" in seen["wide"]["text"]
    assert "team/model-20" in seen["wide"]["text"]


def test_a_machine_without_servers(browser, start_page, tmp_path):
    empty = tmp_path / "proc"
    empty.mkdir()
    seen = check(browser, start_page("", "--discover", "--procfs", empty), tmp_path)
    assert seen["wide"]["headings"][0] == ["H1", "No server yet"]


def test_a_server_that_is_down(browser, start_page, tmp_path):
    seen = check(browser, start_page(f"http://127.0.0.1:{free_port()}"), tmp_path)
    assert seen["wide"]["title"].startswith("down: 127.0.0.1:")
    assert "Why:" in seen["wide"]["text"] and "What to do:" in seen["wide"]["text"]


class HostileServer(http.server.BaseHTTPRequestHandler):
    """A router whose names, versions and errors are hostile."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        documents = {
            "/health": {"status": "ok"},
            "/props": {"role": "router", "build_info": HOSTILE},
            "/models": {
                "data": [
                    {"id": f"{number}{HOSTILE}", "status": {"value": "loaded", "args": ["x", "--port", "1"]}}
                    for number in range(20)
                ]
            },
        }
        body = json.dumps(documents.get(path, {"error": {"code": 500, "message": HOSTILE, "type": HOSTILE}}))
        self.send_response(200 if path in documents else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def test_names_and_errors_do_not_break_it(browser, start_page, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HostileServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        exporter = start_page(f"http://127.0.0.1:{server.server_port}", interval="1s")
        wait_for(lambda: "document.title" in exporter.get("/")[1], "the names to be shown")
        seen = check(browser, exporter, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert "broken" not in seen["wide"]["title"]
    assert "<script>document.title=" in seen["wide"]["text"], "it is shown as text"
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", seen["wide"]["text"])
