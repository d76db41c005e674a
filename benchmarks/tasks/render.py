"""Printed text as a camera or scanner sees it: several fonts, sizes, colours, blur, noise, a slight rotation."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Array
from benchmarks.tasks.text import sentences

# Fonts that lie in matplotlib's wheel; None is the one inside Pillow. Never the system's, so that all machines agree.
_FONTS = (
    None,
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)


@dataclass(frozen=True)
class Style:
    """How a line of text looks.

    Attributes:
        font: Index of a font.
        size: Of the font, in pixels.
        ink, paper: Colours, red, green and blue from 0 to 255.
        degrees: Rotation, anticlockwise.
        blur: Radius of a Gaussian, in pixels.
        noise: Deviation of the sensor's noise, of 255.
        margins: White space left, above, right and below, in pixels.
    """

    font: int
    size: int
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    degrees: float
    blur: float
    noise: float
    margins: tuple[int, int, int, int]


def draw_style(rng: np.random.Generator) -> Style:
    """A style at random; dark on light in three of four, with a contrast that a person reads easily."""
    paper = rng.integers(160, 256, 3)
    ink = rng.integers(0, 100, 3)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    rotated, blurred = rng.random(2) < 0.5
    size = int(rng.integers(12, 44))
    margins = rng.integers(2, max(4, size // 4), 4)
    return Style(
        font=int(rng.integers(len(_FONTS))),
        size=size,
        ink=tuple(map(int, ink)),
        paper=tuple(map(int, paper)),
        degrees=float(rng.uniform(-2.5, 2.5)) if rotated else 0.0,
        blur=float(rng.uniform(0.02, 0.05) * size) if blurred else 0.0,
        noise=float(rng.uniform(0, 20)),
        margins=tuple(map(int, margins)),
    )


@functools.cache
def font(index: int, size: int) -> Any:
    """A font of Pillow.

    Raises:
        ModuleNotFoundError: Pillow or matplotlib is not installed (both are in the extra ``dev``).
    """
    from PIL import ImageFont

    name = _FONTS[index]
    if name is None:
        return ImageFont.load_default(size)
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "matplotlib, whose fonts are used, is not installed: pip install 'graphopt[dev]'"
        )
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name), size)


def line(text: str, style: Style, rng: np.random.Generator) -> Any:
    """A line of text, cut out tightly as a text detector does: an RGB image of Pillow."""
    from PIL import Image, ImageDraw, ImageFilter

    letters = font(style.font, style.size)
    left, top, right, bottom = letters.getbbox(text)
    before, above, after, below = style.margins
    # A detector's box reaches from ascender to descender whichever letters there are, or nearly so.
    top, bottom = min(top, letters.getbbox("h")[1]), max(bottom, letters.getbbox("hp")[3])
    size = (round(right - left) + before + after, round(bottom - top) + above + below)
    image = Image.new("RGB", size, style.paper)
    ImageDraw.Draw(image).text((before - left, above - top), text, fill=style.ink, font=letters)
    if style.degrees:
        image = image.rotate(style.degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=style.paper)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    return with_noise(image, style.noise, rng)


def with_noise(image: Any, deviation: float, rng: np.random.Generator) -> Any:
    """The image with independent normal noise in each pixel and channel."""
    from PIL import Image

    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + deviation * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def as_line_input(image: Any, width: int, height: int = 48) -> Array:
    """An image as PP-OCR's recogniser and direction classifier take it.

    BGR, scaled to the height with its proportions kept (but never wider than ``width``), from -1 to 1, zeros on the
    right. Source: ``resize_norm_img`` of rapidocr-onnxruntime 1.4.4.

    Returns:
        float32 [1, 3, height, width].
    """
    from PIL import Image

    scaled = min(width, int(np.ceil(height * image.width / image.height)))
    pixels = np.asarray(image.resize((scaled, height), Image.Resampling.BILINEAR), dtype=np.float32)
    result = np.zeros((1, 3, height, width), dtype=np.float32)
    result[0, :, :, :scaled] = (pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return result


def phrase(rng: np.random.Generator, calibration: bool) -> list[str]:
    """Up to five words in a row of a sentence, or a number, date, time, price, version or code."""
    if rng.random() < 0.7:
        texts = sentences(calibration)
        words = texts[rng.integers(len(texts))]
        count = int(rng.integers(1, 6))
        start = int(rng.integers(max(1, len(words) - count + 1)))
        return list(words[start : start + count])
    number = rng.integers
    # The halves differ in the last digit, so that no number is in both.
    last = 2 * int(number(5)) + int(calibration)
    forms = (
        f"{number(1, 100000)}{last}",
        f"{number(1000)}.{number(100):02d}{last}",
        f"{number(2000, 2030)}-{number(1, 13):02d}-{number(3)}{last or 2}",
        f"{number(24):02d}:{number(6)}{last}",
        f"${number(1, 1000)},{number(100):02d}{last}",
        f"{number(10)}{last}%",
        f"{number(1, 20)}.{number(20)}.{last}",
        f"{''.join(chr(65 + int(c)) for c in number(26, size=3))}-{number(1000):03d}{last}",
    )
    return [forms[int(number(len(forms)))]]
