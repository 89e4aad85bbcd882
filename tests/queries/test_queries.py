"""Each query of docs/queries.md gives what the clients of real servers measured, at any scrape interval."""

import itertools
import math
from dataclasses import dataclass

import pytest

from support import MODEL_NAME, documented_queries
from support.router import ALPHA, BETA
from support.scripted_load import (
    CLIENTS,
    EARLY_CLIENTS,
    GPU_PERCENT,
    GPU_WATTS,
    NEARLY_FULL,
    POLL,
    PROGRAM_SLOTS,
    SINGLE_SLOTS,
    SLOT_TOKENS,
)

QUERIES = documented_queries.load()
OUTCOMES = ("ok", "error", "cancelled", "truncated")
# Seconds: four scrapes of 15 s, and more than the whole run.
NOW, TOTAL = 60, 3600
# Of rates, since a scrape interval begins and ends between two events.
RATE_ERROR = 0.15

FIRST_TOKEN = [.001, .0025, .005, .0075, .01, .015, .025, .05, .075, .1, .15, .25, .35, .5, .75, 1, 1.5, 2.5, 3.5, 5,
               7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600]  # fmt: skip
DURATION = [.01, .025, .05, .1, .25, .5, 1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600,
            1800]  # fmt: skip
PER_TOKEN = [.0001, .0002, .0003, .0005, .00075, .001, .0015, .0025, .005, .0075, .01, .015, .025, .035, .05, .075, .1,
             .15, .25, .5, 1, 2.5, 5, 10, 30]  # fmt: skip

EXPECTATIONS = {}


def expect(name):
    """Registers the function that checks the answer to a query."""
    return lambda check: EXPECTATIONS.setdefault(name, check)


@dataclass
class Growth:
    """What happened between two scrapes; `rate` takes it for what happened in its whole range. `start` and `end` are
    the spans in which the moments lie that the two scrapes show."""

    start: tuple
    end: tuple
    seconds: float

    def bounds(self, amount):
        """The least and the most that `amount` can have been, which is a function of two moments."""
        return amount(self.start[1], self.end[0]), amount(self.start[0], self.end[1])

    def assert_rate(self, answer, amount):
        least, most = (bound / self.seconds for bound in self.bounds(amount))
        assert (1 - RATE_ERROR) * least <= answer <= (1 + RATE_ERROR) * most, f"{least} <= {answer} <= {most}"


class Question:
    """A query, asked of one Prometheus after the run."""

    def __init__(self, expr, run, observer):
        self.expr = expr
        self.run = run
        self.record = run.record
        self.observer = observer
        self.end = observer.end

    def ask(self, *labels, at=None, now=TOTAL, total=TOTAL):
        """The answer by the values of its labels, at a Unix time or else after the last scrape. Without the model
        that each router of this build has besides its own."""
        expr = documented_queries.substitute(self.expr, now, total, step=5)
        answer = {}
        for series, value in self.observer.query(expr, at or self.end):
            names = series.keys() - {"__name__", "job", "instance"}
            assert names == set(labels), f"labels {names}"
            if series.get("model") == "default":
                continue
            key = tuple(series[label] for label in labels)
            assert key not in answer
            answer[key] = value
        print(f"{expr}\n= {answer}")
        return answer

    def last_scrape_in(self, phase, server):
        """The time of the last scrape within that phase that shows a poll within that phase."""
        start, end = self.record.phases[phase]
        seen = self.record.seen.get(phase) or self.run.seen_by(server, start)
        return self.observer.scrapes(seen, end)[-1]

    def saturated(self):
        """A moment while all slots of `single` are at work, and what happened in the range before it."""
        server = self.record.single
        last = self.last_scrape_in("saturated", server)
        # So that no scrape is at the very beginning of the range.
        at = last + min(self.observer.interval / 4, 0.5)
        scrapes = [scrape for scrape in self.observer.scrapes() if at - NOW < scrape <= at]
        assert len(scrapes) >= NOW // self.observer.interval, "Prometheus has left out a scrape"
        start, end = (self.run.shown(self.observer, server, scrape) for scrape in (scrapes[0], last))
        return at, Growth(start, end, last - scrapes[0])

    def longest_scrape_gap(self):
        return max(after - before for before, after in itertools.pairwise(self.observer.scrapes()))

    def value(self, series):
        """The value of a series after the last scrape."""
        [(_, value)] = self.observer.query(series, self.end)
        return value


