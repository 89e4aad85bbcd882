"""Locks on the machine's cores, shared by test processes that run side by side.

Most tests wait most of the time. One that keeps a core busy holds a lock meanwhile, so that no more
of them run than there are cores. The system releases the locks of a process that dies.
"""

import fcntl
import os
import time
from contextlib import ExitStack, contextmanager

from support import LLAMA_CPP


def _core_files():
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [LLAMA_CPP / f".core-{number}" for number in range(min(count, 4))]


def _try_lock(path):
    """The locked file; None if another process holds the lock."""
    lock = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@contextmanager
def one_core():
    """Holds one of the cores."""
    while not (lock := next(filter(None, map(_try_lock, _core_files())), None)):
        time.sleep(0.1)
    with lock:
        yield


@contextmanager
def all_cores():
    """Holds every core."""
    with ExitStack() as locks:
        # Only one process at a time may collect all of them, or two could deadlock.
        for path in [LLAMA_CPP / ".all-cores", *_core_files()]:
            lock = locks.enter_context(open(path, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
