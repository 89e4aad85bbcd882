"""Several Prometheus that scrape one exporter, and what each of their scrapes can know.

A scrape shows the last poll. So a test does not suppose when something was seen: it reads from the stored series when
the scrapes and the polls of this run took place.
"""

import itertools
import math
import time
from dataclasses import dataclass

from support.http_client import free_port
from support.prometheus import Prometheus
from support.scripted_load import Record
from support.wait import wait_for

CONFIG = """
global:
  scrape_interval: {interval}ms
  scrape_timeout: {timeout}ms
scrape_configs:
  - job_name: llamacpp
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""
# Seconds.
LONGEST_SCRAPE = 4


class Observer(Prometheus):
    """A Prometheus that scrapes the exporter at an interval in seconds."""

    def __init__(self, folder, interval, exporter_port):
        folder.mkdir()
        config = folder / "prometheus.yml"
        interval_ms = int(interval * 1000)
        timeout_ms = min(interval_ms, LONGEST_SCRAPE * 1000)
        config.write_text(CONFIG.format(interval=interval_ms, timeout=timeout_ms, port=exporter_port))
        self.interval = interval
        # The time of the last scrape of the run.
        self.end = None
        super().__init__(folder, config, free_port())

    def series(self, selector):
        """The samples of the run so far."""
        return self.samples(selector, self.end or time.time())

    def scrapes(self, start=0, end=math.inf):
        """The times of the successful scrapes that began after the one moment and ended before the other."""
        [(_, up)] = self.series('up{job="llamacpp"}') or [({}, [])]
        [(_, durations)] = self.series('scrape_duration_seconds{job="llamacpp"}') or [({}, [])]
        durations = dict(durations)
        return [at for at, value in up if value and start < at and at + durations.get(at, 0) < end]

    def wait_for_scrape(self, since):
        wait_for(lambda: self.scrapes(since), "a scrape", interval=0.3)


@dataclass
class Run:
    """A run of the load, and its observers. The first of them scrapes so often that it sees each poll."""

    record: Record
    observers: list

    def observer(self, interval):
        [observer] = [each for each in self.observers if each.interval == interval]
        return observer

    def _of_server(self, observer, name, server):
        [(_, samples)] = observer.series(f'{name}{{server="{server}"}}')
        return samples

    def poll_counts(self, server, moment):
        """How many polls had ended by that moment: at least, and at most."""
        counts = self._of_server(self.observers[0], "llamacpp_exporter_polls_total", server)
        before = [count for at, count in counts if at <= moment]
        after = [count for at, count in counts if at >= moment]
        return max(before, default=0), min(after, default=math.inf)

    def seen_by(self, server, moment):
        """When a poll that began after that moment had ended."""
        _, count = self.poll_counts(server, moment)
        counts = self._of_server(self.observers[0], "llamacpp_exporter_polls_total", server)
        # One poll may have been under way.
        return next(at for at, polls in counts if polls >= count + 2)

    def poll_ends(self, server):
        """When the successful polls of the server ended."""
        name = "llamacpp_exporter_last_successful_poll_timestamp_seconds"
        return sorted({end for each in self.observers for _, end in self._of_server(each, name, server)})

    def longest_poll_gap(self, server, start, end):
        """The longest time between two successful polls, of which one ended in that span."""
        pairs = itertools.pairwise(self.poll_ends(server))
        return max(after - before for before, after in pairs if after > start and before < end)

    def shown(self, observer, server, at):
        """The time that the values of a scrape are of: after the first moment, and not after the second one."""
        name = "llamacpp_exporter_last_successful_poll_timestamp_seconds"
        end = dict(self._of_server(observer, name, server))[at]
        return max(before for before in self.poll_ends(server) if before < end), end

    def probe_seconds(self, server, start, end):
        """Seconds for which probes of the server waited or were computed between the two moments, at most."""
        sums = self._of_server(self.observers[0], "llamacpp_probe_first_token_latency_seconds_sum", server)
        before = max((value for at, value in sums if at <= start), default=0)
        by_end = max((value for at, value in sums if at <= end), default=0)
        # The probe that was under way at the end.
        after = min((value for _, value in sums if value > by_end), default=by_end)
        return after - before
