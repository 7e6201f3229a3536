"""What the machine offers, and how it interrupts: gpt/support/machine.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types

import pytest
import torch


def test_auto_takes_the_accelerator_if_there_is_one(gpt, monkeypatch):
    for found, expected in ((None, "cpu"), (torch.device("cuda", 0), "cuda:0"), (torch.device("mps"), "mps")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, found=found: found)
        assert gpt.machine.pick_device() == torch.device(expected)


def test_a_device_that_is_here_is_taken(gpt):
    for device in ("cpu", torch.device("cpu")):
        assert gpt.machine.pick_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["tpu", "", "cuda:-1", "gpu:0"])
def test_a_device_that_pytorch_does_not_know_is_named(gpt, device):
    with pytest.raises(ValueError, match=f"device '{device}' is not one that PyTorch knows"):
        gpt.machine.pick_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "meta"])
def test_a_device_that_is_not_here_is_named(gpt, device):
    with pytest.raises(ValueError, match=f"device '{device}' is not available here"):
        gpt.machine.pick_device(device)


def test_the_first_ctrl_c_raises_a_flag_and_the_second_interrupts(gpt):
    before = signal.getsignal(signal.SIGINT)
    flags = []

    def press_twice():
        with gpt.machine.a_signal_finishes_the_step() as stop_asked:
            for _ in range(2):
                flags.append(stop_asked())
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert flags == [0, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_flag_is_ever_up(gpt):
    seen = []

    def work():
        with gpt.machine.a_signal_finishes_the_step() as stop_asked:
            seen.append(stop_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("notebook", "variable", "hidden"), [(False, "", None), (False, "1", None), (True, "", False), (True, "1", True)]
)
def test_a_bar_is_shown_in_a_terminal_and_to_the_reader_of_a_notebook(gpt, monkeypatch, notebook, variable, hidden):
    monkeypatch.setenv("TQDM_DISABLE", variable)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert gpt.machine.hide_progress_bar() is hidden


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_that_asks_for_an_end_raises_the_flag(gpt, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with gpt.machine.a_signal_finishes_the_step() as stop_asked:
            assert not stop_asked()
            os.kill(os.getpid(), number)
            assert stop_asked()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hang_up_that_is_ignored_stays_ignored(gpt):
    """`nohup` starts a program like this: closing the terminal must not end it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with gpt.machine.a_signal_finishes_the_step() as stop_asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop_asked()
    finally:
        signal.signal(signal.SIGHUP, before)
