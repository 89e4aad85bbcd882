"""Sizes, memory and latencies of the static release binary; scripts/bench starts it."""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from support import ROOT, TARGET, static_binary
from support.exporter import Exporter, http_get
from support.http_client import free_port, responds
from support.llama_server import XllamacppServer
from support.process import resident_bytes
from support.wait import wait_for

BUILD = 11549
STARTS = 50
SCRAPES = 1000


def main():
    target = static_binary.musl() or static_binary.host()
    with_tls = static_binary.build(tls=True, target=target)
    without_tls = static_binary.build(tls=False, target=target)
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--example", "scrape"], check=True, cwd=ROOT)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "exporter.log"
        server = XllamacppServer(BUILD, Path(folder) / "llama.log", parallel=4)
        try:
            server.start().wait_until_loaded()
            # One task on every slot, so that the exposition has all its series.
            for stream in [server.stream(40, prompt=f"Story number {number}") for number in range(4)]:
                stream.wait()
            durations = [start_and_stop(with_tls, server.url, log) for _ in range(STARTS)]
            start, stop = (statistics.median(times) for times in zip(*durations))
            exporter = Exporter(server.url, log, binary=with_tls, record_polls=False)
            wait_for(lambda: responds(exporter.port, "/readyz"), "the exporter to be ready")
            # The second poll adds rates.
            time.sleep(1.5)
            after_first_poll = resident_bytes(exporter.pid)
            for _ in range(SCRAPES):
                exporter.scrape()
            after_scrapes = resident_bytes(exporter.pid)
            command = [TARGET / "release" / "examples" / "scrape", f"127.0.0.1:{exporter.port}"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            exporter.stop()
        finally:
            server.kill()
    scrape = {name: int(value) for name, value in (line.split() for line in output.splitlines())}

    rows = [
        ("static binary, with TLS", f"{with_tls.stat().st_size / 1e6:.2f} MB", "3 MB"),
        ("static binary, without TLS", f"{without_tls.stat().st_size / 1e6:.2f} MB", "2 MB"),
        ("resident after the first polls", f"{after_first_poll / 1e6:.2f} MB", ""),
        (f"resident after {SCRAPES} scrapes", f"{after_scrapes / 1e6:.2f} MB", "4 MB"),
        (f"start to first response, median of {STARTS}", f"{start * 1e3:.1f} ms", "20 ms"),
        (f"SIGTERM to exit, median of {STARTS}", f"{stop * 1e3:.1f} ms", "100 ms"),
        (f"scrape of four slots ({scrape['bytes']} bytes), median", f"{scrape['exporter']} µs", ""),
        ("  bare tiny_http, same bytes", f"{scrape['bare']} µs", ""),
        ("  ratio", f"{scrape['exporter'] / scrape['bare']:.2f}", "1.5"),
        (f"status page ({scrape['page_bytes']} bytes), median", f"{scrape['page'] / 1e3:.2f} ms", "5 ms"),
    ]
    print(f"target {target}")
    print(f"{'':44} {'measured':>10} {'aim, at most':>13}")
    for name, measured, aim in rows:
        print(f"{name:44} {measured:>10} {aim:>13}")


def start_and_stop(binary, base_url, log):
    """Seconds from the start to the first response, and from SIGTERM to the exit with status 0."""
    started = time.perf_counter()
    exporter = Exporter(base_url, log, binary=binary, port=free_port(), record_polls=False)
    while True:
        try:
            http_get(exporter.port, "/metrics")
            break
        except ConnectionRefusedError:
            exporter.assert_running()
    responded = time.perf_counter()
    exporter.stop()
    stopped = time.perf_counter()
    assert exporter.process.returncode == 0
    return responded - started, stopped - responded


if __name__ == "__main__":
    main()
