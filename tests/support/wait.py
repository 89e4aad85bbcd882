"""Waiting for a condition, with a deadline."""

import time

from support import TIMEOUT


def wait_for(condition, description, timeout=TIMEOUT, interval=0.05):
    """Returns the first true value of `condition()`.

    `description` completes "timed out waiting for …"; a function is called at the time-out.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            details = description() if callable(description) else description
            raise AssertionError(f"timed out after {timeout} s waiting for {details}")
        time.sleep(interval)
    return value
