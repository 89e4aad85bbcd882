"""A real router, polled every second: no model is loaded, woken or kept awake, and each has its own series.

In this build /metrics wakes a sleeping model and resets its idle timer.
"""

import os
import signal
import time

from support import MODEL_PARAMETERS
from support.exposition import INTEGRALS
from support.router import ALPHA, BETA, BROKEN
from support.wait import wait_for

SLEEP = 6
STAYS_ASLEEP = 60


def test_unloaded_models_stay_unloaded_and_the_loaded_one_sleeps_on_time_and_stays_asleep(start_router, start_exporter):
    router = start_router(sleep_idle_seconds=SLEEP)
    exporter = start_exporter(router.url, interval="1s")
    first = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == "unloaded")
    assert first.server_kind == "router"
    assert first.families(ALPHA) - {"model_info"} - INTEGRALS == {"status"}

    stream = router.stream(ALPHA, 40).wait()
    while router.model_status(ALPHA) != "sleeping":
        assert time.monotonic() - stream.ended_at < 2 * SLEEP, "the model is kept awake"
        time.sleep(0.1)
    asleep_at = time.monotonic()
    asleep = exporter.poll_started_after(asleep_at)
    assert asleep.model_status(ALPHA) == "sleeping"

    while time.monotonic() < asleep_at + STAYS_ASLEEP:
        assert router.model_status(ALPHA) == "sleeping", f"woken after {time.monotonic() - asleep_at:.1f} s"
        assert router.model_status(BETA) == "unloaded"
        time.sleep(0.5)
    still_asleep = exporter.poll_started_after(time.monotonic())
    # Polls continued.
    assert still_asleep.number - asleep.number >= STAYS_ASLEEP / 2
    for poll in exporter.between(asleep, still_asleep):
        assert poll.value("up") == 1
        assert poll.model_status(ALPHA) == "sleeping"
        assert poll.value("generated_tokens_total", model=ALPHA) == 40
        assert poll.value("tokens_per_second", model=ALPHA) in (0, None)
    for poll in exporter.between(first, still_asleep):
        assert poll.model_status(BETA) == "unloaded"
    assert f"name={BETA}" not in router.log, "it was loaded meanwhile"

    # A request wakes it. Long enough for a whole poll, even if the machine is less busy than before.
    waking = router.stream(ALPHA, max(300, int(5 * stream.tokens_per_second))).wait()
    busy = exporter.wait_for(lambda poll: poll.started_after >= waking.first_at)
    assert busy.model_status(ALPHA) == "running"
    assert busy.ended_before < waking.last_at
    done = exporter.poll_started_after(waking.ended_at)
    assert done.value("generated_tokens_total", model=ALPHA) == 40 + waking.tokens


def test_two_busy_models_have_their_own_live_series(all_cores, start_router, start_exporter):
    router = start_router()
    tokens = {ALPHA: router.tokens_for(ALPHA, seconds=4), BETA: router.tokens_for(BETA, seconds=2.5)}
    exporter = start_exporter(router.url, interval="500ms")
    idle = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == poll.model_status(BETA) == "idle")
    base = {model: idle.value("generated_tokens_total", model=model) for model in tokens}
    assert base == {model: router.counter(model, "tokens_predicted_total") for model in tokens} == {ALPHA: 24, BETA: 24}

    streams = {model: router.stream(model, number) for model, number in tokens.items()}
    for stream in streams.values():
        stream.wait()
    done = exporter.poll_started_after(max(stream.ended_at for stream in streams.values()))

    for model, stream in streams.items():
        polls = exporter.between(idle, done)
        during = 0
        for previous, poll in zip([idle, *polls], polls):
            counted = poll.value("generated_tokens_total", model=model) - base[model]
            fewest, most = stream.received(previous.ended_after), stream.generated(poll.ended_before)
            assert fewest <= counted <= most, f"poll {poll.number} of {model}: {fewest} <= {counted} <= {most}"
            if stream.streaming_during(previous, poll):
                during += 1
                slowest, fastest = stream.rates_generated(previous, poll)
                rate = poll.value("tokens_per_second", model=model)
                assert 0.85 * slowest <= rate <= 1.15 * fastest, f"poll {poll.number} of {model}"
                assert poll.model_status(model) == "running"
                assert poll.value("requests_processing", model=model) == 1
                assert poll.value("slots", model=model) == 2
                assert poll.value("slots_busy", model=model) == 1
        assert during >= 2
        assert counted == stream.tokens
        assert done.model_status(model) == "idle"
        assert done.value("max_context_size_tokens", model=model) == 4096
        assert done.value("model_parameters", model=model) == MODEL_PARAMETERS


