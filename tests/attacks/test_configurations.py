"""A configuration in YAML that has no end, or is none, is refused in one line."""

from __future__ import annotations

import pytest

MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n"
    for level in range(1, 12)
)
TEXTS = {
    "merged for ever": MERGED,
    "date that is none": "batch-size: 2020-99-99",
    "number without an end": "batch-size: " + "9" * 5000,
    "deep": "batch-size: " + "[" * 1000,
    "python": "batch-size: !!python/object/apply:os.system [true]",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_configuration(text, tmp_path, run):
    (tmp_path / "a.yaml").write_text(text)
    done = run("evaluate", tmp_path / "a.pt", "--config", tmp_path / "a.yaml")
    assert done.code == 2
    assert "cannot read" in done.err.replace("\n", " ")
    assert "Traceback" not in done.err
