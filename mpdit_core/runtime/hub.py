"""The one client of the Hugging Face Hub for models and autoencoders.

Files are kept in the Hub's own cache (`HF_HOME`), so that a second use needs no network. `HF_HUB_OFFLINE=1`,
`HF_ENDPOINT` and `HF_TOKEN` work as for all its tools.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from mpdit_core.errors import UserError
from mpdit_core.runtime import files

PREFIX = "hf:"
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # by version of huggingface_hub


def download(
    repository: str,
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    subfolder: str = "",
    cached_first: bool = False,
) -> Path:
    """The folder in the local cache that holds these files of `ORG/NAME`; missing ones are downloaded.

    Without a network, the copy in the cache is used. The name of the snapshot's folder is the commit.

    Args:
        patterns: names of the files, or globs. A file whose name has no wildcard must exist.
        revision: branch, tag or commit; the main branch if not given.
        subfolder: folder of the repository that holds the files; it is what is returned.
        cached_first: whether a complete copy in the cache is used without asking the Hub for a newer one.

    Raises:
        UserError: no such repository, revision or file, no access, neither a network nor a cached copy, or an invalid
            answer (`hub-damaged-download`).
    """
    from huggingface_hub import constants, snapshot_download

    wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    if cached_first and (folder := cached(repository, wanted, revision)) is not None:
        return folder / subfolder
    with files.user_errors(Path(constants.HF_HUB_CACHE)), hub_errors(repository, revision=revision):
        local = constants.HF_HUB_OFFLINE or not _answers(repository, wanted, revision)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=local))
        _require_names([folder.name], at=f"{PREFIX}{repository}")
    missing = _missing(folder, wanted)
    if missing:
        raise UserError(
            f"{PREFIX}{repository}{f'@{revision}' if revision else ''} holds no {missing[0]}",
            code="no-such-file",
            expected="a repository with " + " and ".join(wanted),
        )
    return folder / subfolder


def cached(repository: str, wanted: Sequence[str], revision: str | None = None) -> Path | None:
    """The snapshot in the cache, if it has all wanted files."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(wanted), local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return None if _missing(Path(folder), wanted) else Path(folder)


def _answers(repository: str, wanted: Sequence[str], revision: str | None) -> bool:
    """Whether the Hub can be reached and answers in time (`HF_HUB_ETAG_TIMEOUT`) for each file.

    huggingface_hub would retry slow requests for minutes, and use the commits and checksums in the answers as names of
    folders and files; so time and names are checked here first.
    """
    from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url

    if not _is_resolvable(constants.ENDPOINT):
        return False
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        names = [HfApi().repo_info(repository, revision=revision or constants.DEFAULT_REVISION, timeout=timeout).sha]
        _require_names(names, at=f"{PREFIX}{repository}")
        for file in wanted:
            with suppress(errors.EntryNotFoundError):  # a glob, or a file that is missing
                found = get_hf_file_metadata(hf_hub_url(repository, file, revision=names[0]), timeout=timeout)
                names += [found.commit_hash, found.etag]
    except Exception as error:
        if _is_network_error(error) or getattr(getattr(error, "response", None), "status_code", 0) >= 500:
            return False
        raise
    _require_names(names, at=f"{PREFIX}{repository}")
    return True


def _require_names(names: Sequence[str | None], *, at: str) -> None:
    """Raises `UserError` where a commit or checksum cannot be the name of a file."""
    for name in names:
        if re.fullmatch(r"\w[\w.-]*", name or "") is None:
            raise UserError(
                f"the Hub's answer for {at} has the commit or checksum {name!r}",
                code="hub-damaged-download",
                expected="a hexadecimal number",
                remedy="check HF_ENDPOINT and any proxy between this machine and the Hub",
            )


def _is_network_error(error: BaseException) -> bool:
    library = type(error).__module__.split(".")[0] in HTTP_LIBRARIES
    return library or isinstance(error, ConnectionError | TimeoutError)


def _missing(folder: Path, wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if not set(name) & set("*?[") and not (folder / name).is_file()]


def _is_resolvable(endpoint: str) -> bool:
    """Whether the name of the Hub's host can be resolved. If not, the library would retry for half a minute."""
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    host = urlsplit(endpoint).hostname
    if proxied or not host:
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


# By class of huggingface_hub's errors: code, what, expected, remedy.
UNREACHABLE = ("hub-unreachable", "{hub} cannot be reached for {name}: {error}", "a network", "{connect}")
DAMAGED = (
    "hub-damaged-download", "what {hub} sent for {at} is incomplete or invalid: {error}", "a complete answer",
    "try again; if that does not help, check HF_ENDPOINT and any proxy between this machine and the Hub",
)  # fmt: skip
ERRORS = {
    "GatedRepoError": (
        "no-access", "{at} is gated: its authors grant access on request", "a token for an account that has access",
        "ask for access at {endpoint}/{name}, then `hf auth login`",
    ),
    "RepositoryNotFoundError": (
        "no-such-repository", "{hub} has no repository {at}, or this account may not read it",
        "a public repository, or a private one and a token that may read it",
        "check the spelling; for a private repository run `hf auth login` or set HF_TOKEN",
    ),
    "RevisionNotFoundError": (
        "no-such-revision", "there is no revision {at}", "a branch, a tag or a full commit hash",
        "see {endpoint}/{name}/commits/main, or leave the revision out",
    ),
    "LocalEntryNotFoundError": (
        "hub-unreachable", "{at} is not in the local cache ({cache}), and {why}", "internet, or a copy in the cache",
        "{connect}",
    ),
    "HFValidationError": ("invalid-value", "{name} is not a name that the Hub allows: {error}", "ORG/NAME", ""),
    "HfHubHTTPError": ("hub-refused", "the Hub refused a request for {name}: {error}", "", "{permit}"),
}  # fmt: skip
PERMITS = {  # remedies by HTTP status
    401: "run `hf auth login`, or set HF_TOKEN",
    403: "use a token with the right to write there, or another name",
    429: "too many requests: wait a few minutes",
}


@contextmanager
def hub_errors(repository: str, *, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises about `repository` into a `UserError` that says what to do."""
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:
        row = next((ERRORS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in ERRORS), None)
        if row is None and _is_network_error(error):
            row = UNREACHABLE
        if isinstance(error, UserError) or (row is None and isinstance(error, OSError) and error.errno is not None):
            raise
        row = row or DAMAGED
        hub, offline = f"the Hub at {constants.ENDPOINT}", constants.HF_HUB_OFFLINE
        elsewhere = (
            f"on a machine with internet access run `hf download {repository}`, "
            "copy its cache here and set HF_HOME to it"
        )
        facts = {
            "at": f"{PREFIX}{repository}" + (f"@{revision}" if revision else ""),
            "name": repository,
            "hub": hub,
            "endpoint": constants.ENDPOINT,
            "cache": constants.HF_HUB_CACHE,
            "error": next((line for line in str(error).splitlines() if line.strip()), type(error).__name__),
            "why": "HF_HUB_OFFLINE is set" if offline else f"{hub} cannot be reached",
            "connect": "unset HF_HUB_OFFLINE" if offline else f"{elsewhere}; or give a local folder",
            "permit": PERMITS.get(getattr(getattr(error, "response", None), "status_code", 0), "try again later"),
        }
        code, what, expected, remedy = (text.format(**facts) for text in row)
        raise UserError(what, code=code, expected=expected, remedy=remedy) from error
