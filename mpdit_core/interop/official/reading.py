"""Reading a checkpoint file of the official code without running code from it.

A `.pt` file is a pickle: it is read with `weights_only`, and the only class allowed besides tensors is
`argparse.Namespace`, in which the official training script stores its arguments. Tensors stay on the disk until used.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.interop.official.file_signatures import like_bytes
from mpdit_core.models.model_folder import CONFIG, WEIGHTS
from mpdit_core.reporting import jsonable

SETS = ("ema", "ema_model", "model", "state_dict")  # keys of weights in a file, the preferred one first
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # compile, DDP, FSDP
OWNERS = {"model", "net", "network"}  # attributes that hold the network in another module; all names begin with one
HARMLESS = {"numpy": "a number or array of NumPy", "pathlib": "a path (pathlib)", "datetime": "a date"}
EXPECTED = "a .pt or .safetensors file of the official MPDiT, DiT or SiT code"


class OfficialFile(NamedTuple):
    """Tensors by their official names, without the prefixes of wrappers, and other content of the file."""

    tensors: dict[str, Tensor]
    weights: str  # the key of these weights in the file: ema, model, state_dict, or "the only ones"
    arguments: dict[str, Any]  # arguments of the training command; empty where the file holds none


def read_official(path: Path, *, weights: Literal["ema", "model"] | None = None) -> OfficialFile:
    """Reads `path`; of several sets of weights the EMA, unless `weights` names another.

    Raises:
        UserError: the file is missing (`no-such-file`), incomplete (`damaged-file`), another kind of file
            (`wrong-file`), a pickle with more than tensors and numbers (`foreign-object`), or one that would run code
            (`unsafe-file`); or it holds no weights (`no-weights`), two with one name (`ambiguous-weights`), or values
            that are not finite (`not-finite`).
    """
    try:
        if path.is_dir():
            is_ours = (path / WEIGHTS).exists() and (path / CONFIG).exists()
            raise UserError(
                f"{path} is a folder",
                code="already-a-model" if is_ours else "wrong-file",
                expected=EXPECTED,
                remedy="use the folder itself, it is a model of mpdit" if is_ours else "give the file in it",
            )
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}", code="no-such-file", expected=EXPECTED)
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", code="no-such-file", expected=EXPECTED) from None
    if not head:
        raise UserError(f"{path} is empty", code="damaged-file", expected=EXPECTED, remedy="download it again")
    if _is_safetensors(head) or path.suffix == ".safetensors":
        content: Any = _read_safetensors(path, head)
    elif head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        content = _read_pickle(path, zipped=head[:2] == b"PK")
    else:
        raise _wrong_file(path, _likeness(head))
    chosen, tensors = _choose(path, content, weights)
    stripped = _stripped(path, tensors)
    _check_values(path, stripped)
    return OfficialFile(tensors=stripped, weights=chosen, arguments=_arguments(content))


def _stripped(path: Path, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by the network's own names. Raises `UserError` where two have the same."""
    own = [name for name, value in tensors.items() if isinstance(value, Tensor)]
    names = {name: ".".join(part for part in str(name).split(".") if part not in WRAPPERS) for name in own}
    while len(owners := {name.partition(".")[0] for name in names.values()}) == 1 and owners <= OWNERS:
        names = {name: short.partition(".")[2] for name, short in names.items()}
    first: dict[str, str] = {}
    for name, short in names.items():
        if short in first:
            raise UserError(
                f"{path} holds two tensors {short}: {first[short]} and {name}",
                code="ambiguous-weights",
                expected="one set of weights",
                remedy="save only the set that you want: torch.save(weights, 'weights.pt')",
            )
        first[short] = name
    return {short: tensors[name] for short, name in first.items()}


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises `UserError` for tensors that are not weights: not plain floats, larger than the file, or not finite."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > size:
            raise _damaged(path, f"{name} of shape {tuple(tensor.shape)} is not in it")
        if not tensor.is_floating_point():
            raise UserError(f"{name} in {path} is {tensor.dtype}", code="no-weights", expected="floating-point weights")
        if not tensor.float().isfinite().all():
            raise UserError(
                f"{name} in {path} holds values that are not finite",
                code="not-finite",
                expected="finite weights",
                remedy="take an earlier checkpoint: the training that wrote this one had diverged",
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size:
        raise _damaged(path, "its header describes more bytes than the file has")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except Exception as error:  # SafetensorError, and errors of torch for impossible shapes and types
        if like_bytes(head) or not _is_safetensors(head):
            raise _wrong_file(path, _likeness(head)) from None
        raise _damaged(path, f"a safetensors file, but {_first_line(error)}") from None


def _read_pickle(path: Path, *, zipped: bool) -> Any:
    try:
        if zipped:
            _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles of other protocols: they are read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _not_only_tensors(path, error) from None
    except Exception as error:  # a damaged or forged pickle can raise anything
        raise _damaged(path, f"a torch file, but {_first_line(error)}") from None


def _check_archive(path: Path) -> None:
    """Raises `UserError` for a zip archive that is cut short, not a torch file, or larger inside than outside."""
    if not zipfile.is_zipfile(path):
        raise _damaged(path, "a torch file (zip) whose end is missing")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            inside = ", ".join(archive.namelist()[:3])
            raise _wrong_file(path, f"a zip archive of {inside} …, not a torch file")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise _damaged(path, "a torch file whose parts are larger than the file")


def _not_only_tensors(path: Path, error: pickle.UnpicklingError) -> UserError:
    """The error for what weights-only reading refused: a harmless unknown class, or one that may run code."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted is None and "Unsupported operand" in str(error):
        return _wrong_file(path, "a damaged pickle, or one that torch did not write")
    if wanted is None:
        return _damaged(path, "a torch file, but its pickle is invalid")
    found = wanted[1]
    harmless = HARMLESS.get(found.partition(".")[0])
    return UserError(
        f"besides its tensors, {path} holds {harmless}: {found}"
        if harmless
        else f"{path} cannot be read safely: it holds a {found}, and reading that would run code",
        code="foreign-object" if harmless else "unsafe-file",
        expected="only tensors, numbers, strings and argparse.Namespace",
        remedy="if you trust its origin, load it with its own code and save only the weights: "
        "torch.save(checkpoint['ema'], 'weights.pt')",
    )


def _choose(path: Path, content: Any, wanted: str | None) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights", code="no-weights", expected=EXPECTED)
    sets = {key: content[key] for key in SETS if _has_tensors(content.get(key))}
    if wanted and wanted not in sets:
        raise UserError(
            f"{path} holds no weights called {wanted}",
            code="no-such-weights",
            expected=", ".join(sets) or "one set of weights, without a name",
        )
    if sets:
        chosen = wanted or next(iter(sets))
        return chosen, sets[chosen]
    if _has_tensors(content):
        return "the only ones", content
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise UserError(
        f"{path} holds no weights, but {keys}", code="no-weights", expected="ema, model or a plain state dict"
    )


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    arguments = content.get("args")
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    try:
        return jsonable(dict(given)) if isinstance(given, Mapping) else {}
    except RecursionError:  # lists that hold themselves
        return {}


def _likeness(head: bytes) -> str:
    return like_bytes(head) or f"something that begins with {head[:16]!r}"


def _wrong_file(path: Path, what: str) -> UserError:
    return UserError(f"{path} is {what}", code="wrong-file", expected=EXPECTED)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is damaged: {what}",
        code="damaged-file",
        expected=f"a complete file (this one has {path.stat().st_size:,} bytes)",
        remedy="download it again, and compare its size with that of the original",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
