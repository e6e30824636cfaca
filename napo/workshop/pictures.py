"""Images from outside: six formats, so many pixels, and of files only plain ones inside a given folder."""

import io
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no other decoder runs: EPS would start Ghostscript
MAX_PIXELS = 50_000_000  # of one image
MAX_BYTES = 8 * MAX_PIXELS  # of an image file: 16 bits for each of four channels


class Unusable(ValueError):
    """The reason why an image, or a row, cannot be used."""


def inside(path: str, folder: Path) -> Path:
    """The plain file `path` of a folder, without links. Raises Unusable with the reason if it is none."""
    try:
        file = (folder / path).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise Unusable(f"image file {path} lies outside the folder of the data file")
        if not file.exists():
            raise Unusable(f"image file {path} is missing")
        if not file.is_file():
            raise Unusable(f"image file {path} is no plain file")
        if file.stat().st_size > MAX_BYTES:
            raise Unusable(f"image file {path} is over {MAX_BYTES:,} bytes")
    except Unusable:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, a circle of links
        raise Unusable(f"image file {path} cannot be read ({type(error).__name__})") from error
    return file


def opened(source: bytes | str | Path) -> Image.Image:
    """An image, to be decoded when used, from its bytes or a file. Raises OSError for other formats, as Pillow does."""
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def rgb(source: bytes | str | Path) -> Image.Image:
    """The image decoded, upright and in RGB.

    Raises Unusable if it has more than MAX_PIXELS, which its header tells, and whatever decoders raise on damage.
    """
    try:
        with opened(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unusable(f"image of {image.width} x {image.height} pixels is over {MAX_PIXELS:,}")
            image.load()
            if ExifTags.Base.Orientation in image.getexif():
                image = ImageOps.exif_transpose(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise Unusable(f"image is over {MAX_PIXELS:,} pixels") from error
