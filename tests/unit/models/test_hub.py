"""Upload and download against a stand-in of the Hub. huggingface_hub reads its settings once: hence processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from data_helpers import refused
from ecosystem_helpers import model_folder
from hub_server import Hub
from launch import run_forked

from mpdit_core.models.hub import download_model, parse_address

FRESH = ("huggingface_hub", "mpdit_core", "mpdit_cli")
SESSION = """
import contextlib, io, json, time
from pathlib import Path
time.sleep = lambda seconds: None  # the library waits between its attempts
from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.models.hub import download_model, upload_folder
from mpdit_core.runtime import hub

def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return [code, out.getvalue(), err.getvalue()]

def download(address):
    return str(download_model(address))

def push(folder, name):
    return upload_folder(Path(folder), name)

def push_space(folder, name):
    return upload_folder(Path(folder), name, kind="space")

def download_files(repository, patterns, revision, subfolder, cached_first):
    return str(hub.download(
        repository, patterns=patterns, revision=revision, subfolder=subfolder, cached_first=cached_first))

def result(name, arguments):
    try:
        return globals()[name](*arguments)
    except UserError as error:
        return [error.code, str(error)]

print("RESULTS" + json.dumps([result(*step) for step in steps]))
"""


def session(steps: list, *, url: str, home: Path, **settings: str) -> list:
    """Runs commands and downloads in one process that knows the Hub at `url`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
    } | settings
    done = run_forked(_begin, steps, environment)
    line = next((line for line in done.out.splitlines() if line.startswith("RESULTS")), None)
    assert line is not None, done.err
    return json.loads(line.removeprefix("RESULTS"))


def _begin(steps: list, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.partition(".")[0] in FRESH]:
        del sys.modules[name]  # all but torch, which takes seconds, is imported again
    exec(SESSION, {"steps": steps})


