"""A server with --sleep-idle-seconds falls asleep while it is polled, and stays asleep."""

import time

from support.llama_server import ANSWERS_WHILE_BUSY

SLEEP = 6
STAYS_ASLEEP = 60


def test_it_falls_asleep_stays_asleep_and_wakes(build, start_server, start_exporter):
    server = start_server("--sleep-idle-seconds", SLEEP)
    # Before b10566 /metrics resets the server's idle timer, and the exporter must be told that the
    # server may sleep; later builds need no option.
    options = ["--sleep-idle-seconds", SLEEP] if build < ANSWERS_WHILE_BUSY else []
    exporter = start_exporter(server.url, *options)
    # Where the exporter must not poll an idle server, it cannot see a request that starts and ends
    # right after a poll, or the next poll would keep the server awake.
    exporter.wait_for_polls(2, since=exporter.wait_for_status("idle"))

    stream = server.stream(40).wait()
    while not server.is_sleeping():
        assert time.monotonic() - stream.ended_at < 2 * SLEEP, "the server is kept awake"
        time.sleep(0.2)
    asleep = exporter.poll_started_after(time.monotonic())
    assert asleep.status == "sleeping"

    while time.monotonic() < asleep.ended_before + STAYS_ASLEEP:
        assert server.is_sleeping(), f"woken after {time.monotonic() - asleep.ended_before:.1f} s"
        time.sleep(0.5)
    still_asleep = exporter.poll_started_after(time.monotonic())
    waking = server.stream(max(100, int(5 * stream.tokens_per_second)))
    second = exporter.wait_for_polls(2, since=still_asleep)
    waking.wait()
    done = exporter.poll_started_after(waking.ended_at)
    # The server loads its model first, which on a busy machine takes longer than two polls.
    assert second.status == "running" or (second.status == "loading" and not waking.received(second.started_after))
    assert done.value("generated_tokens_total") == 40 + waking.tokens

    for poll in exporter.between(asleep, still_asleep):
        assert poll.value("up") == 1
        assert poll.status == "sleeping"
        assert poll.value("generated_tokens_total") == 40
        assert poll.value("tokens_per_second") in (0, None)
    # Polls continued.
    assert still_asleep.number - asleep.number >= STAYS_ASLEEP / 2
