"""`mpdit doctor`: each area finds what works and what is broken; nothing raises or tells whose machine it is."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import run, succeed

import mpdit_core.plugins
from mpdit_core.doctor import Check, DoctorOptions, contents, diagnose, job, machine, weights
from mpdit_core.doctor.options import Area
from mpdit_core.metrics.features import published_weights
from mpdit_core.plugins.finding import entries
from mpdit_core.plugins.job import PluginList, PluginReport


def examine(*areas: Area, **more) -> dict[str, Check]:
    """The checks by name."""
    found = diagnose(DoctorOptions(areas=areas, device="cpu", **more))
    assert found.faults == sum(check.status == "fault" for check in found.checks)
    return {check.name: check for check in found.checks}


def test_versions(monkeypatch: pytest.MonkeyPatch):
    found = examine("versions")
    assert found["packages"].data["torch"] == torch.__version__.partition("+")[0]
    assert {check.status for check in found.values()} == {"ok"}
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["torch>=99", "no-such-package", "x>1; extra == 'y'"])
    found = examine("versions")
    assert (found["torch"].status, found["torch"].remedy) == ("fault", "pip install 'torch>=99'")
    assert found["no-such-package"].status == "fault"
    assert "x" not in found


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "SECONDS_TO_MEASURE", 0.0)
    cpu = examine("devices")["cpu"]
    assert cpu.status == "ok"
    assert cpu.data["auto"] in ("float32", "bfloat16")
    assert all(rate > 0 for rate in cpu.data["flops_per_second"].values())

    def broken(*_, **__):
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr("mpdit_core.runtime.device.matmul_rate", broken)
    assert examine("devices")["cpu"].status == "fault"


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("pass", "ok", "works on cpu"),
        ("raise RuntimeError('no compiler')", "note", "RuntimeError: no compiler"),
        ("import os; os.abort()", "note", "ended with"),
        ("while True: pass", "note", "took more than"),
    ],
)
def test_compile(monkeypatch: pytest.MonkeyPatch, program: str, status: str, words: str):
    monkeypatch.setattr(machine, "COMPILE_TEST", program)
    monkeypatch.setattr(machine, "SECONDS_TO_COMPILE", 0.5 if "while" in program else 60.0)
    check = examine("compile")["torch.compile"]
    assert check.status == status  # a note: `auto` compiles on GPUs alone
    assert words in check.what


def test_disk(monkeypatch: pytest.MonkeyPatch):
    for free, status in ((2**40, "ok"), (2**31, "note"), (2**20, "fault")):
        monkeypatch.setattr(machine, "free_bytes", lambda _, free=free: free)
        assert {check.status for check in examine("disk").values()} == {status}


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for answer, status in ((True, "note"), (False, "fault")):
        monkeypatch.setattr(weights, "answers", lambda _, answer=answer: answer)
        inception, autoencoder = examine("weights").values()
        assert inception.status == status
        assert (autoencoder.status, autoencoder.what) == ("fault", "not cached, and HF_HUB_OFFLINE is set")
    path = published_weights().path
    path.parent.mkdir(parents=True)
    path.touch()
    assert next(iter(examine("weights").values())).status == "ok"


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/here" else 404)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_whether_something_answers(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert weights.answers(f"{server}/here")
    assert not weights.answers(f"{server}/elsewhere")
    assert not weights.answers("http://127.0.0.1:9/nobody")
    assert not weights.answers("no address")


def test_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert examine("here")["found"].what == "nothing that belongs to mpdit"
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text("{")
    found = examine("here")
    assert (found["found"].data, found["runs/a"].status) == ({"run": 1}, "fault")


def test_plugins(monkeypatch: pytest.MonkeyPatch):
    identity: dict[str, Any] = {"kind": "samplers", "package": "a", "version": "1", "value": "a:S"}
    monkeypatch.setattr(contents, "OWN", {"samplers": "good", "features": "missing"})
    listed = PluginList(plugins=(
        PluginReport(name="good", **identity),
        PluginReport(name="loud", status="noisy", reason="prints", remedy="none needed", **identity),
        PluginReport(name="bad", status="broken", reason="no import", remedy="pip install b", **identity),
    ), broken=1)  # fmt: skip
    monkeypatch.setattr(mpdit_core.plugins, "list_plugins", lambda: listed)
    found = examine("plugins")
    assert found["installed"].data == {"samplers": 2}
    assert [check.status for check in found.values()] == ["ok", "fault", "note", "fault"]
    assert found["features missing"].status == "fault"
    assert found["samplers bad of a"].remedy == "pip install b"


def test_a_plugin_of_every_kind_that_mpdit_has_is_looked_for():
    own = {kind: {entry.name for entry in entries(kind) if entry.is_ours} for kind in mpdit_core.plugins.KINDS}
    assert contents.OWN.keys() == {kind for kind, names in own.items() if names}
    assert all(name in own[kind] for kind, name in contents.OWN.items())


def test_an_area_that_cannot_be_examined_is_a_fault_among_the_others(monkeypatch: pytest.MonkeyPatch):
    def broken(_):
        raise OSError("libcudart.so is missing")

    monkeypatch.setitem(job.AREAS, "devices", broken)
    found = examine("devices", "disk")
    assert found["devices"].status == "fault"
    assert found["working directory"].status in ("ok", "note")


def test_a_deleted_working_directory_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert examine("disk")["disk"].status == "fault"


def test_nothing_tells_whose_machine_it_is_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, here = tmp_path / "home" / "ada", tmp_path / "home" / "ada" / "work"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(here)
    place = Check(area="here", name="x", what=f"in {here}/runs and {home}/.cache", remedy=f"rm {home}")
    monkeypatch.setitem(job.AREAS, "here", lambda _: [place])
    hidden = examine("here")["x"]
    assert (hidden.what, hidden.remedy) == ("in ./runs and ~/.cache", "rm ~")
    assert examine("here", paths=True)["x"] == place
    shown = run("doctor", "versions", "disk", "here", "--device", "cpu", "--json")
    assert "ada" not in shown.out + shown.err
    assert "hf_secret" not in shown.out + shown.err


def test_the_command_ends_with_2_where_there_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = succeed("doctor", "here", "versions", "--json")
    assert [check["area"] for check in done.result["checks"]] == ["here", "versions", "versions"]
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text("{")
    broken = run("doctor", "here")
    assert broken.code == 2
    assert "fault: runs/a" in broken.out
    assert run("doctor", "here", "--json").result["faults"] == 1
    refused = run("doctor", "hair", "--json")
    assert (refused.code, refused.result["code"]) == (2, "invalid-value")
