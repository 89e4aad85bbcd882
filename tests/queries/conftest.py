import contextlib
import subprocess
import time

import pytest

from support import ROOT
from support.exporter import Exporter
from support.observer import Observer, Run
from support.scripted_load import BUILD, POLL, ScriptedLoad
from support.wait import wait_for

# Seconds. The first one misses no poll; the last one is the default of many installations.
SCRAPE_INTERVALS = (POLL / 2, 5, 15)


@contextlib.contextmanager
def run_load(folder):
    """Runs the load under the eyes of the exporter and of a Prometheus for each interval."""
    load = ScriptedLoad(folder)
    with contextlib.ExitStack() as observing:
        with contextlib.ExitStack() as running:
            running.callback(load.kill)
            exporter = Exporter(
                ",".join(server.url for server in load.servers), folder / "exporter.log", *load.exporter_options,
                interval=f"{POLL}s", record_polls=False, environment=load.exporter_environment,
            )  # fmt: skip
            running.callback(exporter.stop)
            observers = []
            for interval in SCRAPE_INTERVALS:
                observers.append(Observer(folder / f"every-{interval}s", interval, exporter.port))
                observing.callback(observers[-1].stop)

            def wait_for_scrapes(*servers):
                labels = [f"127.0.0.1:{server.port}" for server in servers or load.servers]
                before = exporter.poll_counts()
                # The poll that is under way began before this call.
                polled = lambda: all(exporter.poll_counts()[label] >= before[label] + 2 for label in labels)  # noqa: E731
                wait_for(polled, f"a poll of {labels}", interval=0.2)
                since = time.time()
                for observer in observers:
                    observer.wait_for_scrape(since)
                return since

            load.start()
            record = load.run(wait_for_scrapes)
            for observer in observers:
                observer.end = observer.scrapes()[-1]
        yield Run(record, observers)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The one run of the scripted load, of about three minutes, which all tests read."""
    subprocess.run([ROOT / "scripts" / "setup", "prometheus", "router", str(BUILD)], check=True)
    with run_load(tmp_path_factory.mktemp("run")) as run:
        yield run
