"""Images in folders: by suffix or content, behind links, and what is passed over."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from pipelines.formats import HEAD, image_format
from pipelines.image_files import few, find_images, log_files, look_in

PHOTO = Image.new("RGB", (12, 8), (200, 100, 50))


def put(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(kind))
    return path


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    PHOTO.save(buffer, kind)
    return buffer.getvalue()


def below(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_format_is_told_by_the_first_bytes(kind: str) -> None:
    assert image_format(encoded(kind)[:HEAD]) == kind


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01", "camera raw"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", ""),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", ""),
        (b"BMW and other makes, in a text file", ""),
        (b"%PDF-1.7", ""),
        (b"", ""),
    ],
)
def test_what_else_is_an_image_and_what_is_none(head: bytes, name: str) -> None:
    assert image_format(head[:HEAD]) == name


def test_images_are_found_by_suffix_or_content(tmp_path: Path) -> None:
    names = ("a.jpg", "b.gif", "c.jfif", "d.JPE", "e.HEIC", "f.jpg_large", "g", "h.txt")
    for name in names:
        put(tmp_path / name, "GIF" if name.endswith("gif") else "JPEG")
    (tmp_path / "broken.png").write_text("no image, but it was to be one")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_images(tmp_path)
    assert below(tmp_path, found.images) == sorted([*names, "broken.png", "gone.jpg"])
    assert below(tmp_path, found.by_content) == sorted(names[1:])
    assert below(tmp_path, found.others) == ["notes.txt", "pipe.jpg"]
    assert look_in(tmp_path) == found


def test_litter_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    litter = ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._a.jpg", "$RECYCLE.BIN/b.jpg", ".thumbnails/a.png")
    for name in (*litter, "._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        put(tmp_path / name)
    for name in (".cache/a.png", ".hidden.png"):
        put(tmp_path / name)
    found = find_images(tmp_path)
    assert below(tmp_path, found.images) == ["a.jpg"]
    expected = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", "._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini")
    assert below(tmp_path, sorted(found.litter)) == sorted(expected)
    assert below(tmp_path, found.hidden) == [".cache", ".hidden.png"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    put(elsewhere / "far.jpg")
    put(photos / "z" / "near.jpg")
    (photos / "all").symlink_to(photos)
    (photos / "again").symlink_to(photos / "z")
    (photos / "far").symlink_to(elsewhere)
    (photos / "farther").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)
    (photos / "z" / "up").symlink_to(tmp_path)
    (photos / "self").symlink_to(photos / "self")
    found = find_images(photos)
    assert below(photos, found.images) == ["far/far.jpg", "z/near.jpg"]
    assert below(photos, found.links) == ["far"]
    assert below(photos, found.circles) == ["again", "all", "farther", "z/up", "far/back"]


def test_a_folder_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "out/pictures/a.jpg"):
        put(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert below(tmp_path, find_images(tmp_path, without=tmp_path / "out").images) == ["a.jpg"]


def test_every_kind_is_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(12):
        put(tmp_path / f"{number:02d}.gif", "GIF")
    put(tmp_path / "@eaDir" / "a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    with caplog.at_level("INFO"):
        log_files(tmp_path, [find_images(tmp_path)])
    names = ", ".join(f"{number:02d}.gif" for number in range(10))
    assert caplog.messages == [
        f"{tmp_path}: images by their content, of other suffixes (12): {names} and 2 more",
        f"{tmp_path}: passed over, put there by a system (1): @eaDir",
        f"{tmp_path}: passed over, links to folders that were read already or hold the link (1): loop",
    ]


def test_names_that_are_no_unicode_can_be_printed(tmp_path: Path) -> None:
    assert few(tmp_path, [tmp_path / os.fsdecode(b"caf\xe9.png")]) == r"caf\xe9.png"
