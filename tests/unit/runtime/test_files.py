"""Files stand complete under their name or not at all, with the umask's rights; errors of the disk are user errors."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest
from data_helpers import refused

from mpdit_core.runtime.concurrency import WriteBehind, produced_ahead, usable_cores
from mpdit_core.runtime.files import read_json, remove_leftovers, write_json, writing, writing_folder
from mpdit_core.runtime.locks import locked


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a" / "file.json"
    write_json(path, {"a": 1})

    def write_half() -> None:
        with writing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_those_that_the_umask_leaves(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        with writing(tmp_path / "file") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors writes
        with writing_folder(tmp_path / "folder") as temporary:
            os.close(os.open(temporary / "file", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder/file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EIO, "cannot-write"),
     (errno.EFBIG, "cannot-write"), (errno.EROFS, "cannot-write")],
)  # fmt: skip
def test_errors_of_the_disk_are_user_errors(tmp_path: Path, monkeypatch, number: int, code: str):
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "while removing")

    monkeypatch.setattr(Path, "unlink", broken)  # must not hide the first error
    with refused(code, "file"), writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_what_cannot_be_read(tmp_path: Path):
    with refused("no-such-file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with refused("damaged-file", "torn.json"):
        read_json(tmp_path / "torn.json")


def test_leftovers_are_removed(tmp_path: Path):
    (tmp_path / ".file.12345678.part").touch()
    (tmp_path / ".folder.12345678.old").mkdir()
    (tmp_path / "file").touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_has_one_writer(tmp_path: Path):
    folder = tmp_path / "folder"
    with locked(folder), refused("folder-in-use", f"process {os.getpid()}"), locked(folder, seconds=0.0):
        pass
    with locked(folder, seconds=0.0):
        pass
    assert list(folder.iterdir()) == []


def test_produced_ahead_keeps_order_and_raises_in_turn():
    def items():
        yield from range(5)
        raise ZeroDivisionError

    produced = produced_ahead(items(), ahead=2, name="numbers")
    assert [next(produced) for _ in range(5)] == list(range(5))
    with pytest.raises(ZeroDivisionError):
        next(produced)


def test_what_is_produced_ahead_ends_with_its_consumer():
    made: list[int] = []
    with closing(produced_ahead(map(made.append, itertools.count()), ahead=2, name="numbers")) as produced:
        next(produced)
    assert len(made) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("numbers")]


def test_write_behind_raises_what_a_write_raised():
    written: list[int] = []
    with WriteBehind() as writer:
        writer.submit(written.append, 1)
        writer.submit(written.append, 2)
    assert written == [1, 2]
    with pytest.raises(ZeroDivisionError), WriteBehind() as writer:
        writer.submit(lambda: 1 / 0)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    cores = usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cores() == max(1, cores // 2)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() >= 1
