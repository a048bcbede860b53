"""Images of every kind as files: found in their folders, and read as they are or refused."""

from __future__ import annotations

import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe
from convmixer.data.image_files import (
    SUFFIXES,
    class_folders,
    image_files,
    read_encoded,
    read_image,
)
from convmixer.data.sources import load_split, load_splits
from convmixer.errors import UsageError
from tests.helpers.training import write_image_folder

RAMP = np.linspace(0.0, 1.0, 30).reshape(5, 6)


def _picture(height: int = 5, width: int = 6) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _folder(place: Path, **changes):
    return override(load_recipe("imagenet"), {"data.folder": str(place), **changes}).data


def _refused(path: Path, mode: str = "RGB") -> str:
    """Return the message on an image that cannot be read, after its name."""
    with pytest.raises(UsageError) as caught:
        read_image(str(path), mode)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {path}: ") and "\n" not in message
    return message.partition(": ")[2]


# Depth


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("16.png", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("16.tif", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("16.jp2", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("16.pgm", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("dark.png", (RAMP * 200).astype(np.uint16), RAMP * 200 / 257),
        ("dark.pgm", (RAMP * 200).astype(np.uint16), RAMP * 200 / 257),
        ("32.tif", (RAMP * 65535).astype(np.int32), RAMP * 255),
        ("8-in-32.tif", (RAMP * 255).astype(np.int32), RAMP * 255),
        ("unit.tif", RAMP.astype(np.float32), RAMP * 255),
        ("unit.pfm", RAMP.astype(np.float32), RAMP * 255),
        ("bytes.tif", (RAMP * 255).astype(np.float32), RAMP * 255),
        ("words.tif", (RAMP * 65535).astype(np.float32), RAMP * 255),
        ("black.tif", np.zeros((5, 6), np.float32), RAMP * 0),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_deep_images_are_scaled_to_8_bits(name, values, expected, mode, tmp_path):
    Image.fromarray(values).save(tmp_path / name)
    image = read_image(str(tmp_path / name), mode)
    assert image.dtype == np.uint8 and image.shape == ((5, 6) if mode == "L" else (5, 6, 3))
    pixels = image.reshape(5, 6, -1)
    # The values were rounded down before, and are rounded now.
    assert np.abs(pixels - expected[..., None]).max() <= 1.01
    assert pixels.shape[2] == len(mode)


def test_12_bit_tiff_has_the_scale_of_12_bits(tmp_path):
    path = tmp_path / "12.tif"
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(path)
    data = bytearray(path.read_bytes())
    entry = data.index(bytes.fromhex("02010300"))  # the tag BitsPerSample, of type short
    assert data[entry + 8] == 16
    data[entry + 8] = 12
    # Two samples of 12 bits stand in three bytes, highest bits first.
    samples = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    packed = b"".join(((int(a) << 12) | int(b)).to_bytes(3, "big") for a, b in samples)
    start = data.index((RAMP * 4095).astype("<u2").tobytes())
    data[start : start + len(packed)] = packed
    path.write_bytes(data)
    pixels = read_image(str(path), "L")
    assert np.abs(pixels - RAMP * 255).max() <= 1.01


@pytest.mark.parametrize(
    ("values", "low_high"),
    [
        (RAMP * 1e9, "from 0 to 1e+09"),
        (RAMP - 0.5, "from -0.5 to 0.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "nan"),
        (np.where(RAMP > 0.5, np.inf, RAMP), "inf"),
    ],
)
def test_floats_of_no_known_scale_are_refused(values, low_high, tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(values.astype(np.float32)).save(path)
    assert low_high in _refused(path)


def test_negative_whole_numbers_are_refused(tmp_path):
    path = tmp_path / "height.tif"
    Image.fromarray((RAMP * 100 - 50).astype(np.int32)).save(path)
    assert "from -50 to 50; expected 0 to 1, to 255 or to 65535" in _refused(path)


# Colours and transparency


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_colour_space_becomes_what_is_asked_for(mode, tmp_path):
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "YCbCr") else "picture.png")
    original = _picture().convert(mode)
    original.save(path)
    for wanted in ("L", "RGB"):
        image = read_image(str(path), wanted)
        assert np.array_equal(image, np.asarray(original.convert(wanted)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_jpegs_are_those_of_pillow(mode, options, tmp_path):
    path = tmp_path / "picture.jpg"
    _picture(37, 50).convert(mode).save(path, **options)
    for wanted in ("L", "RGB"):
        expected = np.asarray(Image.open(path).convert(wanted))
        assert np.array_equal(read_image(str(path), wanted), expected)
        assert np.array_equal(read_encoded(path.read_bytes(), wanted, path.name), expected)


def test_pillow_reads_a_jpeg_that_torchvision_refuses(tmp_path, monkeypatch):
    path = tmp_path / "picture.jpg"
    _picture().save(path)
    expected = read_image(str(path), "RGB")

    def refuse(_):
        raise RuntimeError("Sorry, arithmetic coding is not there")

    monkeypatch.setattr("convmixer.data.image_files.decode_jpeg", refuse)
    assert np.array_equal(read_image(str(path), "RGB"), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_white(mode, tmp_path):
    """A black drawing on a transparent ground must not become all black."""
    drawing = Image.new("RGBA", (6, 5), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 3, 5))
    path = tmp_path / "drawing.png"
    drawing.convert(mode).save(path)
    pixels = read_image(str(path), "RGB")
    assert (pixels[:, :3] == 0).all() and (pixels[:, 3:] == 255).all()


def test_a_transparent_colour_shows_white(tmp_path):
    path = tmp_path / "key.png"
    Image.new("RGB", (6, 5), (9, 8, 7)).save(path, transparency=(9, 8, 7))
    assert (read_image(str(path), "L") == 255).all()


def test_the_first_of_several_images_is_read(tmp_path):
    first, second = _picture(), Image.new("RGB", (6, 5))
    for name in ("pages.tif", "frames.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = tmp_path / name
        first.save(path, save_all=True, append_images=[second], **options)
        assert np.array_equal(read_image(str(path), "RGB"), np.asarray(first))


# Damaged and misnamed


def _big_text(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "A" * (2 << 20), zip=True)
    _picture().save(path, pnginfo=text)


def _odd_chunk(path: Path) -> None:
    _picture(200, 200).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT", data.index(b"IDAT") + 1) + 1] = 1
    path.write_bytes(data)


def _truncated(path: Path) -> None:
    _picture(40, 40).save(path)
    path.write_bytes(path.read_bytes()[:-300])


DAMAGED = {
    "text.png": _big_text,
    "profile.png": lambda path: _picture().save(path, icc_profile=b"\0" * (2 << 20)),
    "chunk.png": _odd_chunk,
    "cut.png": _truncated,
    "cut.jpg": _truncated,
    "cut.bmp": _truncated,
    "cut.webp": _truncated,
    "bomb.pbm": lambda path: path.write_bytes(b"P4\n20000 10000\n"),
    "header.ppm": lambda path: path.write_bytes(b"P6\nfoo 20\n255\n123"),
    "value.ppm": lambda path: path.write_bytes(b"P3\n2 2\n255\n1 2 3 900 5 6 7 8 9 1 2 3"),
    "long.png": lambda path: Image.new("1", (4002, 4)).save(path),
    "noise.tga": lambda path: path.write_bytes(bytes(range(1, 200))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_images_that_cannot_be_decoded_are_named(name, tmp_path):
    DAMAGED[name](tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _refused(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "an empty file"),
        (b"\0" * 900, "a file of zeros"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "run git lfs pull",
        ),
        (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
        (b"<html><head>", "a web page"),
        (b'<?xml version="1.0"?><Error/>', "an XML file"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x1f\x8b\x08\0", "a compressed file"),
        (b"just words\n", "a text file"),
        (b"%PDF-1.7", "a PDF"),
        (b'{"error": "not found"}', "a JSON file"),
        (b"\x89PNG\r\n\x1a\nrest", "it is damaged"),
        (b"\xfe\x01\x80 of no kind", "it is damaged, or of no known format"),
    ],
)
def test_it_is_said_what_a_file_is_instead_of_an_image(data, kind, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    assert kind in _refused(path)


def test_a_missing_image_and_a_folder_are_named(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert _refused(tmp_path / "link.png") == "No such file or directory"
    (tmp_path / "folder.png").mkdir()
    assert _refused(tmp_path / "folder.png") == "it is no file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert _refused(tmp_path / "pipe.png") == "it is no file"


@pytest.mark.parametrize("name", ["picture.jpg", "picture.tga", "picture.JPEG"])
def test_an_image_under_the_suffix_of_another_format_is_read(name, tmp_path):
    _picture().save(tmp_path / name, format="PNG")
    pixels = read_image(str(tmp_path / name), "RGB")
    assert np.array_equal(pixels, np.asarray(_picture()))


def test_no_program_is_started_for_an_image(tmp_path):
    """Pillow gives PostScript to Ghostscript."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n")
    assert "a text file" in _refused(path)
    assert ".eps" not in SUFFIXES and ".ps" not in SUFFIXES and ".pdf" not in SUFFIXES


def test_metadata_that_are_damaged_do_not_cost_the_image(tmp_path, recwarn):
    path = tmp_path / "picture.png"
    _picture().save(path)
    data = path.read_bytes()
    chunk = b"eXIf" + b"MM\0*\0\0\0\x08\xff\xff"
    length, check = len(chunk) - 4, zlib.crc32(chunk)
    added = length.to_bytes(4, "big") + chunk + check.to_bytes(4, "big")
    path.write_bytes(data[:33] + added + data[33:])  # after the header
    assert np.array_equal(read_image(str(path), "RGB"), np.asarray(_picture()))
    assert recwarn.list == []


# Folders


def test_images_of_every_suffix_and_in_nested_folders_are_found(tmp_path):
    names = ["a.tif", "b.TIF", "c.pgm", "d.jfif", "e.Jpeg", "f.webp", "g.jp2", "sub/deep/h.png"]
    formats = {".tif": "TIFF", ".pgm": "PPM", ".jfif": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP",
               ".jp2": "JPEG2000", ".png": "PNG"}  # fmt: skip
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = _picture().convert("L") if name.endswith("pgm") else _picture()
        picture.save(path, format=formats[path.suffix.lower()])
    found, others = image_files(tmp_path)
    assert found == [str(tmp_path / name) for name in names] and not others
    assert all(read_image(path, "RGB").shape == (5, 6, 3) for path in found)


def test_hidden_files_and_folders_are_left_out_and_others_are_counted(tmp_path):
    for name in (
        ".hidden.png",
        "._a.png",
        ".thumbnails/a.png",
        "a.txt",
        "b.TXT",
        "README",
        "c.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found, others = image_files(tmp_path)
    assert found == [str(tmp_path / "c.png")] and others == {".txt": 2, "": 1}


def test_a_link_to_a_folder_above_is_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert image_files(tmp_path)[0] == [str(tmp_path / "a" / "0.png")]


def test_linked_images_and_classes_count(tmp_path):
    write_image_folder(tmp_path / "images", {"train": 2, "test": 1})
    (tmp_path / "linked").mkdir()
    for name in ("train", "test"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "images" / name)
    splits = load_splits(_folder(tmp_path / "linked"), 3)
    assert len(splits.train.labels) == 4 and splits.class_names == ("class0", "class1")


def test_hidden_folders_are_no_classes(tmp_path):
    write_image_folder(tmp_path, {"train": 2, "val": 1})
    for name in ("train/.ipynb_checkpoints", "val/.git", ".cache"):
        (tmp_path / name).mkdir()
        _picture().save(tmp_path / name / "0.png")
    assert class_folders(tmp_path / "train") == ("class0", "class1")
    splits = load_splits(_folder(tmp_path), 3)
    assert splits.class_names == ("class0", "class1") and splits.notes == ()
    assert len(splits.train.labels) == 4


@pytest.mark.parametrize("filling", [None, "notes.txt", ".DS_Store", "sub/"])
def test_a_class_without_training_images_is_refused(filling, tmp_path):
    write_image_folder(tmp_path, {"train": 2, "test": 1})
    empty = tmp_path / "train" / "empty"
    empty.mkdir()
    if filling and filling.endswith("/"):
        (empty / filling).mkdir()
    elif filling:
        (empty / filling).touch()
    with pytest.raises(UsageError, match="train has folders without images: empty; remove them"):
        load_splits(_folder(tmp_path), 3)


def test_a_class_without_test_images_is_noted(tmp_path):
    write_image_folder(tmp_path, {"train": 1, "test": 1}, classes=3)
    (tmp_path / "test" / "class1" / "0.png").unlink()
    split = load_split(_folder(tmp_path), 3, "test")
    assert split.images.labels.tolist() == [0, 2]
    assert split.notes == (f"{tmp_path / 'test'}: no images of class1",)
    (tmp_path / "test" / "class0").rename(tmp_path / "elsewhere")
    assert load_splits(_folder(tmp_path), 3).notes == (
        f"{tmp_path / 'test'}: no images of class0, class1",
    )


def test_test_images_are_numbered_by_the_classes_of_training(tmp_path):
    write_image_folder(tmp_path, {"train": 0, "test": 1}, classes=3)
    (tmp_path / "test" / "class0" / "0.png").unlink()
    (tmp_path / "test" / "class0").rmdir()
    split = load_split(_folder(tmp_path), 3, "test")
    assert split.class_names == ("class0", "class1", "class2")
    assert split.images.labels.tolist() == [1, 2]


def test_files_that_are_left_out_are_noted(tmp_path):
    write_image_folder(tmp_path, {"train": 1, "test": 1})
    for name in ("train/labels.csv", "train/class0/a.txt", "train/class0/b.txt", "train/0.png"):
        (tmp_path / name).touch()
    (tmp_path / "test" / "class1" / "movie.mp4").touch()
    assert load_splits(_folder(tmp_path), 3).notes == (
        f"{tmp_path / 'train'}: left out 4 files that are no images in the folder of a class "
        "(.txt, .csv, .png)",
        f"{tmp_path / 'test'}: left out 1 file that is no image in the folder of a class (.mp4)",
    )


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({}, "none", "there is no folder .*none .looked for .*none/test and .*none/val"),
        ({"train": 1}, "", "looked for .*/test and .*/val with a folder a class"),
        ({"val": 1}, "val", "val/test and .*val/val .*; --data names the folder above, "),
    ],
)
def test_an_evaluation_names_the_folders_it_looked_for(made, asked, message, tmp_path):
    write_image_folder(tmp_path, made)
    with pytest.raises(UsageError, match=message) as caught:
        load_split(_folder(tmp_path / asked), 3, "test")
    assert "train" not in str(caught.value).replace(str(tmp_path), "")


def test_the_digits_are_read_from_no_folder(tmp_path):
    config = override(load_recipe("digits"), {"data.folder": str(tmp_path)})
    with pytest.raises(
        UsageError, match=r"data\.folder: got .* the images of data.source digits come"
    ):
        load_splits(config.data, 1)
