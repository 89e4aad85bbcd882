"""Sizes, memory and times of the static release binary; scripts/bench starts it."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "real"), str(ROOT / "tests" / "deployment")]

import static_binary  # noqa: E402
from exporter import ask  # noqa: E402
from llama import LlamaServer, free_port  # noqa: E402

BUILD = 11549
STARTS = 50
SCRAPES = 1000


def main():
    target = static_binary.musl() or static_binary.host()
    with_tls = static_binary.build(tls=True, target=target)
    without_tls = static_binary.build(tls=False, target=target)
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--example", "scrape"], check=True, cwd=ROOT)
    compare = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "scrape"

    with tempfile.TemporaryDirectory() as folder:
        server = LlamaServer(BUILD, Path(folder) / "llama.log", parallel=4)
        try:
            server.start().wait_until_loaded()
            # Every slot gets its first task, so that all that there is to tell is told.
            for stream in [server.stream(40, prompt=f"Story number {number}") for number in range(4)]:
                stream.wait()
            lives = [start_and_end(with_tls, server.url) for _ in range(STARTS)]
            start, end = (statistics.median(times) for times in zip(*lives))
            exporter = Exporter(with_tls, server.url)
            exporter.wait_until_ready()
            fresh = exporter.resident()
            for _ in range(SCRAPES):
                scrape(exporter.port)
            scraped = exporter.resident()
            times = subprocess.run([compare, f"127.0.0.1:{exporter.port}"], check=True, capture_output=True, text=True)
            exporter.end()
        finally:
            server.kill()
    of = {name: int(value) for name, value in (line.split() for line in times.stdout.splitlines())}

    rows = [
        ("static binary, with TLS", f"{with_tls.stat().st_size / 1e6:.2f} MB", "3 MB"),
        ("static binary, without TLS", f"{without_tls.stat().st_size / 1e6:.2f} MB", "2 MB"),
        ("resident after its first poll", f"{fresh / 1e6:.2f} MB", ""),
        (f"resident after {SCRAPES} scrapes", f"{scraped / 1e6:.2f} MB", "4 MB"),
        (f"start to first answer, median of {STARTS}", f"{start * 1e3:.1f} ms", "20 ms"),
        (f"SIGTERM to its end, median of {STARTS}", f"{end * 1e3:.1f} ms", "100 ms"),
        (f"scrape of four slots ({of['bytes']} bytes), median", f"{of['exporter']} µs", ""),
        ("  bare tiny_http, the same bytes", f"{of['bare']} µs", ""),
        ("  ratio", f"{of['exporter'] / of['bare']:.2f}", "1.5"),
    ]
    print(f"built for {target}")
    print(f"{'':44} {'measured':>10} {'aim, at most':>13}")
    for what, measured, aim in rows:
        print(f"{what:44} {measured:>10} {aim:>13}")


class Exporter:
    def __init__(self, binary, base_url):
        self.port = free_port()
        command = [binary, "--addr", f"127.0.0.1:{self.port}", "--base-url", base_url, "--interval", "1s"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMACPP_", "LLM_"))}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)

    def wait_until_ready(self):
        deadline = time.monotonic() + 20
        while " 200 " not in (request(self.port, "/readyz") or "")[:20]:
            assert time.monotonic() < deadline, "it does not get ready"
            time.sleep(0.01)
        # The second poll finds rates.
        time.sleep(1.5)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)[1]) * 1024

    def end(self):
        """Ends it, and says how long that took."""
        began = time.perf_counter()
        self.process.terminate()
        assert self.process.wait(5) == 0
        return time.perf_counter() - began


def start_and_end(binary, base_url):
    """The times from the start to the first answer, and from SIGTERM to the end."""
    exporter = Exporter(binary, base_url)
    while request(exporter.port, "/metrics") is None:
        assert exporter.process.poll() is None, "it ended"
    took = time.perf_counter() - exporter.began
    return took, exporter.end()


def scrape(port):
    answer = ask(port, "/metrics")
    assert answer.startswith("HTTP/1.1 200 "), answer


def request(port, path):
    """The whole answer; None while nobody listens."""
    try:
        return ask(port, path)
    except ConnectionRefusedError:
        return None


if __name__ == "__main__":
    main()
