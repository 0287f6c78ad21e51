"""Input images: open and check them, turn them upright, and encode them as data URIs for traces and the page."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 20_000_000  # largest image that is opened: a small file can decompress to gigabytes
SHOWN_SIDE = 1024  # longer side, in pixels, of an image on the page or in a trace; the model gets the full size

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened, by content. Pillow's other decoders stay closed: seldom needed, and most holes were there; one starts Ghostscript."""

_READ = "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"


def open_image(source: Any) -> Image.Image:
    """Return an image as upright RGB; of an animation, its first frame.

    Gray levels of more than 8 bits are scaled to 8: of 16 bits by their range, 0 to 65535; of 32-bit integers and of floats by the smallest
    of the usual ranges (0 to 1 for floats, 0 to 255, 0 to 65535) that holds all of them, else by the darkest and the brightest.

    Args:
        source: PIL image, path or bytes of a file in one of :data:`FORMATS`, or uint8 numpy array ``[height, width]`` or
            ``[height, width, 3 or 4]``.

    Raises:
        ValueError: nothing is given, it is no image that is read, is damaged or too narrow, or has more than :data:`MAX_PIXELS` pixels.
    """
    image = _opened(source)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(image))
    if min(width, height) < 2 or max(width, height) > 200 * min(width, height):
        raise ValueError(f"this picture has no area to look at ({width} × {height} pixels): choose another one")
    if image.mode == "LAB":
        raise ValueError("this picture has Lab colors, which are not read: save it as RGB")
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception:  # decoders and the reader of EXIF raise whatever a broken file leads them to
        raise ValueError("this picture is damaged and cannot be read: save it again as PNG or JPEG") from None


def _opened(source: Any) -> Image.Image:
    """Return a PIL image of any source, not decoded yet."""
    if source is None:
        raise ValueError("there is no picture: upload one, or pick an example")
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoder(io.BytesIO(source))
    if not isinstance(source, str | Path):
        raise ValueError(f"{type(source).__name__} is not a picture: pass a PIL image, a path, the bytes of a file or a uint8 numpy array")
    shown = str(source) if len(str(source)) <= 200 else f"{str(source)[:60]}…"
    try:
        if Path(source).is_dir():
            raise ValueError(f"{shown} is a folder, not a picture: pass a file")
        return _decoder(source)
    except FileNotFoundError:
        raise ValueError(f"there is no picture file {shown}: check the path") from None
    except OSError as error:
        raise ValueError(f"the picture file {shown!r} cannot be opened ({error.strerror or 'no reason given'}): check the path") from None


def _decoder(file: Any) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked by the caller, with our own message
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(_too_large()) from None
    except Exception as error:  # as above: whatever a broken header leads to
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError) and error.errno):
            raise
        raise ValueError(f"this file is not a picture that can be read: use {_READ}") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"an array of {array.dtype} and shape {list(array.shape)} is not a picture: "
            "pass uint8 of [height, width] or [height, width, 3 or 4]"
        )
    if not array.size:
        raise ValueError(f"an array of shape {list(array.shape)} holds no pixels: pass a picture with an area")
    return Image.fromarray(array)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or "transparency" in image.info:
        # transparent pixels become white, as on a page; convert() alone would make them black
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Return the levels of a gray image of more than 8 bits as uint8 ``[height, width]``; convert() would clip them to white."""
    levels = np.asarray(image, np.float64)
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("levels that are not numbers")
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        for most in ranges:
            if low >= 0 and high <= most:
                low, high = 0.0, most
                break
    return np.rint((levels - low) * (255 / ((high - low) or 1))).astype(np.uint8)


def _too_large(image: Image.Image | None = None) -> str:
    size = f" ({image.width} × {image.height})" if image is not None else ""
    return f"this picture is too large{size}: at most {MAX_PIXELS // 1_000_000} million pixels, scale it down first"


def data_uri(image: Image.Image, side: int = SHOWN_SIDE, quality: int = 90) -> str:
    """Return the image, scaled to at most ``side`` pixels per side, as a data URI (WebP)."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
