"""A server that loads its first model: the model's series have its name, or do not exist yet."""

import pytest

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


@pytest.mark.parametrize("alias", ["from the arguments", "from the environment", "none"])
def test_the_name_is_taken_from_the_process(alias, one_core, log_path, start_exporter, request):
    server = LlamaServerProgram(log_path("server"))
    if alias != "from the arguments":
        at = server.command.index("--alias")
        del server.command[at : at + 2]
    if alias == "from the environment":
        server.environment = server.environment | {"LLAMA_ARG_ALIAS": "an-alias"}
    exporter, loaded = watch_loading(server, start_exporter, request)
    # What the server itself says, once it has loaded.
    [name] = models([loaded])
    assert models(exporter.polls) == {name}
    loading = [poll for poll in exporter.polls if poll.status == "loading"]
    print(f"{len(loading)} polls while it loaded, as {name}")
    assert loading
    assert f'the model has loaded status=idle model={name}' in exporter.log.replace('"', "")


def test_without_a_visible_name_the_series_begin_when_the_model_has_loaded(one_core, log_path, start_exporter, request):
    """The arguments of this process are those of a Python program."""
    server = XllamacppServer(11549, log_path("server"))
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