def test_a_killed_model_has_the_status_failed_and_no_other_series(one_core, start_router, start_exporter):
    router = start_router()
    router.stream(BETA, 10).wait()
    exporter = start_exporter(router.url, interval="300ms")
    stream = router.stream(ALPHA, 3000).wait_for_tokens(20)
    exporter.wait_for(lambda poll: (poll.value("generated_tokens_total", model=ALPHA) or 0) > 0)

    os.kill(router.model_pid(ALPHA), signal.SIGKILL)
    failed = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == "failed")
    assert router.models()[ALPHA].get("failed") is True
    assert failed.families(ALPHA) - {"model_info"} - INTEGRALS == {"status"}
    assert failed.value("up") == 1
    assert failed.value("generated_tokens_total", model=BETA) == 10
    wait_for(lambda: stream.ended_at, "the stream to end")

    # The next request starts a new process, whose counters start at 0.
    reloaded = router.stream(ALPHA, 30).wait()
    done = exporter.poll_started_after(reloaded.ended_at)
    assert done.model_status(ALPHA) == "idle"
    assert done.value("generated_tokens_total", model=ALPHA) == 30
    for poll in exporter.between(failed, done):
        assert (poll.value("generated_tokens_total", model=ALPHA) or 0) <= reloaded.generated(poll.ended_before)
        assert (poll.value("tokens_per_second", model=ALPHA) or 0) >= 0


def test_a_router_that_does_not_answer_keeps_the_values_of_its_models_processes(start_router, start_exporter):
    router = start_router()
    router.stream(ALPHA, 10).wait()
    router.stream(BETA, 20).wait()
    exporter = start_exporter(router.url, "--no-gpu", "--timeout", "1s", interval="500ms")
    before = exporter.wait_for(lambda poll: all(poll.value("memory_usage_bytes", model=m) for m in (ALPHA, BETA)))
    os.kill(router.pid, signal.SIGSTOP)
    down = exporter.wait_for(lambda poll: poll.value("up") == 0)
    last = exporter.wait_for_polls(3, since=down)
    for poll in [down, *exporter.between(down, last)]:
        for model in (ALPHA, BETA):
            series = poll.labels("memory_usage_bytes", model=model)
            assert series == before.labels("memory_usage_bytes", model=model)
            families = poll.families(model)
            assert "process_cpu_seconds_total" in families
            assert not families & {"status", "generated_tokens_total", "slots_busy", "model_info"}
    assert "2 of its processes are alive" in exporter.log
    os.kill(router.pid, signal.SIGCONT)
    up = exporter.wait_for(lambda poll: poll.number > last.number and poll.value("up") == 1)
    done = exporter.wait_for_polls(2, since=up)
    assert done.model_statuses == before.model_statuses
    for model, tokens in {ALPHA: 10, BETA: 20}.items():
        assert done.value("generated_tokens_total", model=model) == tokens


def test_a_model_that_cannot_be_loaded_and_one_with_an_odd_name(start_router, start_exporter):
    odd = "org/a b&c=d+é%20:Q4"
    router = start_router(models=(odd, BROKEN))
    exporter = start_exporter(router.url, interval="300ms")
    router.stream(odd, 12).wait()
    refused = router.stream(BROKEN, 1)
    wait_for(lambda: refused.ended_at, "the request to end")
    failed = exporter.wait_for(lambda poll: poll.model_status(BROKEN) == "failed")
    poll = exporter.poll_started_after(failed.ended_before)
    assert poll.model_statuses == {odd: "idle", BROKEN: "failed"} | {
        name: "unloaded" for name in poll.model_statuses if name == "default"
    }
    assert poll.value("generated_tokens_total", model=odd) == 12
    assert poll.errors() == 0
