"""Work shared by several processes, none of which outlives the block: gpt/support/processes.py."""

import os
import signal
import time

import pytest


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs_and_errors_as_they_are(gpt, processes):
    with gpt.processes.workers(processes) as map_:
        assert list(map_(int, ["3", "1", "2"])) == [3, 1, 2]
        own = {int(path.split("/")[2]) for path in map_(os.path.realpath, ["/proc/self"] * 2)}
        assert (os.getpid() in own) == (processes == 1)
        with pytest.raises(ValueError, match="'x'"):
            list(map_(int, ["1", "x"]))


def test_a_process_that_was_killed_is_said(gpt):
    with pytest.raises(OSError, match="a process was killed"), gpt.processes.workers(2) as map_:
        list(map_(signal.raise_signal, [signal.SIGKILL]))


def test_what_is_still_at_work_ends_with_the_block(gpt):
    with gpt.processes.workers(2) as map_:
        assert list(map_(abs, [-1, -2])) == [1, 2]
        map_(time.sleep, [1000, 1000])
        time.sleep(0.5)  # both have begun
        started = time.perf_counter()
    assert time.perf_counter() - started < 100  # seconds; without the pipe it waits for both