@pytest.mark.parametrize("every", [5, 15], ids="every {}s".format)
@pytest.mark.parametrize("name", QUERIES)
def test_the_answer_is_what_the_clients_measured(run, name, every):
    EXPECTATIONS[name](Question(QUERIES[name], run, run.observer(every)))


def test_every_query_has_an_expectation():
    assert QUERIES.keys() == EXPECTATIONS.keys()


def by_model(record, value):
    """The values of the models that were loaded before their first request was sent. Of the other one there was
    nothing to scrape before it, so Prometheus cannot know that its counters grew."""
    return {key: value(*key) for key in record.models if key != (record.router, BETA)}


def only(answer, expected):
    """The part of an answer that `expected` is about."""
    assert answer.keys() >= expected.keys()
    return {key: answer[key] for key in expected}


def exactly(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-6)


def mean(values):
    return sum(values) / len(values) if values else None


@expect("Requests per minute")
def requests_per_minute(question):
    record = question.record
    at, growth = question.saturated()
    answer = question.ask("server", "model", at=at, now=NOW)
    growth.assert_rate(
        answer[record.single, MODEL_NAME] / 60, lambda start, end: len(record.ended_between(record.single, start, end))
    )


@expect("Requests by outcome")
def requests_by_outcome(question):
    record = question.record
    true = {
        (*key, outcome): sum(request.outcome == outcome for request in record.of(*key))
        for key in record.models
        for outcome in OUTCOMES
    }
    answer = question.ask("server", "model", "outcome")
    assert answer.keys() == true.keys()
    for (server, model, outcome), value in true.items():
        fewest = value if (server, model) != (record.router, BETA) else 0
        most = value + record.cancelled_polls * ((server, outcome) == (record.program, "cancelled"))
        assert fewest - 1e-6 <= answer[server, model, outcome] <= most + 1e-6, (server, model, outcome)


@expect("Error ratio")
def error_ratio(question):
    record = question.record
    expected = by_model(record, lambda *key: mean([request.outcome == "error" for request in record.of(*key)]))
    assert only(question.ask("server", "model"), expected) == exactly(expected)


@expect("Errors by code")
def errors_by_code(question):
    failed = [request for request in question.record.requests if request.outcome == "error"]
    assert {request.code for request in failed} == {400}
    assert question.ask("server", "model", "code") == exactly({
        (question.record.single, MODEL_NAME, "400"): len(failed)
    })  # fmt: skip


@expect("Share of long prompts")
def share_of_long_prompts(question):
    record = question.record
    is_long = lambda *key: [request.timings["prompt_n"] > 256 for request in record.answered(*key)]  # noqa: E731
    assert any(is_long(record.single))
    expected = by_model(record, lambda *key: mean(is_long(*key)))
    assert only(question.ask("server", "model"), expected) == exactly(expected)


@expect("Tokens per second")
def tokens_per_second(question):
    record = question.record
    at, growth = question.saturated()
    answer = question.ask("server", "model", at=at, now=NOW)
    growth.assert_rate(
        answer[record.single, MODEL_NAME], lambda start, end: record.tokens_between(record.single, start, end)
    )


