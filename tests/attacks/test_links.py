"""Links that lead back are not followed twice."""

from __future__ import annotations

from PIL import Image

from gatepruner import load_images


def test_a_loop_of_links_adds_no_picture(tmp_path):
    root = tmp_path / "train" / "a"
    (root / "deep").mkdir(parents=True)
    for name in ("1.png", "deep/2.png", "deep/3.png"):
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "deep" / "again").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(".", target_is_directory=True)
    (root / "deep" / "lost").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    for kind in ("imagefolder", "pictures"):
        assert len(load_images(f"{kind}:{tmp_path}", (3, 8, 8), split="train")) == 3


def test_a_folder_that_two_links_lead_to_is_read_once(tmp_path):
    pictures, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    pictures.mkdir()
    elsewhere.mkdir()
    Image.new("RGB", (8, 8)).save(elsewhere / "1.png")
    for name in ("one", "two"):
        (pictures / name).symlink_to(elsewhere, target_is_directory=True)
    assert len(load_images(f"pictures:{pictures}", (3, 8, 8))) == 1
