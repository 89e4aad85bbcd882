"""A genuine router polled every second: nothing is loaded, woken or kept awake, and each model is told for itself.

On this build /metrics counts as work and wakes a sleeping model: the hard case.
"""

import time

from router import ALPHA, BETA
from said import families, kind, state, states

SLEEP = 6
WATCHED = 60


def test_unloaded_stay_unloaded_and_the_loaded_one_sleeps_on_time_and_stays_asleep(start_router, start_exporter):
    router = start_router(sleep_idle_seconds=SLEEP)
    exporter = start_exporter(router.url, interval="1s")
    first = exporter.wait_for(lambda poll: state(poll, ALPHA) == "unloaded")
    assert kind(first) == "router"
    assert families(first, ALPHA) - {"model_info"} == {"status"}

    stream = router.stream(ALPHA, 40).wait()
    while router.state(ALPHA) != "sleeping":
        assert time.monotonic() - stream.ended_at < 2 * SLEEP, "it is kept awake"
        time.sleep(0.1)
    slept_at = time.monotonic()
    asleep = exporter.poll_begun_after(slept_at)
    assert state(asleep, ALPHA) == "sleeping"

    while time.monotonic() < slept_at + WATCHED:
        assert router.state(ALPHA) == "sleeping", f"woken {time.monotonic() - slept_at:.1f} s later"
        assert router.state(BETA) == "unloaded"
        time.sleep(0.5)
    still = exporter.poll_begun_after(time.monotonic())
    # It is polled all the while.
    assert still.number - asleep.number >= WATCHED / 2
    for poll in exporter.between(asleep, still):
        assert poll.value("up") == 1
        assert state(poll, ALPHA) == "sleeping"
        assert poll.value("generated_tokens_total", model=ALPHA) == 40
        assert poll.value("tokens_per_second", model=ALPHA) in (0, None)
    for poll in exporter.between(first, still):
        assert state(poll, BETA) == "unloaded"
    assert f"name={BETA}" not in router.log.read_text(), "it was loaded in between"

    # It wakes for its user, and is seen to.
    # Long enough for a poll that begins and ends in it, though the machine be less busy than before.
    waking = router.stream(ALPHA, max(300, int(5 * stream.tokens_per_second))).wait()
    at_work = exporter.wait_for(lambda poll: poll.begun >= waking.first_at)
    assert state(at_work, ALPHA) == "running"
    assert at_work.seen < waking.last_at
    done = exporter.poll_begun_after(waking.ended_at)
    assert done.value("generated_tokens_total", model=ALPHA) == 40 + waking.wanted


def test_two_models_in_use_have_live_series_of_their_own(all_cores, start_router, start_exporter):
    router = start_router()
    tokens = {ALPHA: router.tokens_for(ALPHA, seconds=4), BETA: router.tokens_for(BETA, seconds=2.5)}
    exporter = start_exporter(router.url, interval="500ms")
    idle = exporter.wait_for(lambda poll: state(poll, ALPHA) == state(poll, BETA) == "idle")
    base = {model: idle.value("generated_tokens_total", model=model) for model in tokens}
    assert base == {model: router.counter(model, "tokens_predicted_total") for model in tokens} == {ALPHA: 24, BETA: 24}

    streams = {model: router.stream(model, number) for model, number in tokens.items()}
    for stream in streams.values():
        stream.wait()
    done = exporter.poll_begun_after(max(stream.ended_at for stream in streams.values()))

    for model, stream in streams.items():
        previous = idle
        during = 0
        for poll in exporter.between(idle, done):
            counted = poll.value("generated_tokens_total", model=model) - base[model]
            fewest, most = stream.received(previous.after), stream.generated(poll.seen)
            assert fewest <= counted <= most, f"poll {poll.number} of {model}: {fewest} <= {counted} <= {most}"
            if stream.first_at < previous.after and poll.seen < stream.last_at:
                during += 1
                slowest, fastest = stream.rates_generated(previous, poll)
                rate = poll.value("tokens_per_second", model=model)
                assert 0.85 * slowest <= rate <= 1.15 * fastest, f"poll {poll.number} of {model}"
                assert state(poll, model) == "running"
                assert poll.value("requests_processing", model=model) == 1
                assert poll.value("slots", model=model) == 2
                assert poll.value("slots_busy", model=model) == 1
            previous = poll
        assert during >= 2
        assert counted == stream.wanted
        assert state(done, model) == "idle"
        assert done.value("max_context_size_tokens", model=model) == 4096
        assert done.value("model_parameters", model=model) == 268098176


def test_a_killed_model_is_failed_and_its_series_go(one_core, start_router, start_exporter):
    router = start_router()
    router.stream(BETA, 10).wait()
    exporter = start_exporter(router.url, interval="300ms")
    stream = router.stream(ALPHA, 3000).wait_for_tokens(20)
    exporter.wait_for(lambda poll: (poll.value("generated_tokens_total", model=ALPHA) or 0) > 0)

    router.kill_child(ALPHA)
    failed = exporter.wait_for(lambda poll: state(poll, ALPHA) == "failed")
    assert router.models()[ALPHA].get("failed") is True
    assert families(failed, ALPHA) - {"model_info"} == {"status"}
    assert failed.value("up") == 1
    assert failed.value("generated_tokens_total", model=BETA) == 10
    while stream.ended_at is None:
        time.sleep(0.05)

    # Its next user gets a new one, with counters of its own.
    renewed = router.stream(ALPHA, 30).wait()
    done = exporter.poll_begun_after(renewed.ended_at)
    assert state(done, ALPHA) == "idle"
    assert done.value("generated_tokens_total", model=ALPHA) == 30
    for poll in exporter.between(failed, done):
        assert (poll.value("generated_tokens_total", model=ALPHA) or 0) <= renewed.generated(poll.seen)
        assert (poll.value("tokens_per_second", model=ALPHA) or 0) >= 0


def test_a_model_that_cannot_be_loaded_and_one_with_an_odd_name(start_router, start_exporter):
    odd = "org/a b&c=d+é%20:Q4"
    router = start_router(models=(odd, "broken"))
    exporter = start_exporter(router.url, interval="300ms")
    router.stream(odd, 12).wait()
    router.stream("broken", 1)._thread.join(120)
    said = exporter.wait_for(lambda poll: state(poll, "broken") == "failed")
    said = exporter.poll_begun_after(said.seen)
    assert states(said) == {odd: "idle", "broken": "failed"} | {
        name: "unloaded" for name in states(said) if name == "default"
    }
    assert said.value("generated_tokens_total", model=odd) == 12
    assert said.errors() == 0
