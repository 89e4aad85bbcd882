"""--llama-server-metrics: llama-server's own metrics under their own names, as it sent them."""

import re
import subprocess

from prometheus_client.parser import text_string_to_metric_families

from support import MODEL_NAME, PROMTOOL
from support.exposition import Exposition

# What promtool finds in llama-server's own names.
OF_LLAMA_SERVER = "llamacpp:"


def own_samples(text):
    """Each `llamacpp:` line: its name, and its value as text."""
    return dict(re.findall(r"^(llamacpp:\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE))


def test_every_family_is_exported_as_the_server_sent_it(one_core, start_server, start_exporter):
    server = start_server()
    server.stream(30).wait()
    exporter = start_exporter(server.url, "--llama-server-metrics", interval="250ms")
    idle = exporter.wait_for_status("idle")
    sent, exported = own_samples(server.get("/metrics")[1]), own_samples(idle.text)
    ratio = exported.pop("llamacpp:kv_cache_usage_ratio", None)
    assert ratio is None or float(ratio) == idle.value("kv_cache_usage_ratio")
    # Each reading of /metrics resets the averages of these two.
    averages = {"llamacpp:prompt_tokens_seconds", "llamacpp:predicted_tokens_seconds"}
    assert exported.keys() == sent.keys() >= averages
    for name in sent.keys() - averages:
        assert exported[name] == sent[name], name

    families = {family.name: family for family in text_string_to_metric_families(idle.text)}
    for name in sent:
        family = families[name.removesuffix("_total")]
        assert family.documentation and family.type in ("counter", "gauge"), name
        labels = [sample.labels for sample in family.samples]
        assert labels == [{"model": MODEL_NAME, "server": server.url.removeprefix("http://")}]
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=idle.text, capture_output=True, text=True)
    assert checked.returncode in (0, 3), checked.stderr
    remarks = [line for line in checked.stderr.splitlines() if not line.startswith(OF_LLAMA_SERVER)]
    assert remarks == [line for line in remarks if "llamacpp_thread_count" in line]


def test_nothing_is_exported_by_default_or_of_a_server_that_is_gone(one_core, start_server, start_exporter):
    server = start_server()
    plain = start_exporter(server.url, interval="250ms")
    exporter = start_exporter(server.url, "--llama-server-metrics", interval="250ms")
    assert own_samples(exporter.wait_for_status("idle").text)
    assert not own_samples(plain.wait_for_status("idle").text)
    server.kill()
    gone = exporter.wait_for(lambda poll: poll.value("up") == 0)
    assert not own_samples(gone.text)
    assert Exposition(gone.text).value("exporter_polls_total")
