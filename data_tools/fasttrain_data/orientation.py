"""How a camera was held: EXIF's orientation, 1 to 8.

image = upright(image, orientation(image, exif=b""))
"""

from __future__ import annotations

from PIL import Image

__all__ = ["orientation", "upright"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The image as it is displayed."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def orientation(image: Image.Image, exif: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 for any other value. Cameras write it into headers, before
    the pixels."""
    if image.format not in ("JPEG", "WEBP", "PNG"):
        return 1
    data = exif if image.format == "PNG" else image.info.get("exif", b"")
    if not data:
        return 1
    table = Image.Exif()
    try:
        table.load(data)
        value = table.get(0x0112, 1)
    except Exception:  # damaged EXIF data raise many types, and say nothing of the pixels
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1
