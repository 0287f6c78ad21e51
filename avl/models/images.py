"""Input images: open and check them, turn them upright, and encode them as data URIs for traces and the page."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 20_000_000  # largest image that is opened: a small file can decompress to gigabytes
SHOWN_SIDE = 1024  # longer side, in pixels, of an image on the page or in a trace; the model gets the full size


def open_image(source: Any) -> Image.Image:
    """Return an image as upright RGB.

    Args:
        source: PIL image, path, bytes, or numpy array ``[height, width, 3]`` of uint8.

    Raises:
        ValueError: nothing is given, it is no readable image, it is too narrow, or it has more than :data:`MAX_PIXELS` pixels.
    """
    if source is None:
        raise ValueError("there is no picture: upload one, or pick an example")
    if not isinstance(source, Image.Image):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, with our own message
                if isinstance(source, bytes):
                    source = Image.open(io.BytesIO(source))
                elif isinstance(source, str | Path):
                    source = Image.open(source)
                else:
                    source = Image.fromarray(source)
        except FileNotFoundError:
            raise ValueError(f"there is no picture file {source}: check the path") from None
        except (UnidentifiedImageError, OSError, SyntaxError, TypeError, ValueError, AttributeError, Image.DecompressionBombError) as error:
            if isinstance(error, Image.DecompressionBombError):
                raise ValueError(_too_large()) from None
            raise ValueError("this file is not a picture that can be read: use PNG, JPEG or WebP") from None
    width, height = source.size
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(source))
    if min(width, height) < 2 or max(width, height) > 200 * min(width, height):
        raise ValueError(f"this picture has no area to look at ({width} × {height} pixels): choose another one")
    try:
        upright = ImageOps.exif_transpose(source)
        if "A" in upright.getbands() or "transparency" in upright.info:
            # transparent pixels become white, as on a page; convert() alone would make them black
            clear = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        raise ValueError("this picture is damaged and cannot be read: save it again as PNG or JPEG") from None


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
