"""The text of one scrape, parsed."""

from dataclasses import dataclass
from functools import cached_property

from prometheus_client.parser import text_string_to_metric_families

STATUSES = ("idle", "loading", "running", "sleeping", "unloaded", "downloading", "failed")
# Counters that the exporter itself keeps of a model, in whatever state it is.
INTEGRALS = {
    "status_seconds_total",
    "model_loads_total",
    "requests_deferred_seconds_total",
    "requests_processing_seconds_total",
}
# What the log of a failed test shows of each poll.
SUMMARY = (
    "up", "tokens_per_second", "prompt_tokens_per_second", "generated_tokens_total", "prompt_tokens_total",
    "decode_calls_total", "requests_processing", "requests_deferred", "slots_busy", "exporter_poll_duration_seconds",
)  # fmt: skip


@dataclass
class Exposition:
    """Metric names are given without the prefix `llamacpp_`."""

    text: str

    @cached_property
    def samples(self):
        return [sample for family in text_string_to_metric_families(self.text) for sample in family.samples]

    def find(self, name, **labels):
        """The samples with that name and at least those labels."""
        return [s for s in self.samples if s.name == f"llamacpp_{name}" and labels.items() <= s.labels.items()]

    def _one(self, name, **labels):
        found = self.find(name, **labels)
        assert len(found) <= 1, f"{len(found)} series of {name} {labels}: {found}"
        return found[0] if found else None

    def value(self, name, **labels):
        """The value of the only such series; None if there is none."""
        sample = self._one(name, **labels)
        return sample and sample.value

    def labels(self, name, **labels):
        """The labels of the only such series; empty if there is none."""
        sample = self._one(name, **labels)
        return sample.labels if sample else {}

    def errors(self, **labels):
        """The number of failed upstream requests so far."""
        return sum(sample.value for sample in self.find("exporter_poll_errors_total", **labels))

    @property
    def server_kind(self):
        return self.labels("server_info").get("kind")

    def families(self, model, **labels):
        """The names of a model's series."""
        labels = {"model": model} | labels
        return {s.name.removeprefix("llamacpp_") for s in self.samples if labels.items() <= s.labels.items()}

    @property
    def model_series(self):
        """The names of the series that have a model."""
        return {sample.name for sample in self.samples if "model" in sample.labels}

    @property
    def status(self):
        """The status of the only model; None while there is none."""
        active = [status for status in STATUSES if self.value("status", status=status) == 1]
        assert len(active) <= 1, f"more than one status: {active}"
        return active[0] if active else None

    def model_status(self, model, **labels):
        """The status of a model; None if it has no series."""
        values = {status: self.value("status", model=model, status=status, **labels) for status in STATUSES}
        if set(values.values()) == {None}:
            return None
        assert sorted(values.values()) == [0] * (len(STATUSES) - 1) + [1], f"{model} has not one status: {values}"
        return next(status for status in STATUSES if values[status] == 1)

    @property
    def model_statuses(self):
        """The status of every model, by label; by label and mode where it has several modes."""
        found = {}
        for sample in self.find("status"):
            active = found.setdefault((sample.labels["model"], sample.labels.get("mode")), [])
            active += [sample.labels["status"]] if sample.value else []
        names = [model for model, _ in found]
        return {
            key if names.count(key[0]) > 1 else key[0]: ",".join(status)
            for key, status in found.items()
        }  # fmt: skip

    def summary(self):
        """Statuses and some values, in a line."""
        parts = [f"errors={self.errors():g}"]
        for sample in self.samples:
            name, model = sample.name.removeprefix("llamacpp_"), sample.labels.get("model", "")
            if name == "status" and sample.value:
                parts.append(f"{model} is {sample.labels['status']}")
            elif name in SUMMARY:
                parts.append(f"{model} {name}={sample.value:g}".strip())
        return ", ".join(parts[:40])


@dataclass
class Poll(Exposition):
    """/metrics after a poll that ended between `ended_after` and `ended_before` (monotonic seconds)."""

    number: int
    ended_after: float
    ended_before: float

    @property
    def started_after(self):
        """The poll started at this moment or later."""
        return self.ended_after - self.value("exporter_poll_duration_seconds")
