"""What a killed process leaves behind is removed; what is in use, or another program's, never."""

from __future__ import annotations

import os
import signal

import pytest

from gatepruner.errors import CheckpointError
from gatepruner.files.writing import is_temporary, write_files, write_text

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes to fork")


def writing(path):
    """The number of a process that is writing a file and does not end."""
    reading, began = os.pipe()
    child = os.fork()
    if not child:

        def forever(file):
            file.write(b"half")
            file.flush()
            os.write(began, b".")
            signal.pause()

        try:
            write_files({path: forever})
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.close(reading)
    os.close(began)
    return child


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_next_write_of_a_file_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "x.json"
    end(writing(path))
    assert [is_temporary(name) for name in names(tmp_path)] == [True]
    write_text(path, "whole")
    assert names(tmp_path) == ["x.json"]
    assert path.read_text() == "whole"


def test_the_file_of_a_live_process_stays(tmp_path):
    path = tmp_path / "x.json"
    child = writing(path)
    try:
        before = names(tmp_path)
        write_text(path, "whole")
        assert names(tmp_path) == [*before, "x.json"]
    finally:
        end(child)


@pytest.mark.parametrize(
    "name",
    [
        ".x.json.part",
        ".x.json.tmp",
        "x.json.12-0123abcd.gatepruner",
        ".x.json.gatepruner",
        ".y.json.12-0123abcd.gatepruner",
        ".x.json.12-0123ABCD.gatepruner",
    ],
)
def test_a_file_of_another_name_stays(name, tmp_path):
    (tmp_path / name).write_text("another program's")
    write_text(tmp_path / "x.json", "whole")
    assert names(tmp_path) == sorted([name, "x.json"])


def test_several_files_get_their_names_together_or_not_at_all(tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    with pytest.raises(CheckpointError, match=r"cannot write .*b: the disk is full .*nothing was"):
        write_files({tmp_path / "a": lambda file: file.write(b"new"), tmp_path / "b": full})
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
