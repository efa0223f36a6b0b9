"""Upload and download against a stand-in of the Hub. huggingface_hub reads its settings once: hence processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ecosystem_helpers import model_folder
from hub_server import Hub

from mpdit_core.errors import UserError
from mpdit_core.models.hub import download_model, parse_address

SESSION = """
import contextlib, io, json, sys, time
time.sleep = lambda seconds: None  # the library waits between its attempts
from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.models.hub import download_model

def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return [code, out.getvalue(), err.getvalue()]

def download(address):
    try:
        return str(download_model(address))
    except UserError as error:
        return str(error)

results = [globals()[name](*arguments) for name, arguments in json.loads(sys.argv[1])]
print("RESULTS" + json.dumps(results))
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
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(steps)], env=environment, capture_output=True, text=True, timeout=120
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULTS")), None)
    assert line is not None, done.stderr
    return json.loads(line.removeprefix("RESULTS"))


def test_push_and_download(tmp_path):
    """Up and down again is bit-equal; pins, cache, offline; what is refused is told in words."""
    original = model_folder(tmp_path / "runs" / "tiny-1" / "checkpoints" / "step-0000007")
    run, home = str(tmp_path / "runs" / "tiny-1"), tmp_path / "home"
    with Hub() as hub:
        hub.repositories["someone/else"] = {}
        hub.commit("someone/else", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x" * 10})
        hub.repositories["someone/empty"] = {}
        hub.commit("someone/empty", {"README.md": b"hello"})
        hub.gated.add("meta/gated")
        pushed, refused, halved, half, down, bert, empty, missing, gated, bad_revision = session(
            [
                ["command", ["export", run, str(tmp_path / "out"), "--push", "me/tiny", "--licence", "mit", "--json"]],
                ["command", ["export", run, str(tmp_path / "out2"), "--push", "forbidden/tiny"]],
                ["command", ["export", run, str(tmp_path / "half"), "--push", "me/half", "--half", "--private"]],
                ["download", ["hf:me/half"]],
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
        assert pushed[0] == 0, pushed
        assert json.loads(pushed[1].splitlines()[-1])["url"].startswith(f"{hub.url}/me/tiny/tree/")
        files = hub.repositories["me/tiny"]["main"]
        assert {"model.safetensors", "config.json", "README.md"} <= set(files)
        assert files["README.md"].startswith(b"---\nlicense: mit\n")
        assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
        fetched = sorted(p.name for p in Path(down).iterdir())
        assert fetched == ["config.json", "model.safetensors"]
        assert bits(Path(down)) == bits(original.path)
        assert halved[0] == 0, halved
        assert bits(Path(half)) == bits(tmp_path / "half")
        assert len(bits(Path(half))["head.linear.weight"]) * 2 == len(bits(Path(down))["head.linear.weight"])
        assert (refused[0], "use a token with the right to write" in refused[2]) == (2, True), refused
        assert "hf upload forbidden/tiny" in refused[2]
        assert (tmp_path / "out2" / "model.safetensors").exists()
        assert "is a bert, not a model of mpdit" in bert
        assert "GET /someone/else/resolve/main/model.safetensors" not in hub.requests
        assert "holds no config.json" in empty
        assert "has no model hf:no/body" in missing
        assert "is gated" in gated
        assert "has no revision v9" in bad_revision

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
        assert "HF_HUB_OFFLINE is set" in unknown
        assert len(hub.requests) == asked
    again, nothing, push = session(  # the server is gone
        [
            ["download", ["hf:me/tiny"]],
            ["download", ["hf:me/other"]],
            ["command", ["export", run, str(tmp_path / "out3"), "--push", "me/tiny"]],
        ],
        url=hub.url,
        home=home,
    )
    assert again == newest
    assert "cannot be reached" in nothing
    assert push[0] == 2
    assert "cannot be reached" in push[2]


def bits(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {
        n: t.contiguous().view(torch.uint8).numpy().tobytes()
        for n, t in load_file(folder / "model.safetensors").items()
    }


@pytest.mark.parametrize("address", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:../etc/passwd", "hf:a/b@x y"])
def test_wrong_addresses(address):
    with pytest.raises(UserError, match="not the address"):
        parse_address(address)


def test_addresses():
    assert parse_address("hf:org/name") == ("org/name", None)
    assert parse_address("hf:org/na-me.v2@refs/pr/1") == ("org/na-me.v2", "refs/pr/1")


def test_a_name_the_hub_forbids():
    with pytest.raises(UserError, match="not a name the Hub allows"):
        download_model("hf:org/-name--")