def assert_tokens(question, of_request, probe_tokens, servers_counter):
    """Totals are exact, but for probes, and for tokens that no client saw of a request that was cut off."""
    record = question.record
    answer = question.ask("server", "model")
    answered = by_model(record, lambda *key: sum(of_request(request) for request in record.answered(*key)))
    for key, tokens in answered.items():
        series = f'{{server="{key[0]}",model="{key[1]}"}}'
        cut = [r for r in record.requests if (r.server, r.model) == key and r.outcome in (None, "cancelled")]
        fewest = tokens + sum(of_request(request) for request in cut if request.outcome)
        # A probe that had no answer in time is counted by the server only.
        answered_probes = max(question.value("llamacpp_probe_tokens_total" + series), 1)
        of_probe = question.value(probe_tokens + series) / answered_probes
        probes = answered_probes + question.value(f"sum(llamacpp_probe_failures_total{series})")
        most = tokens + sum(of_request(request) for request in cut) + probes * of_probe
        # The token that is computed while the server is stopped.
        most += sum(request.outcome is None for request in cut)
        if key[0] == record.single:
            # How many more it generated before it saw that the client had disconnected, only the server knows.
            most = record.counters[servers_counter]
        assert fewest - 1e-6 <= answer[key] <= most + 1e-6, f"{key}: {fewest} <= {answer[key]} <= {most}"


@expect("Tokens generated")
def tokens_generated(question):
    assert_tokens(
        question, lambda request: len(request.tokens), "llamacpp_probe_tokens_total", "tokens_predicted_total"
    )


@expect("Prompt tokens computed")
def prompt_tokens_computed(question):
    assert_tokens(
        question,
        lambda request: request.timings["prompt_n"],
        "llamacpp_probe_prompt_tokens_total",
        "prompt_tokens_total",
    )


@expect("Share of prompt tokens from the cache")
def cached_share(question):
    record = question.record
    # Only this build counts them.
    requests = [request for request in record.of(record.single) if request.timings]
    cached, computed = (sum(request.timings[part] for request in requests) for part in ("cache_n", "prompt_n"))
    assert cached > 0
    # The probes have a few tokens more.
    answer = question.ask("server", "model")
    assert answer == pytest.approx({(record.single, MODEL_NAME): cached / (cached + computed)}, abs=0.02)


@expect("Tokens per answer")
def tokens_per_answer(question):
    record = question.record
    expected = by_model(record, lambda *key: mean([len(request.tokens) for request in record.answered(*key)]))
    assert only(question.ask("server", "model"), expected) == exactly(expected)


def assert_quantile(question, quantile, buckets, of_request):
    """The answer lies in the bucket that the true value is in."""
    record = question.record
    answer = question.ask("server", "model")
    values_by_model = by_model(
        record, lambda *key: sorted(value for r in record.answered(*key) if (value := of_request(r)) is not None)
    )
    for key, values in values_by_model.items():
        true = values[math.ceil(quantile * len(values)) - 1]
        lower = max((bound for bound in [0, *buckets] if bound < true), default=0)
        upper = min(bound for bound in buckets if bound >= true)
        assert lower <= answer[key] <= upper, f"{key}: {true} is in the bucket from {lower} to {upper}"


def first_token(request):
    return request.timings["prompt_ms"] / 1000


def time_per_output_token(request):
    tokens = request.timings["predicted_n"]
    return request.timings["predicted_ms"] / 1000 / (tokens - 1) if tokens > 1 else None


@expect("Median time to first token")
def median_first_token(question):
    assert_quantile(question, 0.5, FIRST_TOKEN, first_token)


@expect("Time to first token, 95th percentile")
def late_first_token(question):
    assert_quantile(question, 0.95, FIRST_TOKEN, first_token)


@expect("Median request duration")
def median_duration(question):
    assert_quantile(question, 0.5, DURATION, lambda request: request.duration)


@expect("Request duration, 95th percentile")
def long_duration(question):
    assert_quantile(question, 0.95, DURATION, lambda request: request.duration)


@expect("Time per output token, 95th percentile")
def slow_tokens(question):
    assert_quantile(question, 0.95, PER_TOKEN, time_per_output_token)


@expect("Mean time per output token")
def mean_time_per_output_token(question):
    record = question.record
    times = lambda *key: [time for r in record.answered(*key) if (time := time_per_output_token(r))]  # noqa: E731
    expected = by_model(record, lambda *key: mean(times(*key)))
    assert only(question.ask("server", "model"), expected) == pytest.approx(expected, rel=0.001)


