"""A log that grows fast is followed in little memory, and one that does not costs nothing."""

import http.server
import os
import threading
import time

from watch import ROOT, wait_until

RECORDING = ROOT / "tests" / "recordings" / "llama-server" / "b10068" / "log.txt"
# A gigabyte is LOG_BYTES=1000000000; a part of it shows the same.
SIZE = int(os.environ.get("LOG_BYTES", 300_000_000))
PER_SECOND = 100_000_000
MEMORY_KIB = 8 * 1024
# Of a second that nothing was written in.
IDLE_SECONDS = 0.001


class Idle(http.server.BaseHTTPRequestHandler):
    """Enough of a llama-server to have a name."""

    def do_GET(self):
        answers = {"/health": '{"status":"ok"}', "/props": '{"total_slots":2,"model_alias":"m","build_info":"b10068-x"}'}
        body = answers.get(self.path)
        self.send_response(200 if body else 501)
        self.send_header("Content-Length", str(len(body or "")))
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *_):
        pass


def test_a_log_that_grows_by_100_megabytes_a_second(watch, tmp_path, one_core):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Idle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = tmp_path / "server.log"
    log.touch()
    # The process behind that server would be this one: it is not looked for.
    options = ["--log-file", log, "--procfs", "/nonexistent"]
    exporter = watch(f"http://127.0.0.1:{server.server_port}", *options, interval="5s")
    wait_until(exporter.is_following, "the log is followed")

    # Requests, much between them, and one very long line.
    lines = RECORDING.read_bytes()
    padding = b"".join(b"0.12.943.858 I srv  update_slots: all slots are idle, line %d\n" % n for n in range(15_000))
    chunk = lines + padding + b"x" * 50_000 + b"\n"
    chunks = SIZE // len(chunk) + 1
    began = time.monotonic()
    with open(log, "ab", buffering=0) as file:
        for number in range(chunks):
            file.write(chunk)
            ahead = began + (number + 1) * len(chunk) / PER_SECOND - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
    wrote = time.monotonic() - began
    wait_until(lambda: exporter.log("request_duration_seconds_count") >= 2 * chunks, "all is read", 120)
    behind = time.monotonic() - began - wrote
    assert exporter.log("request_duration_seconds_count") == 2 * chunks
    assert exporter.log("request_cancellations_total") == chunks
    size, peak = log.stat().st_size, exporter.memory_kib()
    log.unlink()
    worked = exporter.cpu_of_thread("log")
    print(f"\n{size / 1e9:.2f} GB in {wrote:.1f} s, all counted {behind:.1f} s later; {peak} KiB at most, {worked:.2f} s of CPU")
    assert peak < MEMORY_KIB

    log.touch()
    time.sleep(1)
    before, seconds = exporter.cpu_of_thread("log"), 5
    time.sleep(seconds)
    idle = (exporter.cpu_of_thread("log") - before) / seconds
    print(f"idle: {idle * 1e6:.0f} µs of CPU a second")
    assert idle < IDLE_SECONDS
