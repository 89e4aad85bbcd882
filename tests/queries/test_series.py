"""The stored series through a restart, sleep, an unloaded model and a server that does not answer: no gap that their
source did not have, no reset that did not happen, no label that changes."""

import pytest

from support import MODEL_NAME
from support.router import ALPHA, BETA
from support.scripted_load import POLL

# Counters that start again with the process that holds the model.
OF_THE_PROCESS = {
    "prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "generated_tokens_total",
    "generation_seconds_total", "decode_calls_total", "draft_tokens_total", "draft_tokens_accepted_total",
    "drafts_total", "process_cpu_seconds_total",
}  # fmt: skip
# Labels whose values are the series of one family of one model.
ENUMERATED = {"code", "endpoint", "gpu", "le", "outcome", "position", "reason", "slot", "source", "status"}

FROM_THE_PROCESS = ("memory_usage_bytes", "process_cpu_seconds_total", "process_start_time_seconds", "thread_count")
FROM_THE_LOG = (
    "first_token_latency_seconds_count", "request_cancellations_total", "request_duration_seconds_count",
    "request_errors_total", "requests_total",
)  # fmt: skip
FROM_THE_SERVER = (
    "decode_calls_total", "generated_tokens_total", "generation_seconds_total", "max_sequence_tokens",
    "model_loads_total", "prompt_seconds_total", "prompt_tokens_total", "requests_deferred_seconds_total",
    "requests_processing_seconds_total", "status", "status_seconds_total",
)  # fmt: skip
FROM_THE_GPU = (
    "gpu_energy_joules_total", "gpu_memory_used_bytes", "gpu_power_watts", "gpu_utilization_percent",
    "temperature_celsius",
)  # fmt: skip
FROM_THE_EXPORTER = (
    "exporter_last_successful_poll_timestamp_seconds", "exporter_poll_errors_total", "exporter_polls_total",
    "up",
)  # fmt: skip


class Series:
    def __init__(self, labels, samples):
        self.name = labels["__name__"].removeprefix("llamacpp_")
        self.labels = {key: value for key, value in labels.items() if key not in ("__name__", "job", "instance")}
        self.samples = samples

    @property
    def model(self):
        return self.labels.get("server"), self.labels.get("model")

    @property
    def is_counter(self):
        return self.name.endswith(("_total", "_seconds_count", "_tokens_count", "_bucket", "_sum"))

    @property
    def resets(self):
        """The times between which the value went down."""
        pairs = zip(self.samples, self.samples[1:])
        return [(before, after) for (before, high), (after, low) in pairs if low < high]

    def __repr__(self):
        return f"{self.name}{self.labels}"


@pytest.fixture(scope="module", params=[POLL / 2, 15], ids="every {}s".format)
def observer(run, request):
    return run.observer(request.param)


@pytest.fixture(scope="module")
def all_series(observer):
    found = observer.series('{__name__=~"llamacpp_.+"}')
    series = [Series(labels, samples) for labels, samples in found]
    return [each for each in series if each.labels.get("model") != "default"]


def named(all_series, name):
    found = [series for series in all_series if series.name == name]
    assert found, f"no series of {name}"
    return found


def lives(record, end):
    """The spans in which the process of a model lived and had loaded it."""
    phases = record.phases
    started = min(request.sent for request in record.requests)
    return {
        (record.single, MODEL_NAME): [(started, end)],
        (record.program, MODEL_NAME): [(started, phases["cut"][0]), (phases["restart"][1], end)],
        (record.router, ALPHA): [(phases["load"][1], phases["unload"][0]), (phases["reload"][1], end)],
    }


def assert_no_gap(run, observer, series, server, start, end, besides=()):
    """From the first poll that began after `start`, but for the scrapes `besides`."""
    times = {at for at, _ in series.samples}.union(besides)
    scrapes = observer.scrapes(run.seen_by(server, start), end)
    missing = [round(at - start, 1) for at in scrapes if at not in times]
    assert not missing, f"of {len(scrapes)} scrapes those after {missing} s have no {series}"


@pytest.mark.parametrize("name", FROM_THE_EXPORTER + FROM_THE_GPU)
def test_no_gap_in_what_is_always_known(run, observer, all_series, name):
    record = run.record
    found = named(all_series, name)
    started = min(request.sent for request in record.requests)
    for series in found:
        assert_no_gap(run, observer, series, series.labels.get("server", record.single), started, observer.end)
    if name not in FROM_THE_GPU:
        assert {series.labels["server"] for series in found} == {record.single, record.program, record.router}