@expect("Time to first token as a client sees it")
def first_token_of_a_client(question):
    record, single = question.record, question.record.single
    at, _ = question.saturated()
    began, ended = record.phases["saturated"]
    clients = sorted((r for r in record.answered(single) if began <= r.sent < ended), key=lambda r: r.on_slot)
    # All but the first ones had to wait for a slot.
    waits = [r.tokens[0] - r.sent for r in clients[SINGLE_SLOTS:]]
    answer = question.ask("server", "model", at=at, now=NOW)[single, MODEL_NAME]
    # A client may have waited for one of the server's threads before, as long as for a slot.
    assert min(waits) / 2 <= answer <= max(waits)
    probes = f'{{server="{single}",model="{MODEL_NAME}"}}'
    assert question.value(f"llamacpp_probe_first_token_latency_seconds_count{probes}") == question.value(
        f"llamacpp_probe_tokens_total{probes}"
    )


@expect("Mean wait for a slot")
def mean_wait(question):
    record, run = question.record, question.run
    at, growth = question.saturated()
    fewest_ended, most_ended = growth.bounds(lambda *span: len(record.ended_between(record.single, *span)))
    least_waited, most_waited = growth.bounds(lambda *span: record.seconds_waited(record.single, *span))
    most_waited += run.probe_seconds(record.single, growth.start[0], growth.end[1])
    within = run.longest_poll_gap(record.single, growth.start[0], growth.end[1])
    assert least_waited / most_ended > within
    answer = question.ask("server", "model", at=at, now=NOW)[record.single, MODEL_NAME]
    assert least_waited / most_ended - within <= answer <= most_waited / fewest_ended + within


@expect("Requests waiting")
def requests_waiting(question):
    record, run = question.record, question.run
    at, growth = question.saturated()
    answer = question.ask("server", "model", at=at, now=NOW)[record.single, MODEL_NAME]
    least, most = growth.bounds(lambda *span: record.seconds_waited(record.single, *span))
    # Probes wait, too.
    most += run.probe_seconds(record.single, growth.start[0], growth.end[1])
    assert (1 - RATE_ERROR) * least <= answer * growth.seconds <= (1 + RATE_ERROR) * most


@expect("Share of time in which requests waited")
def share_of_time_waited(question):
    record, run, observer, server = question.record, question.run, question.observer, question.record.single
    # As short as a range may be.
    spans = 4 * observer.interval
    [(_, samples)] = observer.series(f'llamacpp_requests_deferred_seconds_total{{server="{server}"}}')
    began = samples[0][0]
    least, most = [], []
    # The query looks at the span before each of these moments.
    for at in range(math.ceil(began / 5) * 5, int(question.end) + 1, 5):
        seen = [scrape for scrape, _ in samples if at - spans < scrape <= at]
        if len(seen) > 1:
            growth = Growth(*(run.shown(observer, server, scrape) for scrape in (seen[0], seen[-1])), 0)
            fewest, longest = growth.bounds(lambda *span: record.seconds_waited(server, *span))
            # What waits between two polls is not seen.
            gap = run.longest_poll_gap(server, growth.start[0], growth.end[1])
            least.append(fewest > (CLIENTS + EARLY_CLIENTS) * gap)
            most.append(longest > 0)
    answer = question.ask("server", "model", now=spans, total=int(question.end - began))[server, MODEL_NAME]
    assert mean(least) - 1e-6 <= answer <= mean(most) + 1e-6, f"{mean(least)} <= {answer} <= {mean(most)}"


@expect("Share of the slots at work")
def slots_at_work(question):
    record = question.record
    at, growth = question.saturated()
    answer = question.ask("server", "model", at=at, now=NOW)
    growth.assert_rate(
        answer[record.single, MODEL_NAME] * SINGLE_SLOTS,
        lambda start, end: record.seconds_processed(record.single, start, end),
    )


@expect("Busy hours")
def busy_hours(question):
    record = question.record
    expected = record.seconds_busy(record.single, 0, question.end)
    within = RATE_ERROR * expected + question.run.longest_poll_gap(record.single, *record.phases["saturated"])
    answer = question.ask("server", "model")
    assert answer[record.single, MODEL_NAME] * 3600 == pytest.approx(expected, abs=within)


