"""Pictures: any mode keeps its levels and its direction, a few formats are opened by content, and the rest is one sentence."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_models import picture

from avl.models.images import FORMATS, MAX_PIXELS, open_image

ROOT = Path(__file__).resolve().parents[2]

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every level once."""


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused(source: Any) -> str:
    """The one sentence that refuses ``source``."""
    with pytest.raises(ValueError, match=r"\w") as raised:
        open_image(source)
    message = str(raised.value)
    assert type(raised.value) is ValueError
    assert 15 < len(message) < 300
    assert not re.search(r"\n|Traceback|object at 0x|array\(|tensor\(", message), message
    return message


# ------------------------------------------------------------------------------------------------------------------------ levels


WIDE = (LEVELS.astype(np.uint16) * 257).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(WIDE),
        Image.fromarray(WIDE.astype(">u2")),
        Image.fromarray(WIDE.astype(np.int32)),
        Image.fromarray(LEVELS.astype(np.int32)),
        Image.fromarray(LEVELS.astype(np.int32) - 128),
        Image.fromarray(WIDE.astype(np.int32) * 1000),
        Image.fromarray((LEVELS / 255).astype(np.float32)),
        Image.fromarray(LEVELS.astype(np.float32)),
        Image.fromarray(WIDE.astype(np.float32)),
        Image.fromarray((LEVELS / 100 - 1).astype(np.float32)),
    ],
    ids=["I;16", "I;16B", "I-16-bit", "I-8-bit", "I-signed", "I-32-bit", "F-to-1", "F-to-255", "F-to-65535", "F-signed"],
)
def test_more_than_eight_bits_keep_their_levels(image):
    """Pillow's own conversion makes nearly all of them white or black."""
    gray = np.asarray(open_image(image))
    assert (gray == LEVELS[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_16_bit_file_keeps_its_levels(kind):
    assert (np.asarray(open_image(file_of(Image.fromarray(WIDE), kind))) == LEVELS[..., None]).all()


def test_a_dark_16_bit_picture_stays_dark():
    """The range of 16 bits is known: nothing is stretched."""
    dark = Image.fromarray(np.full((8, 8), 257 * 3, np.uint16))
    assert np.unique(np.asarray(open_image(dark))).tolist() == [3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_is_read(mode):
    """White stays white and opaque black stays black."""
    if mode in ("I;16", "I", "F"):
        white, black = (Image.new(mode, (9, 7), level) for level in ({"I;16": 65535, "I": 65535, "F": 1.0}[mode], 0))
    elif mode in ("La", "RGBa", "PA"):
        middle = {"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]
        white, black = (Image.new("RGB", (9, 7), color).convert(middle).convert(mode) for color in ("white", "black"))
    else:
        white, black = (Image.new("RGB", (9, 7), color).convert(mode) for color in ("white", "black"))
    for image, level in ((white, 255), (black, 0)):
        found = open_image(image)
        assert (found.mode, found.size) == ("RGB", (9, 7))
        assert abs(np.asarray(found).astype(int) - level).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    source = file_of(clear, "GIF") if mode == "P" else file_of(clear.convert(mode), "PNG")
    assert (np.asarray(open_image(source)) == 255).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_turned_upright(turn):
    stored = picture(1, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = turn
    found = open_image(file_of(stored, "PNG", exif=exif))
    assert found.size == ((40, 30) if turn < 5 else (30, 40))
    ways = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    expected = stored if turn == 1 else stored.transpose(Image.Transpose[ways[turn]])
    assert (np.asarray(found) == np.asarray(expected)).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    source = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = np.asarray(open_image(source)).reshape(-1, 3).mean(0)
    assert red > 240
    assert blue < 15


# ------------------------------------------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_opened(kind, tmp_path):
    """As bytes, and as a file with a misleading name: the content decides."""
    data = file_of(picture(1), kind)
    file = tmp_path / "picture.eps"
    file.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), file, str(file)):
        assert open_image(source).size == (40, 30)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n40 30 scale showpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "MSP", "XBM", "SPIDER", "BLP", "IM"])
def test_no_other_format_is_opened(kind, tmp_path):
    """Not even under the name of one that is."""
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(kind, "RGB")
    data = EPS if kind == "EPS" else file_of(picture(1, 64, 64).convert(mode), kind)
    Image.open(io.BytesIO(data))  # Pillow knows it
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    for source in (data, file):
        assert "PNG, JPEG" in refused(source)


def test_only_one_place_opens_files():
    """Image.open stands in avl/models/images.py alone, with its list of formats."""
    found = []
    for file in [*(ROOT / "avl").rglob("*.py"), *(ROOT / "assets").rglob("*.py"), ROOT / "app.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                found.append((file.relative_to(ROOT).as_posix(), [keyword.arg for keyword in node.keywords]))
    assert found == [("avl/models/images.py", ["formats"])]


def test_the_oldest_pillow_has_no_known_hole():
    """Writes out of bounds in alpha_composite, paste and decoders are mended in 12.3.0."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [line for line in project["dependencies"] if line.startswith("pillow")]
    assert tuple(map(int, re.findall(r"\d+", bound))) >= (12, 3, 0)


@pytest.mark.parametrize(
    ("array", "pixel"),
    [
        (np.full((8, 9, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((8, 9), 7, np.uint8), (7, 7, 7)),
        (np.full((8, 9, 4), [7, 7, 7, 255], np.uint8), (7, 7, 7)),
        (np.full((9, 8, 3), 7, np.uint8).transpose(1, 0, 2), (7, 7, 7)),
        (np.full((16, 18, 3), 7, np.uint8)[::2, ::2], (7, 7, 7)),
    ],
    ids=["rgb", "gray", "rgba", "transposed", "strided"],
)
def test_arrays_of_bytes(array, pixel):
    found = open_image(array)
    assert (found.size, found.getpixel((0, 0))) == ((9, 8), pixel)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (None, "no picture"),
        (5, "int"),
        (2.5, "float"),
        (True, "bool"),
        ({"path": "x.png"}, "dict"),
        ([picture(1)], "list"),
        (object(), "object"),
        (Image, "module"),
        (torch.zeros(3, 8, 8), "Tensor"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "Tensor"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8, 3), bool), "bool"),
        (np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]"),
        (np.zeros((8, 8, 1), np.uint8), r"\[8, 8, 1\]"),
        (np.zeros(8, np.uint8), r"\[8\]"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.array(None), "object"),
        (b"", "PNG, JPEG"),
        (b"GIF89a", "PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PNG, JPEG"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "PNG, JPEG"),
        ("", "folder"),
        (".", "folder"),
        ("no-such.png", "no picture file no-such.png"),
        ("https://example.org/cat.png", "no picture file https"),
        ("nul\0.png", "PNG, JPEG|cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        (Path("/dev/null"), "PNG, JPEG"),
        (Image.new("RGB", (1, 1)), "1 × 1"),
        (Image.new("RGB", (0, 9)), "0 × 9"),
        (Image.new("RGB", (50_000, 1)), "50000 × 1"),
        (Image.new("RGB", (1000, 2)), "1000 × 2"),
        (Image.new("LAB", (9, 9)), "Lab"),
        (Image.new("1", (5000, 5000)), "5000 × 5000"),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "damaged"),
        (Image.fromarray(np.full((8, 8), np.inf, np.float32)), "damaged"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_one_sentence(source, word):
    assert re.search(word, refused(source))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_one_sentence(kind, share):
    data = file_of(picture(1, 200, 200), kind)
    refused(data[: int(share * len(data))])


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert f"{MAX_PIXELS // 1_000_000} million" in refused(file_of(Image.new("1", (100, 100)), "PNG"))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(FORMATS), st.integers(0, 10**9), st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_a_damaged_file_is_a_picture_or_one_sentence(kind, seed, changes):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    data = bytearray(file_of(picture(seed % 5, 12, 10), kind, **options))
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(ValueError):
        assert open_image(bytes(data)).mode == "RGB"
