"""Models on the Hugging Face Hub: fetching one by `hf:ORG/NAME[@revision]`, and uploading an export.

Only `config.json`, `model.safetensors` and pictures are ever fetched. They land in the Hub's own cache (`HF_HOME`), so
a second use needs no network, and `HF_HUB_OFFLINE=1` or `HF_ENDPOINT` work as for every tool of that family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.runtime import files

CONFIG, WEIGHTS, PREVIEW = "config.json", "model.safetensors", "samples.png"
PREFIX = "hf:"
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # by version of huggingface_hub


def parse_address(address: str) -> tuple[str, str | None]:
    """`hf:ORG/NAME@revision` as (`ORG/NAME`, revision or None).

    Raises:
        UserError: not of that form.
    """
    match = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if match is None:
        raise UserError(
            f"{address} is not the address of a model on the Hub",
            expected="hf:ORG/NAME or hf:ORG/NAME@revision (a branch, a tag or a commit)",
        )
    return match.group(1), match.group(2)


def download_model(address: str) -> Path:
    """The folder in the local cache that holds the model `hf:ORG/NAME[@revision]`, fetched where it is missing.

    `config.json` is fetched and looked at first, so a repository of something else costs no large download; the
    weights then come from the very commit that `config.json` came from. Without a network the cached copy is used.

    Raises:
        UserError: no such repository or revision, gated, not a model of mpdit, or neither network nor cached copy.
    """
    name, revision = parse_address(address)
    config = _fetch(name, CONFIG, revision)
    description = files.read_json(config)
    if not isinstance(description, dict) or not {"format", "config"} <= description.keys():
        kind = (
            description.get("_class_name") or description.get("model_type") if isinstance(description, dict) else None
        )
        raise UserError(
            f"{PREFIX}{name} is {f'a {kind}' if kind else 'something else'}, not a model of mpdit",
            expected=f"a repository with {CONFIG} and {WEIGHTS} as `mpdit export` writes them",
            remedy="`mpdit import FILE` reads official MPDiT, DiT and SiT checkpoints once downloaded",
        )
    commit = config.parent.name  # …/snapshots/<commit>/config.json
    return _fetch(name, WEIGHTS, commit).parent


def _fetch(name: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download

    with files.user_errors(Path(constants.HF_HUB_CACHE)), hub_errors(name, revision=revision, file=file):
        return Path(hf_hub_download(name, file, revision=revision))


@contextmanager
def hub_errors(name: str, *, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises about repository `name` into a `UserError` that says what to do."""
    from huggingface_hub import constants, errors

    at = f"{PREFIX}{name}" + (f"@{revision}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{at} is gated: its authors grant access one by one",
            expected="a token of an account they let in",
            remedy=f"ask for access at {constants.ENDPOINT}/{name}, then `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the Hub at {constants.ENDPOINT} has no model {at}, or not for this account",
            expected="a public repository, or a private one and a token that may read it",
            remedy="check the spelling; for a private one `hf auth login` or HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{PREFIX}{name} has no revision {revision}",
            expected="a branch, a tag or a full commit hash",
            remedy=f"see {constants.ENDPOINT}/{name}/commits/main, or leave @{revision} away",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"the Hub at {constants.ENDPOINT} cannot be reached"
        raise UserError(
            f"{at}: {file} is not in the local cache ({constants.HF_HUB_CACHE}), and {reason}",
            expected="a network, or a copy in the cache",
            remedy="unset HF_HUB_OFFLINE" if offline else "try again with a network, or give a local folder",
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{at} holds no {file}",
            expected=f"{CONFIG} and {WEIGHTS} as `mpdit export` writes them",
            remedy="`mpdit import FILE` reads official MPDiT, DiT and SiT checkpoints once downloaded",
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name} is not a name the Hub allows: {error}", expected="ORG/NAME") from error
    except errors.HfHubHTTPError as error:
        raise _refused(name, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in HTTP_LIBRARIES and not isinstance(error, ConnectionError):
            raise
        raise UserError(
            f"the Hub at {constants.ENDPOINT} cannot be reached for {name}: {error or type(error).__name__}",
            remedy="unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "try again with a network",
        ) from error


def _refused(name: str, error: Exception) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {
        401: "`hf auth login`, or set HF_TOKEN",
        403: "use a token with the right to write there, or another name",
        429: "too many requests: wait a few minutes",
    }
    lines = [line for line in str(error).splitlines() if line.strip()]
    return UserError(
        f"the Hub refused a request for {name}: {lines[0] if lines else type(error).__name__}",
        remedy=remedies.get(status or 0, "try again later"),
    )


def upload_folder(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads all of `folder` to the model repository `ORG/NAME`, making it where it is missing; returns its address.

    Raises:
        UserError: no token, no right to write there, or no network.
    """
    from huggingface_hub import HfApi, constants

    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        raise UserError(f"--push {name}", expected="ORG/NAME, the repository to make or to add to")
    with hub_errors(name, file="the Hub"):
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"mpdit export of {folder.name}")
    return f"{constants.ENDPOINT}/{name}/tree/{commit.oid}"
