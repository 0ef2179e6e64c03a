"""No link in a folder of decoded pictures leads to a file that is written."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from gatepruner.errors import DataError
from gatepruner.images.caching import Cache, cached

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links")


@pytest.mark.parametrize("kind", ["lock", "part", "cache"])
def test_a_link_is_refused_or_replaced(kind, tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
    pictures = [str(tmp_path / "a" / "1.png")]
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    victim.write_text("mine")
    made: Cache = cached(pictures, (3, 8, 8), None, folder, iter)
    expected = made.file.read_bytes()
    made.file.unlink()
    name = made.file.name
    links = {"lock": f".{name}.lock", "part": f".{name}.{os.getpid()}.part", "cache": name}
    link = folder / links[kind]
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    if kind == "lock":
        with pytest.raises(DataError, match="cannot keep decoded pictures in"):
            cached(pictures, (3, 8, 8), None, folder, iter)
    else:
        again = cached(pictures, (3, 8, 8), None, folder, iter)
        assert again.file.read_bytes() == expected
        assert not again.file.is_symlink()
    assert victim.read_text() == "mine"
