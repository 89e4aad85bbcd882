"""A server that loads its first model: the model's series have its name, or do not exist yet."""

import pytest

from support import MODEL
from support.llama_server import LlamaServerProgram, XllamacppServer

INTERVAL = "100ms"


def watch_loading(server, start_exporter, request):
    """Starts the exporter first, then the server; returns the exporter and the first poll with the model loaded."""
    exporter = start_exporter(server.url, interval=INTERVAL)
    exporter.wait_for(lambda poll: poll.value("up") == 0)
    request.addfinalizer(server.kill)
    server.start()
    loaded = exporter.wait_for(lambda poll: poll.status == "idle")
    return exporter, loaded


def models(polls):
    """The names of models in all series of all polls."""
    return {sample.labels["model"] for poll in polls for sample in poll.samples if "model" in sample.labels}


@pytest.mark.parametrize("name_from", ["alias", "variable", "file"])
def test_the_name_is_taken_from_the_process(name_from, one_core, log_path, start_exporter, request):
    server = LlamaServerProgram(log_path("server"), model=MODEL.name)
    server.cwd = MODEL.parent
    if name_from != "alias":
        at = server.command.index("--alias")
        del server.command[at : at + 2]
    if name_from == "variable":
        server.environment = server.environment | {"LLAMA_ARG_ALIAS": "an-alias"}
    exporter, loaded = watch_loading(server, start_exporter, request)
    # What the server itself says, once it has loaded.
    [name] = models([loaded])
    assert models(exporter.polls) == {name}
    loading = [poll for poll in exporter.polls if poll.status == "loading"]
    print(f"{len(loading)} polls while it loaded, as {name}")
    assert loading
    assert f"the model has loaded status=idle model={name}" in exporter.log.replace('"', "")


@pytest.mark.parametrize("server", ["the path of a file, which builds name differently", "a Python program"])
def test_without_a_certain_name_the_series_begin_when_it_has_loaded(
    server, one_core, log_path, start_exporter, request
):
    if server == "a Python program":
        server = XllamacppServer(11549, log_path("server"))
    else:
        server = LlamaServerProgram(log_path("server"))
        at = server.command.index("--alias")
        del server.command[at : at + 2]
    exporter, loaded = watch_loading(server, start_exporter, request)
    [name] = models([loaded])
    assert models(exporter.polls) == {name}
    unnamed = [poll for poll in exporter.polls if poll.value("up") == 1 and not poll.model_series]
    assert unnamed, "no poll while it loaded"
    for poll in unnamed:
        assert not poll.find("server_info"), "its version is not known yet"
    [up] = [line for line in exporter.log.splitlines() if "the server is up" in line]
    assert "model=" not in up
    assert "the model has loaded" in exporter.log
    assert loaded.value("model_loads_total") == 1
    assert loaded.value("status_seconds_total", status="loading") > 0
