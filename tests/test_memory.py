"""Freed memory stays with a command's process, unless the user has decided otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from gatepruner import cli
from gatepruner.cli.memory import keep_pages

# Takes and frees 64 MiB ten times; prints what `keep_pages` returned and the pages handed out.
FAULTS = """
import resource, sys
from gatepruner.cli.memory import keep_pages
changed = sys.argv[1] == "kept" and keep_pages({})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(64 * 2**20)[::4096] = bytes(64 * 2**8)
print(changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    run = [sys.executable, "-c", FAULTS, how]
    changed, count = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return changed == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_is_taken_from_the_system_once():
    (changed, kept), (_, before) = faults("kept"), faults("default")
    assert changed
    assert kept < before / 3


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_what_the_user_has_set_stays(variables):
    assert not keep_pages(variables)


def test_elsewhere_than_on_linux_nothing_changes(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_pages({})


def test_the_command_line_keeps_pages(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "keep_pages", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["gatepruner", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert calls == [1]
