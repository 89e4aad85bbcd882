"""promtool and Prometheus's Python client accept the exposition, and its histograms have the documented buckets."""

import re
import subprocess

from prometheus_client.parser import text_string_to_metric_families

from support import PROMTOOL, ROOT

# The one thing that promtool may object to: this gauge's name is fixed and ends like a histogram's series.
FIXED_NAME = 'llamacpp_thread_count non-histogram and non-summary metrics should not have "_count" suffix'


def documented_buckets():
    """The upper bounds of each histogram in docs/requests.md."""
    table = (ROOT / "docs/requests.md").read_text().partition("\n## Buckets\n")[2]
    rows = re.findall(r"^\| (`.*`) \| ([\d. ]+) \|$", table, re.MULTILINE)
    return {name: [float(bound) for bound in row[1].split()] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def test_promtool_and_prometheus_client_accept_it(one_core, start_server, start_exporter):
    server = start_server()
    options = ["--log-file", server.log_path, "--probe-interval", "250ms"]
    exporter = start_exporter(server.url, *options, interval="250ms")
    idle = exporter.wait_for_status("idle")
    stream = server.stream(server.tokens_for(seconds=1))
    # With rates and histograms.
    busy = exporter.wait_for(lambda poll: (poll.value("batch_latency_seconds_count") or 0) > 0)
    stream.wait()
    exporter.wait_for(lambda poll: poll.value("request_duration_seconds_count", source="log"))

    for text in (idle.text, busy.text, exporter.scrape()):
        checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
        # Status 1: cannot be parsed. Status 3: parsed, with remarks on style.
        assert checked.returncode in (0, 3), checked.stderr
        assert [line for line in checked.stderr.splitlines() if line != FIXED_NAME] == []
        families = list(text_string_to_metric_families(text))
        assert len(families) > 20
        assert all(family.documentation and family.type != "unknown" and family.samples for family in families)
        series = [
            (sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples
        ]
        assert len(series) == len(set(series))

    buckets = {}
    for family in families:
        of_family = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        if of_family:
            buckets[family.name] = [float(sample.labels["le"]) for sample in of_family][:-1]
    assert buckets == documented_buckets()
