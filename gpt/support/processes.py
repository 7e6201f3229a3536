"""How do several processes share one list of work? A `map` over them, and none of them outlives the one that asked.

This file imports nothing heavy, so that a new process heeds `_end_with_the_pipe` before it loads what its work needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread
from typing import Any, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Map(Protocol):
    """Python's `map` of one function over one iterable, or that of a pool of processes: results in order."""

    def __call__(self, function: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]: ...


@contextmanager
def workers(processes: int) -> Iterator[Map]:
    """A `map` that works in that many processes, in this one if it is 1. They end with the block, however it ends.

    Functions, jobs and results are pickled. Raises what a function raises, and OSError if a process was killed.
    """
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in the middle of something
    alive, this_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _end_with_the_pipe, (alive,))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise OSError("a process was killed (too little memory?); give the same again, it continues") from error
    finally:
        this_end.close()
        pool.shutdown(cancel_futures=True)


def _end_with_the_pipe(alive: Any) -> None:
    """End this process as soon as nobody holds the pipe's other end: also if its holder was killed."""

    def wait() -> None:
        alive.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides
    Thread(target=wait, daemon=True).start()
