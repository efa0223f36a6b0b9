"""The choice of a device, and what it does to the process."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from data_helpers import refused
from launch import run_forked

from mpdit_core.runtime.device import deterministic, select_device


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


def deterministic_flags() -> tuple[bool, bool, bool]:
    filling: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,
    )


@pytest.fixture
def as_started() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_started")
@pytest.mark.parametrize("before", [False, True])
def test_a_gpu_is_deterministic_within_and_flags_are_restored(before):
    torch.use_deterministic_algorithms(before, warn_only=before)
    flags = deterministic_flags()
    with deterministic(torch.device("cpu")):
        assert deterministic_flags() == flags
    with suppress(KeyError), deterministic(torch.device("cuda")):
        assert deterministic_flags() == (True, False, False)
        raise KeyError
    assert deterministic_flags() == flags
