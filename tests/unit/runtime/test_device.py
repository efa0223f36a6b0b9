"""The choice of a device, and what it does to the process."""

from __future__ import annotations

import platform

import pytest
import torch
from data_helpers import refused
from launch import run_forked

from mpdit_core.runtime.device import select_device


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with refused("no-such-device"):
        select_device("auto")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_a_process_on_a_cpu_keeps_the_memory_that_it_frees():
    def work() -> int:
        import resource

        select_device("cpu")
        faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
        for _ in range(40):  # glibc needs some turns until it has a place that fits
            torch.ones(2**24)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return int(faults[-1] - faults[-2] > 1000)  # 64 MiB are 16,384 pages

    assert run_forked(work).code == 0
