"""What does this machine offer, and how does it interrupt us? Devices, number formats, Ctrl-C, progress bars."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str = "auto") -> torch.device:
    """The named device; "auto" takes an accelerator if there is one. ValueError for one that this machine lacks."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)  # let the device itself say whether it is there
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {device!r} is not available here; use "auto" or "cpu"') from error
    if picked.type == "meta":
        raise ValueError(f'device {device!r} holds no numbers; use "auto" or "cpu"')
    return picked


@contextmanager
def ctrl_c_finishes_the_step() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only raises a flag, so that no update is left half done; the second one interrupts.

    Yields a function that says whether the flag is up.
    """
    pressed: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        previous = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread: signals do not arrive here
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def hide_progress_bar() -> bool | None:
    """For tqdm's `disable`: None shows a bar in a terminal only. A notebook is not one, but its reader waits too.

    Only a reader, though: where a notebook is run to be checked or stored, a bar would be part of its output.
    """
    if os.environ.get("TQDM_DISABLE"):
        return True
    return False if "ipykernel" in sys.modules else None
