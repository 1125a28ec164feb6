"""Images from the bytes of their files: decoded within limits, upright, in RGB."""

from __future__ import annotations

import io
import warnings
from typing import Final

from PIL import Image, ImageOps

from tokenweir.core.errors import InputError

FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP")
_SMALLER: Final = "send a smaller image"
_WHOLE: Final = "send a whole PNG, JPEG, GIF or WebP file"


def read_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return the image in a file, its first frame where there are several.

    The size is known from the file's head: what is too large is not decoded.

    Raises:
        InputError: it is too large, broken, or of no known format.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what its own limit takes for a bomb; ours is checked below, before pixels are made.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= max_pixels:
            image.load()
            return _opaque(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise InputError(f"the image is too large: {error}", mend=_SMALLER) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise InputError(f"the image cannot be read: {error}", mend=_WHOLE) from error
    raise InputError(
        f"the image is {image.width} × {image.height} pixels, and the most is {max_pixels} altogether",
        mend=_SMALLER,
    )


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image in RGB, on white where it is transparent."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        clear = image.convert("RGBA")
        ground = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(ground, clear).convert("RGB")
    return image.convert("RGB")