@expect("Tokens per decode call")
def tokens_per_decode_call(question):
    counters = question.record.counters
    tokens = counters["prompt_tokens_total"] + counters["tokens_predicted_total"]
    answer = question.ask("server", "model")
    expected = tokens / counters["n_decode_total"]
    assert answer[question.record.single, MODEL_NAME] == pytest.approx(expected, rel=0.02)


@expect("Fullest slot")
def fullest_slot(question):
    record = question.record
    [full] = [request for request in record.of(record.program) if request.outcome == "truncated"]
    assert full.timings["prompt_n"] + full.timings["cache_n"] > len(NEARLY_FULL.split())
    answer = question.ask("server", "model")
    assert answer[record.program, MODEL_NAME] == pytest.approx(1, abs=0.01)


@expect("Context of running requests")
def context_of_running_requests(question):
    record, run, single = question.record, question.run, question.record.single
    assert question.ask("server", "model")[record.program, MODEL_NAME] == 0
    began, ended = record.phases["saturated"]
    shares = {at: question.ask("server", "model", at=at) for at in question.observer.scrapes(began, ended)}
    # A busy server may leave a poll without an answer.
    shares = {at: share[single, MODEL_NAME] for at, share in shares.items() if (single, MODEL_NAME) in share}
    assert len(shares) >= 3
    for at, share in shares.items():
        start, end = run.shown(question.observer, single, at)
        # On a busy machine a client sees the end of a request later than the server.
        moments = [start + (end + POLL - start) * step / 50 for step in range(51)]
        least, most = zip(*(record.tokens_in_slots(single, SINGLE_SLOTS, moment) for moment in moments))
        tokens = share * SINGLE_SLOTS * SLOT_TOKENS
        # A probe has a few tokens, too.
        assert min(least) - 1e-6 <= tokens <= max(most) + 10, at - began


@expect("KV cache in use")
def kv_cache_in_use(question):
    tokens = sum(slot["n_prompt_tokens"] for slot in question.record.slots)
    answer = question.ask("server", "model")
    expected = tokens / (PROGRAM_SLOTS * SLOT_TOKENS)
    assert answer[question.record.program, MODEL_NAME] == pytest.approx(expected, abs=0.01)


@expect("Is it up")
def is_it_up(question):
    record = question.record
    everything = {(record.single,): 1, (record.program,): 1, (record.router,): 1}
    assert question.ask("server") == everything
    down = everything | {(record.program,): 0}
    for phase in ("down", "stuck"):
        assert question.ask("server", at=question.last_scrape_in(phase, record.program)) == down


@expect("State of each model")
def state_of_each_model(question):
    record = question.record

    def states(phase, server):
        at = question.last_scrape_in(phase, server)
        answer = question.ask("server", "model", "status", at=at)
        return {key[1:] for key in answer if key[0] == server}

    assert states("down", record.program) == set()
    assert states("asleep", record.single) == {(MODEL_NAME, "sleeping")}
    assert states("saturated", record.single) == {(MODEL_NAME, "running")}
    assert states("unloaded", record.router) == {(ALPHA, "unloaded"), (BETA, "unloaded")}


@expect("Restarts")
def restarts(question):
    record = question.record
    expected = dict.fromkeys(record.models, 0) | {(record.program, MODEL_NAME): 1, (record.router, ALPHA): 1}
    assert question.ask("server", "model") == expected


@expect("Loads")
def loads(question):
    record = question.record
    answer = question.ask("server", "model")
    began = record.phases["load"][0]
    # Waking up and a restart are loads.
    true = dict.fromkeys(record.models, 1)
    true |= {(record.router, ALPHA): 2, (record.single, MODEL_NAME): len(record.waking)}
    for (server, model), times in true.items():
        [(_, samples)] = question.observer.series(f'llamacpp_model_loads_total{{server="{server}",model="{model}"}}')
        first, last = samples[0][1], samples[-1][1]
        before = [value for at, value in samples if at <= began][-1]
        assert last - before == times
        # `increase` supposes growth before the first scrape, but not below 0.
        grown = last - first
        assert grown - 1e-6 <= answer[server, model] <= grown * (1.1 if first else 1) + 1e-6


