"""The server generates as fast with the exporter as without it."""

import random
import signal
import statistics
import time

import pytest

# The smallest acceptable ratio of the speed with the exporter to the speed without it.
MIN_RATIO = 0.99
# A generation is measured in windows (seconds): with the exporter, without, without, with, so that a
# drift favours neither.
WINDOW = 1
MIN_WINDOWS = 16
MAX_WINDOWS = 40
# The widths of the ratio's confidence interval at which the test stops early, and above which it skips.
TARGET_WIDTH = 0.05
MAX_WIDTH = 0.1


# A build that answers the exporter between two tokens; from b10566 on, another thread does.
@pytest.mark.parametrize("build", [10068], indirect=True)
def test_generation_is_as_fast_as_without(build, all_cores, start_server, start_exporter):
    server = start_server()
    exporter = start_exporter(server.url, record_polls=False)
    cpu_before = cpu_seconds(exporter)
    speeds = {True: [], False: []}
    while True:
        measure(server, exporter, speeds)
        low, high = confidence_interval(speeds[True], speeds[False])
        windows = len(speeds[True]) + len(speeds[False])
        print(f"{windows} windows: with the exporter {low:.4f} to {high:.4f} of the speed without: {speeds}")
        decided = low >= MIN_RATIO or high < MIN_RATIO or high - low <= TARGET_WIDTH
        if (decided and windows >= MIN_WINDOWS) or windows >= MAX_WINDOWS:
            break
    # At most a hundredth of one core.
    assert (cpu_seconds(exporter) - cpu_before) / (len(speeds[True]) * WINDOW) < 0.01
    assert high >= MIN_RATIO
    if high - low > MAX_WIDTH:
        pytest.skip(f"the machine is too busy to measure: the ratio is between {low:.3f} and {high:.3f}")


def measure(server, exporter, speeds):
    """Tokens per second with the exporter and without, twice."""
    stream = server.stream(4000).wait_for_tokens(20)
    for polling in (True, False, False, True):
        # A stopped exporter keeps its connections; once continued, it polls at once.
        exporter.signal(signal.SIGCONT if polling else signal.SIGSTOP)
        start = time.monotonic()
        time.sleep(WINDOW)
        arrived = [moment for moment in stream.arrivals if moment >= start]
        speeds[polling].append((len(arrived) - 1) / (arrived[-1] - arrived[0]))
    stream.disconnect()


def undisturbed(speeds):
    """The mean of the fastest quarter. Other work on the machine only slows windows down, and spares some;
    the exporter polls in every one of its windows."""
    fastest = sorted(speeds)[-max(1, len(speeds) // 4) :]
    return statistics.mean(fastest)


def confidence_interval(with_exporter, without):
    """The 99% confidence interval of the ratio of undisturbed speeds, by bootstrap."""
    generator = random.Random(1)
    ratios = sorted(
        undisturbed(generator.choices(with_exporter, k=len(with_exporter)))
        / undisturbed(generator.choices(without, k=len(without)))
        for _ in range(2000)
    )
    return ratios[10], ratios[-11]


def cpu_seconds(exporter):
    [sample] = [s for s in exporter.exposition().samples if s.name == "process_cpu_seconds_total"]
    return sample.value
