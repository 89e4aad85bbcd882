"""A log that grows fast is followed in little memory, and an idle one costs no CPU time."""

import os
import time

from support import RECORDINGS
from support.process import peak_resident_bytes, thread_cpu_seconds
from support.replay import OK, Response
from support.request_log import log_value
from support.wait import wait_for

RECORDING = RECORDINGS / "llama-server" / "b10068" / "log.txt"
# For a gigabyte set LOG_BYTES=1000000000; a part of it shows the same.
SIZE = int(os.environ.get("LOG_BYTES", 300_000_000))
BYTES_PER_SECOND = 100_000_000
MAX_PEAK_BYTES = 8 << 20
# CPU time in a second without new lines.
MAX_IDLE_SECONDS = 0.001

# Only as much of a llama-server as gives the model its name.
SERVER = {
    "/health": Response(OK),
    "/props": Response('{"total_slots":2,"model_alias":"m","build_info":"b10068-x"}'),
    "/metrics": Response("", 501),
    "/slots": Response("", 501),
}


def test_a_log_that_grows_by_100_megabytes_a_second(replay, follow, log, one_core):
    log.touch()
    # Without process lookup, which would find this process.
    exporter = follow(replay(SERVER), "--procfs", "/nonexistent", interval="5s")

    # Requests, many other lines, and a very long line.
    padding = b"".join(b"0.12.943.858 I srv  update_slots: all slots are idle, line %d\n" % n for n in range(15_000))
    chunk = RECORDING.read_bytes() + padding + b"x" * 50_000 + b"\n"
    chunks = SIZE // len(chunk) + 1
    started = time.monotonic()
    with open(log, "ab", buffering=0) as file:
        for number in range(chunks):
            file.write(chunk)
            time.sleep(max(0, started + (number + 1) * len(chunk) / BYTES_PER_SECOND - time.monotonic()))
    write_seconds = time.monotonic() - started
    wait_for(lambda: log_value(exporter, "request_duration_seconds_count") >= 2 * chunks, "the whole log")
    lag = time.monotonic() - started - write_seconds
    assert log_value(exporter, "request_duration_seconds_count") == 2 * chunks
    assert log_value(exporter, "request_cancellations_total") == chunks
    size, peak = log.stat().st_size, peak_resident_bytes(exporter.pid)
    log.unlink()
    before = thread_cpu_seconds(exporter.pid, "log")
    print(f"\n{size / 1e9:.2f} GB in {write_seconds:.1f} s, read {lag:.1f} s later; peak {peak} B, CPU {before:.2f} s")
    assert peak < MAX_PEAK_BYTES

    log.touch()
    time.sleep(1)
    before, seconds = thread_cpu_seconds(exporter.pid, "log"), 5
    time.sleep(seconds)
    idle = (thread_cpu_seconds(exporter.pid, "log") - before) / seconds
    print(f"idle: {idle * 1e6:.0f} µs of CPU time a second")
    assert idle < MAX_IDLE_SECONDS
