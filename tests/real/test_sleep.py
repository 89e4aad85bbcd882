"""A server that may fall asleep does so under our eyes, and stays asleep."""

import time

from llama import ANSWERS_WHILE_BUSY

SLEEP = 6
STAYS_ASLEEP = 60


def test_falls_asleep_stays_asleep_and_is_seen_to_wake(build, start_server, start_exporter):
    server = start_server(sleep_idle_seconds=SLEEP)
    # Where /metrics counts as work, the exporter must know that the server may
    # sleep to let it; from b10566 on it needs no telling.
    told = SLEEP if build < ANSWERS_WHILE_BUSY else None
    exporter = start_exporter(server.url, interval="1s", sleep_idle_seconds=told)
    idle = exporter.wait_for_status("idle")
    # Where the exporter must not look while the server is idle, it can't see what
    # begins and ends right after it looked, or the next look would keep it awake.
    exporter.wait_for(lambda poll: poll.number == idle.number + 2)

    stream = server.stream(40).wait()
    while not server.is_sleeping():
        assert time.monotonic() - stream.ended_at < 2 * SLEEP, "it is kept awake"
        time.sleep(0.2)
    asleep = exporter.poll_begun_after(time.monotonic())
    assert asleep.status == "sleeping"

    while time.monotonic() < asleep.seen + STAYS_ASLEEP:
        assert server.is_sleeping(), f"woken {time.monotonic() - asleep.seen:.1f} s later"
        time.sleep(0.5)
    still = exporter.poll_begun_after(time.monotonic())
    for poll in exporter.between(asleep, still):
        assert poll.value("up") == 1
        assert poll.status == "sleeping"
        assert poll.value("generated_tokens_total") == 40
        assert poll.value("tokens_per_second") in (0, None)
    # It is polled all the while.
    assert still.number - asleep.number >= STAYS_ASLEEP / 2

    waking = server.stream(max(100, int(5 * stream.tokens_per_second)))
    second = exporter.wait_for(lambda poll: poll.number == still.number + 2)
    waking.wait()
    done = exporter.poll_begun_after(waking.ended_at)
    # It loads its model again first, and on a busy machine for longer than two polls take.
    assert second.status == "running" or (second.status == "loading" and not waking.received(second.begun))
    assert done.value("generated_tokens_total") == 40 + waking.wanted
