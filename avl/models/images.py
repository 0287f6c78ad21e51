"""Pictures from anywhere: opened, checked, upright RGB; and as data URIs for traces and the page."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 20_000_000  # largest picture that is opened: a small file can unpack to gigabytes
SHOWN_SIDE = 1024  # longer side of a picture that is shown or kept with a trace, pixels; the model always gets the whole one


def open_image(source: Any) -> Image.Image:
    """A picture as upright RGB.

    Args:
        source: PIL image, path, bytes, or numpy array ``[height, width, 3]`` of uint8.

    Raises:
        ValueError: nothing given, not a picture, without area, or larger than :data:`MAX_PIXELS`.
    """
    if source is None:
        raise ValueError("there is no picture: upload one, or pick an example")
    if not isinstance(source, Image.Image):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, with our own sentence
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
            # what shows through is white, as on a page; a bare conversion would make it black
            clear = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        raise ValueError("this picture is damaged and cannot be read: save it again as PNG or JPEG") from None


def _too_large(image: Image.Image | None = None) -> str:
    size = f" ({image.width} × {image.height})" if image is not None else ""
    return f"this picture is too large{size}: at most {MAX_PIXELS // 1_000_000} million pixels, scale it down first"


def data_uri(image: Image.Image, side: int = SHOWN_SIDE, quality: int = 90) -> str:
    """The picture, no side longer than ``side`` pixels, as a data URI (WebP)."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
