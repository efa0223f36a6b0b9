"""Models on the Hugging Face Hub: downloading `hf:ORG/NAME[@revision]`, and uploading an export.

Only `config.json` and `model.safetensors` are downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from mpdit_core.errors import UserError
from mpdit_core.runtime import files
from mpdit_core.runtime.hub import PREFIX, download, hub_errors

CONFIG, WEIGHTS, PREVIEW = "config.json", "model.safetensors", "samples.png"


def parse_address(address: str) -> tuple[str, str | None]:
    """`hf:ORG/NAME@revision` as (`ORG/NAME`, revision or None).

    Raises:
        UserError: not of that form.
    """
    match = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if match is None:
        raise UserError(
            f"{address} is not a valid name of a model on the Hub",
            code="invalid-value",
            expected="hf:ORG/NAME or hf:ORG/NAME@revision (a branch, a tag or a commit)",
        )
    return match.group(1), match.group(2)


def download_model(address: str) -> Path:
    """The folder in the local cache that holds the model `hf:ORG/NAME[@revision]`, downloaded where it is missing.

    `config.json` comes first, so a repository that holds something else costs no large download; the weights are then
    those of the same commit. Without a network the cached copy is used.

    Raises:
        UserError: no such repository or revision, no access, not a model of mpdit, or neither network nor cached copy.
    """
    name, revision = parse_address(address)
    expected = f"a repository with {CONFIG} and {WEIGHTS} as `mpdit export` writes them"
    remedy = "`mpdit import FILE` reads official MPDiT, DiT and SiT checkpoints once downloaded"
    try:
        folder = download(name, patterns=[CONFIG], revision=revision)
        description = files.read_json(folder / CONFIG)
        if isinstance(description, dict) and {"format", "config"} <= description.keys():
            return download(name, patterns=[WEIGHTS], revision=folder.name)  # …/snapshots/<commit>
    except UserError as error:
        if error.code != "no-such-file":
            raise
        raise UserError(error.what, code=error.code, expected=expected, remedy=remedy) from error
    named = description if isinstance(description, dict) else {}
    kind = named.get("_class_name") or named.get("model_type")
    what = f"{PREFIX}{name} is {f'a {kind}' if kind else 'something else'}, not a model of mpdit"
    raise UserError(what, code="not-a-model", expected=expected, remedy=remedy)


def upload_folder(folder: Path, name: str, *, kind: Literal["model", "space"] = "model", private: bool = False) -> str:
    """Uploads all of `folder` to the repository `ORG/NAME`, made where it is missing; returns its address.

    Raises:
        UserError: no token, no right to write there, or no network.
    """
    from huggingface_hub import HfApi, constants

    with hub_errors(name):
        api = HfApi()
        sdk = "gradio" if kind == "space" else None
        api.create_repo(name, repo_type=kind, space_sdk=sdk, private=private, exist_ok=True)
        message = f"mpdit export of {folder.name}"
        commit = api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message=message)
    place = f"spaces/{name}" if kind == "space" else name
    return f"{constants.ENDPOINT}/{place}/tree/{commit.oid}"
