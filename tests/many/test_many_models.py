"""Many models behind one address: limits of series and memory."""

import http.client
import json
import re
import time

import pytest

from support import TIMEOUT
from support.process import peak_resident_bytes, resident_bytes
from support.replay import ROUTER, Response, from_file, recorded, with_json
from support.wait import wait_for

MAX_MODELS = 500


def test_ten_thousand_models_of_a_model_runner(replay, start_exporter):
    responses = recorded("model-runner", "by-id-idle")
    models = json.loads(responses["/models"].body)
    many = [
        models[0] | {"id": f"sha256:{number:064x}", "tags": [f"docker.io/ai/model-{number:05}:latest"]}
        for number in range(10_000)
    ]
    # The loaded model comes last.
    responses["/models"] = Response(json.dumps(many + models))
    server = replay(responses)
    exporter = start_exporter(server.url, "--timeout", "30s", interval="500ms", record_polls=False)
    text = wait_for_text(exporter, "llamacpp_status")
    exported = set(re.findall(r'^llamacpp_status\{[^}]*\bmodel="([^"]*)"', text, re.MULTILINE))
    peak = peak_resident_bytes(exporter.pid)
    print(f"resident {resident_bytes(exporter.pid)}, peak {peak}; a scrape of {len(text)} bytes")
    assert len(exported) == MAX_MODELS
    assert "docker.io/ai/gemma3:270M-Q4_K_M" in exported, "loaded models come first"
    assert_one_warning(exporter)
    # The other models are not kept in memory, not even while the list is read.
    assert peak_resident_bytes(exporter.pid) < 20_000_000

    # No second warning when the server is back.
    server.close()
    wait_for(lambda: exporter.value("up") == 0, lambda: f"the server to be down:\n{exporter.log}")
    again = replay(responses, port=server.port)
    wait_for_text(exporter, "llamacpp_status")
    again.responses = responses | {"/models": Response(json.dumps(models))}
    assert_one_warning(exporter)


def assert_one_warning(exporter):
    """The log has one warning that there are more models than are exported."""
    [line] = [line for line in exporter.log.splitlines() if str(MAX_MODELS) in line]
    assert " WARN " in line


def wait_for_text(exporter, text, interval=0.05):
    """Returns the first scrape with that text."""
    scrape = lambda: text in (scraped := exporter.scrape()) and scraped  # noqa: E731
    return wait_for(scrape, lambda: f"{text}:\n{exporter.log}", interval=interval)


def test_memory_does_not_grow_with_models_that_come_and_go(replay, start_exporter):
    """The model list changes all the time, and another model is loaded each time."""
    responses = recorded("model-runner", "by-id-idle")
    models = json.loads(responses["/models"].body)

    def generation(number):
        id = f"sha256:f{number:063x}"
        listed = [
            models[0] | {"id": f"sha256:{number:03x}{other:061x}", "tags": [f"ai/n{number}-{other}:latest"]}
            for other in range(40)
        ]
        listed.append(models[0] | {"id": id, "tags": [f"ai/loaded-{number}:latest"]})
        old = "sha256:3260b3141c3704f86c2ac348162acf0698237d5981728084f18ca457a1fe4820"
        return responses | {
            "/models": Response(json.dumps(listed)),
            "/engines/ps": Response(responses["/engines/ps"].body.replace(old, id)),
            "/metrics": Response(responses["/metrics"].body.replace(old, id), type="text/plain"),
        }

    server = replay(generation(0))
    exporter = start_exporter(server.url, interval="20ms", record_polls=False)
    sizes = {}
    for number in range(300):
        server.responses = generation(number)
        text = wait_for_text(exporter, f'model="ai/loaded-{number}:latest"', interval=0.005)
        if number in (50, 299):
            sizes[number] = resident_bytes(exporter.pid)
            assert text.count("llamacpp_status{") == 41 * 7
    print(sizes)
    assert sizes[299] < sizes[50] + (1 << 20)


def router_of(models):
    """The responses of a router with so many loaded models, each with four busy slots."""
    listed = json.loads((ROUTER / "models-both-loaded.json").read_text())["data"][0]
    slots = json.loads((ROUTER / "slots-both-alpha.json").read_text())
    slots = json.dumps([slots[1] | {"id": number} for number in range(4)])
    responses = {
        "/health": from_file(ROUTER / "health.json"),
        "/props": from_file(ROUTER / "props.json"),
        "/models": Response(json.dumps({"data": [listed | {"id": f"model-{number:03}"} for number in range(models)]})),
    }
    for number in range(models):
        child = f"?model=model-{number:03}&autoload=false"
        responses[f"/props{child}"] = from_file(ROUTER / "props-both-alpha.json")
        responses[f"/metrics{child}"] = from_file(ROUTER / "metrics-both-alpha.txt")
        responses[f"/slots{child}"] = Response(slots)
    return responses


def scrape_cost(port, times=50):
    """The 10th percentile of the seconds of a scrape over an open connection, and the bytes of one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    durations = []
    for _ in range(times):
        started = time.monotonic()
        connection.request("GET", "/metrics")
        size = len(connection.getresponse().read())
        durations.append(time.monotonic() - started)
    connection.close()
    return sorted(durations)[times // 10], size


def test_a_hundred_loaded_models_of_four_slots(all_cores, replay, start_exporter):
    costs = {}
    for models in (1, 10, 100):
        server = replay(router_of(models))
        exporter = start_exporter(server.url, "--timeout", "30s", interval="500ms", record_polls=False)
        # The replay server is slow: 300 responses a poll.
        wait_for(lambda: exporter.poll_count() >= 3, lambda: f"three polls:\n{exporter.log}", timeout=300, interval=0.2)
        text = exporter.scrape()
        assert text.count("llamacpp_context_tokens{") == 4 * models
        costs[models] = *scrape_cost(exporter.port), resident_bytes(exporter.pid)
        duration = re.search(r"^llamacpp_exporter_poll_duration_seconds\{.*\} (\S+)$", text, re.MULTILINE)[1]
        seconds, size, resident = costs[models]
        print(f"{models} models: {seconds * 1e3:.2f} ms, {size} bytes; {resident} bytes resident, {duration} s a poll")
        exporter.stop()
        server.close()
    # With the models' sources, for the status page and --check.
    assert costs[100][2] < 10_000_000
    # The cost is proportional to the bytes, apart from a constant part.
    per_byte = {models: cost / size for models, (cost, size, _) in costs.items()}
    assert per_byte[100] <= 3 * per_byte[10]


@pytest.mark.parametrize("models", [501])
def test_a_router_with_more_models_than_are_exported(models, replay, start_exporter):
    responses = router_of(2)
    unloaded = json.loads((ROUTER / "models-unloaded.json").read_text())["data"][0]
    more = [unloaded | {"id": f"a{number:04}"} for number in range(models)]
    server = replay(with_json(responses, "/models", lambda listed: {"data": more + listed["data"]}))
    exporter = start_exporter(server.url, interval="300ms")
    poll = exporter.wait_for(lambda poll: poll.model_statuses)
    assert len(poll.model_statuses) == MAX_MODELS
    exporter.wait_for_polls(3, since=poll)
    assert_one_warning(exporter)
    loaded = {model for model, status in poll.model_statuses.items() if status != "unloaded"}
    assert loaded == {"model-000", "model-001"}
