"""What a poll says of each model."""

from exporter import STATES


def state(poll, model, **labels):
    """The one state that a model is in; None if nothing is said of it."""
    said = {state: poll.value("status", model=model, status=state, **labels) for state in STATES}
    if set(said.values()) == {None}:
        return None
    assert sorted(said.values()) == [0] * (len(STATES) - 1) + [1], f"{model} is in not just one state: {said}"
    return next(state for state in STATES if said[state] == 1)


def states(poll):
    """The state of every model, by its label; by label and mode where it runs in two."""
    said = {}
    for sample in poll.samples:
        if sample.name == "llamacpp_status":
            key = (sample.labels["model"], sample.labels.get("mode"))
            said.setdefault(key, [])
            said[key] += [sample.labels["status"]] if sample.value else []
    return {model if mode is None else (model, mode): ",".join(state) for (model, mode), state in said.items()}


def families(poll, model, **labels):
    """What is said of a model, less the metrics' common first part."""
    wanted = {"model": model} | labels
    return {sample.name.removeprefix("llamacpp_") for sample in poll.samples if wanted.items() <= sample.labels.items()}


def labels_of(poll, name):
    """The labels of the one series of that name."""
    found = [sample.labels for sample in poll.samples if sample.name == f"llamacpp_{name}"]
    assert len(found) == 1, f"{len(found)} series of {name}: {found}"
    return found[0]


def kind(poll):
    found = [sample.labels["kind"] for sample in poll.samples if sample.name == "llamacpp_server_info"]
    assert len(found) <= 1
    return found[0] if found else None
