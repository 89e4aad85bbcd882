"""A real Prometheus, and what it stored."""

import json
import math
import time
from urllib.parse import urlencode

from support import PROMETHEUS
from support.http_client import request, responds
from support.process import ChildProcess
from support.wait import wait_for


class Prometheus(ChildProcess):
    """Stores its data in `folder`. Serves when this returns."""

    def __init__(self, folder, config, port):
        super().__init__(folder / "log")
        self.port = port
        self.spawn(
            [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder}"]
            + [f"--web.listen-address=127.0.0.1:{port}"]
        )
        wait_for(lambda: responds(port, "/-/ready"), lambda: f"Prometheus to be ready:\n{self.log}", timeout=20)

    def get(self, path, **parameters):
        status, text = request(self.port, f"{path}?{urlencode(parameters)}")
        assert status == 200, text
        return json.loads(text)["data"]

    def query(self, expr, at=None):
        """The labels and value of each series now, or at a Unix time; values that are not finite are left out."""
        data = self.get("/api/v1/query", query=expr, time=time.time() if at is None else at)
        series = [(one["metric"], float(one["value"][1])) for one in data["result"]]
        return [(labels, value) for labels, value in series if math.isfinite(value)]

    def query_range(self, expr, seconds):
        """The labels and finite values of each series over the last seconds."""
        now = time.time()
        data = self.get("/api/v1/query_range", query=expr, start=now - seconds, end=now, step=5)
        series = [(one["metric"], [float(value) for _, value in one["values"]]) for one in data["result"]]
        return [(labels, finite) for labels, values in series if (finite := [v for v in values if math.isfinite(v)])]

    def samples(self, selector, until):
        """The samples of each series in the last day before a Unix time, as they were scraped: labels, and
        pairs of Unix time and value."""
        data = self.get("/api/v1/query", query=f"{selector}[1d]", time=until)
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in data["result"]]
