"""What does this machine offer, and how is it interrupted? Devices, number formats, Ctrl-C, and progress bars."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The named device; "auto" takes an accelerator if there is one. ValueError for one that this machine lacks."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is not one that PyTorch knows") from error
    try:
        torch.zeros(1, device=picked).item()  # only the device knows whether it is there; "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(f'device {str(device)!r} is not available here; use "auto" or "cpu"') from error
    return picked


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C; what schedulers, containers and `kill` send; and, where it is not ignored (nohup), a closed terminal."""
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hang_up]


@contextmanager
def a_signal_finishes_the_step(patient: bool = False) -> Iterator[Callable[[], int]]:
    """Within, the first of `stop_signals` only raises a flag, so that no update is left half done; a second interrupts.

    Not if `patient`: a scheduler's signal reaches a process of torchrun twice, once passed on.
    Yields a function that gives the number of that signal, 0 while there is none. Outside the main thread there never
    is one: signals do not reach it.
    """
    pressed: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if pressed and not patient:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield lambda: pressed[0] if pressed else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def hide_progress_bar() -> bool | None:
    """What tqdm's `disable` should be. None: it shows a bar in a terminal only.

    A notebook is not a terminal, but its reader waits too and sees the bar, unless TQDM_DISABLE is set: a notebook
    that is run to be stored or compared must not hold one.
    """
    return bool(os.environ.get("TQDM_DISABLE")) if "ipykernel" in sys.modules else None