@expect("Mean time to load")
def mean_time_to_load(question):
    record = question.record
    start, end = record.phases["load"]
    reload = record.phases["reload"]
    [reloading] = [request for request in record.of(record.router, ALPHA) if request.sent >= reload[0]]
    expected = (end - start + reloading.wait) / 2
    gaps = [question.run.longest_poll_gap(record.router, *phase) for phase in ((start, end), reload)]
    answer = question.ask("server", "model")
    assert answer[record.router, ALPHA] == pytest.approx(expected, abs=max(gaps))
    # The name of this model is known when it has loaded, so Prometheus sees only the loads of its waking up. They
    # began between two polls.
    waking = mean([request.wait for request in record.waking])
    assert waking - 2 * POLL <= answer[record.single, MODEL_NAME] <= waking + 2 * POLL


@expect("Memory in use")
def memory_in_use(question):
    record, single = question.record, question.record.single
    at = question.last_scrape_in("saturated", single)
    start, end = question.run.shown(question.observer, single, at)
    pairs = itertools.pairwise(record.memory)
    sizes = [size for pair in pairs if pair[0][0] <= end and pair[1][0] >= start for _, size in pair]
    answer = question.ask("server", "model", at=at)[single, MODEL_NAME]
    assert 0.95 * min(sizes) <= answer <= 1.05 * max(sizes)


@expect("CPU cores in use")
def cpu_cores_in_use(question):
    at, growth = question.saturated()
    answer = question.ask("server", "model", at=at, now=NOW)
    growth.assert_rate(answer[question.record.single, MODEL_NAME], question.record.cpu_between)


@expect("GPU utilization")
def gpu_utilization(question):
    assert question.ask("gpu") == {("0",): GPU_PERCENT}


@expect("GPU energy")
def gpu_energy(question):
    # `increase` adds what it supposes to lie before the first scrape: up to 1.1 intervals, but nothing below 0.
    scrapes = question.observer.scrapes()
    seconds = question.end - scrapes[0]
    interval = seconds / (len(scrapes) - 1)
    fewest, most = (GPU_WATTS * span / 3.6e6 for span in (seconds, seconds + 1.1 * interval))
    [(gpu, answer)] = question.ask("gpu").items()
    assert gpu == ("0",)
    assert 0.97 * fewest <= answer <= 1.03 * most


@expect("Age of the last successful poll")
def age_of_the_last_poll(question):
    record, run = question.record, question.run
    start, end = record.phases["down"]
    at = question.last_scrape_in("down", record.program)
    answer = question.ask("server", at=at)
    assert answer[record.single,] <= run.longest_poll_gap(record.single, start, end)
    # Its shutdown began before the process ended. A poll that was under way then may have ended after both.
    began, ended = record.phases["cut"]
    gap = run.longest_poll_gap(record.program, run.seen_by(record.program, record.phases["stuck"][1]), began)
    assert at - ended - gap <= answer[record.program,] <= at - began + gap


@expect("Poll errors")
def poll_errors(question):
    record, run = question.record, question.run
    answer = question.ask("server", "endpoint", "reason")

    def count(reason):
        return sum(value for key, value in answer.items() if (key[0], key[2]) == (record.program, reason))

    def polls(first, last):
        """How many polls began and ended between the two moments: at least, and at most."""
        (least_before, most_before), (least_after, most_after) = (
            run.poll_counts(record.program, moment) for moment in (first, last)
        )
        return least_after - most_before - 1, most_after - least_before

    # The server stops listening while it shuts down, and listens again while it starts.
    fewest, _ = polls(*record.phases["down"])
    _, most = polls(record.phases["cut"][0], record.phases["restart"][1])
    # One that began before the end may have failed after it.
    most += 1
    assert fewest > 0
    assert fewest - 1e-6 <= count("connect") <= most + 1e-6
    # Its requests hang; while they do, no others are sent.
    assert count("timeout") >= 1 - 1e-6
    assert {server for server, _, reason in answer if reason != "timeout"} == {record.program}
