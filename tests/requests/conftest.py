import pytest

from support.llama_server import LlamaServerProgram, XllamacppServer
from support.wait import wait_for


@pytest.fixture
def log(tmp_path):
    """The log that the server writes and the exporter follows."""
    return tmp_path / "server.log"


@pytest.fixture
def start_server(start, log, log_path):
    """Starts a server that writes `log`: the llama-server program, or the server of a build."""

    def start_server(build="program", *options, **settings):
        if build != "program":
            return start(XllamacppServer(build, log, *options, **{"ctx_size": 4096} | settings))
        options = ["--log-file", log, "-np", "2", "-c", "4096", *options]
        return start(LlamaServerProgram(log_path("output"), *options))

    return start_server


@pytest.fixture
def watch(start_exporter):
    """Starts an exporter with debug logging, and waits until it is ready."""

    def start(base_url, *options, interval="300ms"):
        options = ["--log-level", "debug", *options]
        exporter = start_exporter(base_url, *options, interval=interval, record_polls=False)
        wait_for(lambda: exporter.get("/readyz")[0] == 200, "the exporter to be ready")
        return exporter

    return start


@pytest.fixture
def follow(watch, log):
    """Starts an exporter that follows the server's log, and waits until it does."""

    def start(server, *options, log_file=log, **settings):
        exporter = watch(server.url, "--log-file", log_file, *options, **settings)
        series = lambda: exporter.exposition().find("request_duration_seconds_count", source="log")  # noqa: E731
        wait_for(series, "the exporter to follow the log")
        return exporter

    return start