@pytest.mark.parametrize("name", FROM_THE_PROCESS + FROM_THE_LOG)
def test_no_gap_while_the_process_lives(run, observer, all_series, name):
    """A server that is asleep, or does not answer, has a process and a log."""
    found = named(all_series, name)
    for model, spans in lives(run.record, observer.end).items():
        of_model = [series for series in found if series.model == model]
        assert of_model, model
        for series in of_model:
            for start, end in spans:
                assert_no_gap(run, observer, series, model[0], start, end)


@pytest.mark.parametrize("name", FROM_THE_SERVER)
def test_no_gap_while_the_server_answers(run, observer, all_series, name):
    """A server that is asleep answers."""
    phases = run.record.phases
    found = named(all_series, name)
    for model, spans in lives(run.record, observer.end).items():
        if model[0] == run.record.program:
            (start, end), after = spans
            spans = [(start, phases["stuck"][0]), (phases["stuck"][1], end), after]
        of_model = [series for series in found if series.model == model]
        assert of_model, model
        [up] = [series for series in named(all_series, "up") if series.labels["server"] == model[0]]
        unanswered = [at for at, value in up.samples if not value]
        for series in of_model:
            for start, end in spans:
                assert_no_gap(run, observer, series, model[0], start, end, unanswered)


def test_counters_are_reset_only_by_a_new_process(run, all_series):
    phases = run.record.phases
    # Between these moments the old process ended and the new one started.
    replaced = {
        (run.record.program, MODEL_NAME): (phases["cut"][0], run.seen_by(run.record.program, phases["restart"][1])),
        (run.record.router, ALPHA): (phases["unload"][0], run.seen_by(run.record.router, phases["reload"][1])),
    }
    wrong = []
    for series in all_series:
        if not series.is_counter:
            continue
        if series.name in OF_THE_PROCESS and series.model in replaced:
            start, end = replaced[series.model]
            before = [value for at, value in series.samples if at < start][-1:]
            after = [value for at, value in series.samples if at > end][:1]
            # The first value of the new process does not continue those of the old one.
            expected = 1 if before and after and before != [0] else 0
            if len(series.resets) != expected or any(after < start or before > end for before, after in series.resets):
                wrong.append((series, series.resets))
        elif series.resets:
            wrong.append((series, series.resets))
    assert not wrong, "\n".join(map(str, wrong))


def test_no_label_changes(run, all_series):
    models = set(run.record.models)
    families = {}
    for series in all_series:
        if "model" in series.labels:
            assert series.model in models, series
        # An info metric has one series, whose labels say what is known.
        fixed = {key: value for key, value in series.labels.items() if key not in ENUMERATED}
        family = families.setdefault((series.name, series.model), (set(), []))
        family[0].add(frozenset(series.labels))
        if fixed not in family[1]:
            family[1].append(fixed)
    changed = {key: fixed or names for key, (names, fixed) in families.items() if len(fixed) > 1 or len(names) > 1}
    assert not changed, "\n".join(f"{key}: {value}" for key, value in changed.items())


def test_every_family_has_one_set_of_labels(all_series):
    labels = {}
    for series in all_series:
        labels.setdefault(series.name, set()).add(frozenset(series.labels))
    # What is not known of a model is absent from its info.
    mixed = {name: sets for name, sets in labels.items() if len(sets) > 1 and not name.endswith("_info")}
    assert not mixed, mixed


def test_the_events_of_a_model_are_counted_from_0(run, all_series):
    """`increase` sees only growth between two scrapes. A model that a router loads for a request has no counters
    before it, so its first scrape may come after the request."""
    counted = ("request_duration_seconds_count", "request_cancellations_total", "request_errors_total",
               "requests_total", "model_loads_total", "exporter_poll_errors_total")  # fmt: skip
    started = min(request.sent for request in run.record.requests)
    for name in counted:
        for series in named(all_series, name):
            if series.model == (run.record.router, BETA):
                continue
            first_at, first = series.samples[0]
            assert first == 0 or first_at <= started, f"{series} begins with {first}"
