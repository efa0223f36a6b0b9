"""Examines the machine: versions, devices and their rates, torch.compile, disk."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mpdit_core.doctor.options import Check, DoctorOptions
from mpdit_core.presets import load_preset
from mpdit_core.runtime.files import free_bytes, memory_bytes, size_text
from mpdit_core.version import __version__

if TYPE_CHECKING:
    import torch

    from mpdit_core.config import ComputeType

OTHER_PACKAGES = ("torchvision", "triton")  # not required by mpdit, but they must fit the installed torch
SECONDS_TO_MEASURE = 0.1
TYPICAL = "b-256"  # the preset at whose sizes `auto` is measured
SECONDS_TO_COMPILE = 180.0
MIN_FREE, LITTLE_FREE = 2**30, 10 * 2**30  # bytes on the disk: below them a fault, a note
COMPILE_TEST = """
import sys, torch
x = torch.linspace(-1, 1, 64, device=sys.argv[1])
def wave(x):
    return torch.sin(x) * 2 + x
torch.testing.assert_close(torch.compile(wave)(x), wave(x))
"""


def versions(_: DoctorOptions) -> Iterator[Check]:
    """The system, the versions of the packages that mpdit needs, and which of them are missing or too old."""
    from packaging.requirements import Requirement

    from mpdit_core.plugins import installed_version

    where = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    yield Check(area="versions", name="mpdit", what=f"{__version__} on {where}", data={"mpdit": __version__})
    declared = [Requirement(text) for text in importlib.metadata.requires("mpdit") or ()]
    needed = [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]
    found = {name: installed_version(name) for name in (*(each.name for each in needed), *OTHER_PACKAGES)}
    installed = {name: version for name, version in found.items() if version is not None}
    text = ", ".join(f"{name} {version}" for name, version in installed.items())
    yield Check(area="versions", name="packages", what=text, data=installed)
    for each in needed:
        version = found[each.name]
        if version is None or not each.specifier.contains(version, prereleases=True):
            what = f"{version or 'not installed'}, but mpdit requires {each.specifier}"
            yield Check(area="versions", name=each.name, status="fault", what=what, remedy=f"pip install '{each}'")


def devices(options: DoctorOptions) -> Iterator[Check]:
    """Every device, or the one in the options, with the rate of a large matrix product in each precision."""
    import torch

    from mpdit_core.runtime.device import select_device

    if options.device != "auto":
        present = [select_device(options.device)]
    else:
        present = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        present += [torch.device("mps")] if torch.backends.mps.is_available() else []
        present.append(torch.device("cpu"))
    yield from map(_device, present)
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        what = f"an NVIDIA driver is installed, but torch {torch.__version__} cannot use it"
        remedy = "install a build of torch for this driver's CUDA version"
        yield Check(area="devices", name="cuda", status="note", what=what, remedy=remedy)


def _device(device: torch.device) -> Check:
    import torch

    from mpdit_core.runtime.concurrency import usable_cores
    from mpdit_core.runtime.device import matmul_rate
    from mpdit_core.runtime.precision import DTYPES, choose_dtype, computing_in, dtype_name

    precisions: tuple[ComputeType, ...] = ("float32", "bfloat16")
    name, memory = f"{usable_cores()} cores" if device.type == "cpu" else "Apple GPU", memory_bytes()
    if device.type == "cuda":
        precisions = ("float32", "tf32", "bfloat16")
        found = torch.cuda.get_device_properties(device)
        name, memory = f"{found.name} (compute capability {found.major}.{found.minor})", found.total_memory
    rates: dict[str, float] = {}
    try:
        for precision in precisions:
            with computing_in(precision, device):
                rates[precision] = matmul_rate(device, DTYPES[precision], seconds=SECONDS_TO_MEASURE)
    except RuntimeError as error:
        return Check(
            area="devices", name=str(device), status="fault", remedy="--device cpu, or another build of torch",
            what=f"{name} cannot be used: {str(error).splitlines()[0]}",
        )  # fmt: skip
    shown = ", ".join(f"{precision} {rate / 1e12:.3g}" for precision, rate in rates.items())
    auto = dtype_name(choose_dtype("auto", device, load_preset(TYPICAL).model))
    size = f", {size_text(memory)}" if memory else ""
    return Check(
        area="devices", name=str(device), what=f"{name}{size}; TFLOP/s: {shown}; `auto` computes {TYPICAL} in {auto}",
        data={"hardware": name, "memory_bytes": memory, "flops_per_second": rates, "auto": auto},
    )  # fmt: skip


def compiler(options: DoctorOptions) -> Iterator[Check]:
    """Whether torch.compile compiles a small function correctly; in another process, because that may crash."""
    from mpdit_core.runtime.device import select_device
    from mpdit_core.runtime.precision import should_compile

    device = select_device(options.device)
    command = [sys.executable, "-c", COMPILE_TEST, device.type]
    problem = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
        if done.returncode != 0:
            named = [line.strip() for line in done.stderr.splitlines() if "Error" in line.partition(":")[0]]
            problem = named[-1][:300] if named else f"it ended with exit code {done.returncode}"  # advice may follow
    except subprocess.TimeoutExpired:
        problem = f"it took more than {SECONDS_TO_COMPILE:.0f} s"
    if not problem:
        yield Check(area="compile", name="torch.compile", what=f"works on {device.type}")
        return
    yield Check(
        area="compile", name="torch.compile",
        status="fault" if should_compile("auto", device) else "note",
        what=f"does not work on {device.type}: {problem}",
        remedy="install a C++ compiler (g++) and Python's headers; until then use --compile off",
    )  # fmt: skip


def disk(_: DoctorOptions) -> Iterator[Check]:
    """Free space in the working directory, where runs are written, and where weights are cached."""
    from huggingface_hub import constants

    for name, path in (("working directory", Path.cwd()), ("cache of the Hub", Path(constants.HF_HUB_CACHE))):
        free = free_bytes(path)
        status = "ok" if free >= LITTLE_FREE else "note" if free >= MIN_FREE else "fault"
        yield Check(
            area="disk", name=name, status=status, what=f"{size_text(free)} free in {path}", data={"free_bytes": free},
            remedy="" if status == "ok" else "free some space; `mpdit train --dry-run` shows how much a run needs",
        )  # fmt: skip