def test_upload_and_download(tmp_path):
    """Up and down again is bit-equal; pins, cache, offline; what is refused has a code."""
    original, home = model_folder(tmp_path / "model"), tmp_path / "home"
    with Hub() as hub:
        hub.repositories["someone/else"] = {}
        hub.commit("someone/else", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x" * 10})
        hub.repositories["someone/empty"] = {}
        hub.commit("someone/empty", {"README.md": b"hello"})
        hub.gated.add("meta/gated")
        pushed, space, refused, down, bert, empty, missing, gated, bad_revision = session(
            [
                ["push", [str(original.path), "me/tiny"]],
                ["push_space", [str(original.path), "me/page"]],
                ["push", [str(original.path), "forbidden/tiny"]],
                ["download", ["hf:me/tiny"]],
                ["download", ["hf:someone/else"]],
                ["download", ["hf:someone/empty"]],
                ["download", ["hf:no/body"]],
                ["download", ["hf:meta/gated"]],
                ["download", ["hf:me/tiny@v9"]],
            ],
            url=hub.url,
            home=home,
            HF_TOKEN="hf_test",
        )
        assert [path for path in hub.unknown if "/api/agent" not in path] == []  # the library looks itself up there
        assert pushed.startswith(f"{hub.url}/me/tiny/tree/")
        assert space.startswith(f"{hub.url}/spaces/me/page/tree/")
        assert hub.repositories["me/page"]["main"] == hub.repositories["me/tiny"]["main"]
        files = hub.repositories["me/tiny"]["main"]
        assert files["model.safetensors"] == (original.path / "model.safetensors").read_bytes()
        assert sorted(p.name for p in Path(down).iterdir()) == ["config.json", "model.safetensors"]
        assert bits(Path(down)) == bits(original.path)
        assert refused[0] == "hub-refused"
        assert "use a token with the right to write" in refused[1]
        assert bert[0] == "not-a-model"
        assert "is a bert" in bert[1]
        assert not [request for request in hub.requests if "/someone/else/resolve/" in request and "model" in request]
        assert empty[0] == "no-such-file"
        assert "mpdit import" in empty[1]
        assert missing[0] == "no-such-repository"
        assert gated[0] == "no-access"
        assert bad_revision[0] == "no-such-revision"

        first = hub.commit_of("me/tiny", "main")
        hub.commit("me/tiny", {"config.json": files["config.json"].replace(b'"step": 7', b'"step": 8')})
        pinned, newest = session(
            [["download", [f"hf:me/tiny@{first}"]], ["download", ["hf:me/tiny"]]], url=hub.url, home=home
        )
        assert json.loads((Path(pinned) / "config.json").read_text())["step"] == 7
        assert json.loads((Path(newest) / "config.json").read_text())["step"] == 8
        asked = len(hub.requests)
        offline, unknown = session(
            [["download", ["hf:me/tiny"]], ["download", ["hf:me/other"]]], url=hub.url, home=home, HF_HUB_OFFLINE="1"
        )
        assert offline == newest
        assert unknown[0] == "hub-unreachable"
        assert "HF_HUB_OFFLINE is set" in unknown[1]
        assert len(hub.requests) == asked
    again, nothing, push = session(  # the server is gone
        [
            ["download", ["hf:me/tiny"]],
            ["download", ["hf:me/other"]],
            ["push", [str(original.path), "me/tiny"]],
        ],
        url=hub.url,
        home=home,
    )
    assert again == newest
    assert nothing[0] == "hub-unreachable"
    assert push[0] == "hub-unreachable"


def test_an_export_is_pushed(tmp_path):
    model_folder(tmp_path / "runs" / "tiny-1" / "checkpoints" / "step-0000007")
    run, home = str(tmp_path / "runs" / "tiny-1"), tmp_path / "home"
    with Hub() as hub:
        pushed, refused, halved, down, half = session(
            [
                ["command", ["export", run, str(tmp_path / "out"), "--push", "me/tiny", "--licence", "mit", "--json"]],
                ["command", ["export", run, str(tmp_path / "out2"), "--push", "forbidden/tiny"]],
                ["command", ["export", run, str(tmp_path / "half"), "--push", "me/half", "--half", "--private"]],
                ["download", ["hf:me/tiny"]],
                ["download", ["hf:me/half"]],
            ],
            url=hub.url,
            home=home,
            HF_TOKEN="hf_test",
        )
        assert (pushed[0], halved[0]) == (0, 0), (pushed, halved)
        assert json.loads(pushed[1].splitlines()[-1])["url"].startswith(f"{hub.url}/me/tiny/tree/")
        files = hub.repositories["me/tiny"]["main"]
        assert {"model.safetensors", "config.json", "README.md"} <= set(files)
        assert files["README.md"].startswith(b"---\nlicense: mit\n")
        assert bits(Path(half)) == bits(tmp_path / "half")
        assert len(bits(Path(half))["head.linear.weight"]) * 2 == len(bits(Path(down))["head.linear.weight"])
        assert refused[0] == 2
        assert "hf upload forbidden/tiny" in refused[2]
        assert (tmp_path / "out2" / "model.safetensors").exists()


def test_files_of_an_autoencoder_come_from_the_cache_first(tmp_path):
    """`runtime.hub.download` as autoencoders use it: a subfolder, a revision, no question to the Hub when cached."""
    weights = {"vae/config.json": b"{}", "vae/diffusion.safetensors": b"x" * 10, "vae/other.bin": b"y"}
    wanted = ["config.json", "diffusion.safetensors"]
    with Hub() as hub:
        hub.repositories["ai/vae"] = {}
        first = hub.commit("ai/vae", weights)
        step = ["download_files", ["ai/vae", wanted, None, "vae", True]]
        (found,) = session([step], url=hub.url, home=tmp_path)
        assert Path(found).name == "vae"
        assert sorted(p.name for p in Path(found).iterdir()) == sorted(wanted)
        hub.commit("ai/vae", {"vae/config.json": b"[]"})
        asked = len(hub.requests)
        pinned = ["download_files", ["ai/vae", wanted, first, "vae", True]]
        lacking = ["download_files", ["ai/vae", ["config.json", "missing.safetensors"], None, "vae", True]]
        again, same, newer, refused = session(
            [step, pinned, ["download_files", ["ai/vae", wanted, None, "vae", False]], lacking],
            url=hub.url,
            home=tmp_path,
        )
        assert again == same == found
        assert (Path(newer) / "config.json").read_bytes() == b"[]"
        assert refused[0] == "no-such-file"
        assert len(hub.requests) > asked
        asked = len(hub.requests)
        assert session([step], url=hub.url, home=tmp_path) == [newer]
        assert [path for path in hub.requests[asked:] if "/api/agent" not in path] == []


OUTSIDE = {"X-Repo-Commit": "/tmp/outside"}, {"X-Repo-Commit": "../../../../outside"}, {"ETag": '"../../../outside"'}
LIES: dict[str, dict] = {
    "commit elsewhere": {"headers": OUTSIDE[0]},
    "commit above": {"headers": OUTSIDE[1]},
    "checksum above": {"headers": {**OUTSIDE[2], "X-Linked-ETag": '"../../../outside"'}},
    "wrong length": {"headers": {"X-Linked-Size": "99999"}, "bodies": {"/tree/": b'[{"type": "file", "path": '
                     b'"config.json", "size": 99999, "oid": "' + b"a" * 40 + b'"}]'}},
    "web page": {"bodies": {"/revision/": b"<!DOCTYPE html><html>Sign in</html>"}},
    "nothing": {"bodies": {"/revision/": b""}},
    "another form": {"bodies": {"/revision/": b"[1, 2]"}},
    "hang": {"hangs_at": "HEAD"},
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_answers_that_cannot_be_are_one_message(name: str, tmp_path):
    with Hub() as hub:
        hub.repositories["me/tiny"] = {}
        hub.commit("me/tiny", {"config.json": b'{"format": 2, "config": {}}'})
        for key, value in LIES[name].items():
            setattr(hub, key, value)
        (refused,) = session(
            [["download", ["hf:me/tiny"]]], url=hub.url, home=tmp_path / "home", HF_HUB_ETAG_TIMEOUT="1"
        )
    assert refused[0] == ("hub-unreachable" if name == "hang" else "hub-damaged-download"), refused
    assert "outside" not in " ".join(str(path) for path in tmp_path.rglob("*"))


def bits(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {
        n: t.contiguous().view(torch.uint8).numpy().tobytes()
        for n, t in load_file(folder / "model.safetensors").items()
    }


@pytest.mark.parametrize("address", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:../etc/passwd", "hf:a/b@x y"])
def test_wrong_addresses(address):
    with refused("invalid-value"):
        parse_address(address)


def test_addresses():
    assert parse_address("hf:org/name") == ("org/name", None)
    assert parse_address("hf:org/na-me.v2@refs/pr/1") == ("org/na-me.v2", "refs/pr/1")


def test_a_name_the_hub_forbids():
    with refused("invalid-value"):
        download_model("hf:org/-name--")
