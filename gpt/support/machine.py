"""What does this machine offer, and how is it interrupted? Devices, number formats, Ctrl-C, and progress bars."""

from __future__ import annotations

import os
import signal
import sys
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


@contextmanager
def ctrl_c_finishes_the_step() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only raises a flag, so that no update is left half done; the second one interrupts.

    Yields a function that says whether the flag is up. Outside the main thread it never is: signals do not reach it.
    """
    pressed: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def hide_progress_bar() -> bool | None:
    """What tqdm's `disable` should be. None: it shows a bar in a terminal only.

    A notebook is not a terminal, but its reader waits too and sees the bar, unless TQDM_DISABLE is set: a notebook
    that is run to be stored or compared must not hold one.
    """
    return bool(os.environ.get("TQDM_DISABLE")) if "ipykernel" in sys.modules else None
