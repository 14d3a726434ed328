"""How an image becomes the square of pixels that a CLIP takes: resizing, cropping, resampling, mean and deviation.

:class:`ImageProcessing` is read from a checkpoint's image processor (``preprocessor_config.json``) and follows it as
``transformers`` does with Pillow. It is part of the backbone, of the keys of cached pixels and of the records. This
module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["shortest_edge", "height_width", "fit", "none"]
Orientation = Literal["exif", "as stored"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

#: Pillow's numbers of its filters, as configs give them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

#: What ``transformers`` takes for a key that is missing, by the kind of processor.
_CLIP_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_SQUASHED: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "do_center_crop": None,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CLIP": _CLIP_DEFAULTS,
    "ViT": {**_SQUASHED, "resample": 2},
    "Siglip": _SQUASHED,
}
_KIND_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")

#: Switches whose setting changes nothing here: every image becomes RGB, one at a time.
_WITHOUT_EFFECT = ("do_convert_rgb",)

#: Pixels up to which a resized image is computed as a whole before it is cropped; beyond (an image of 1 x 100,000
#: pixels), only what is kept is computed, which may differ by 1/255.
_WHOLE = 1 << 25


class ProcessingError(ValueError):
    """An image processor that is not supported; one line that names the key, its value and what to write."""


@dataclass(frozen=True)
class ImageProcessing:
    """The way from an RGB image of any size to normalised pixels ``[3, size, size]``.

    * ``size``: side of the result in pixels.
    * ``resize``: "shortest_edge" (the shorter edge becomes ``to[0]``, the aspect stays), "height_width" (the image is
      squashed or stretched to ``to``, height and width), "fit" (the central square, resized at once: Pillow's
      ``ImageOps.fit``) or "none".
    * ``to``: what ``resize`` aims at, in pixels.
    * ``crop``: height and width of the centre that is kept, padded with black where the image is smaller; or None.
    * ``resample``: Pillow's filter by name.
    * ``mean``, ``std``: of each channel, for pixels in [0, 1] (another rescale factor is part of them).
    * ``orientation``: "exif" turns an image as its EXIF data say, "as stored" does not.
    """

    size: int
    resize: Resize
    to: tuple[int, ...]
    crop: tuple[int, int] | None = None
    resample: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    orientation: Orientation = "exif"

    @classmethod
    def clip(cls, size: int) -> Self:
        """OpenAI's: the shorter edge to ``size``, the central square of it, bicubic."""
        return cls(size, "shortest_edge", (size,), (size, size))

    @classmethod
    def at(cls, how: int | ImageProcessing) -> ImageProcessing:
        """The processing itself; that of a backbone for its :class:`ImageSize`, OpenAI's for any other size."""
        if isinstance(how, ImageSize):
            return how.processing
        return cls.clip(how) if isinstance(how, int) else how

    def official(self) -> Self:
        """What ``--rules official`` uses: the central square, bicubic, as stored; mean and deviation are kept."""
        return replace(
            self, resize="fit", to=(self.size, self.size), crop=None, resample="bicubic", orientation="as stored"
        )

    def without_statistics(self) -> Self:
        """The same 8-bit pixels, whatever mean and deviation: what caches of pixels are keyed by."""
        return replace(self, mean=CLIP_MEAN, std=CLIP_STD)

    # --- records ------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Everything that changes a pixel, as JSON holds it."""
        return {**self.geometry(), "mean": list(self.mean), "std": list(self.std)}

    def geometry(self) -> dict[str, Any]:
        """:meth:`record` without mean and deviation: what decides the 8-bit pixels of an image."""
        return {
            "size": self.size,
            "resize": {"to": list(self.to), "mode": self.resize},
            "crop": None if self.crop is None else list(self.crop),
            "resample": self.resample,
            "orientation": self.orientation,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any], size: int) -> Self:
        """Read :meth:`record` again; what is missing is CLIP's at ``size``."""
        default = cls.clip(size)
        changes: dict[str, Any] = {
            name: record[name] for name in ("size", "resample", "orientation") if record.get(name) is not None
        }
        if record.get("resize") is not None:
            crop = record.get("crop")
            changes |= {"resize": record["resize"]["mode"], "to": tuple(record["resize"]["to"])}
            changes["crop"] = None if crop is None else (int(crop[0]), int(crop[1]))
        for name in ("mean", "std"):
            if record.get(name):
                changes[name] = tuple(float(value) for value in record[name])
        return replace(default, **changes)

    # --- images -------------------------------------------------------------------------------------------------------

    @property
    def whole_square(self) -> bool:
        """Whether a square image is resized to the result at once, and nothing of it is cropped."""
        crop = self.crop in (None, (self.size, self.size))
        return crop and self.resize != "none" and set(self.to) == {self.size}

    @property
    def side(self) -> int:
        """The side that a square image is resized to, before it is cropped."""
        return self.to[0] if self.to and set(self.to) == {self.to[0]} else self.size

    def crop_squares(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop ``[B, 3, side, side]``, already resized, to ``[B, 3, size, size]``; black where that is larger."""
        if pixels.shape[-1] == self.size:
            return pixels
        first = (pixels.shape[-1] - self.size) // 2
        if first >= 0:
            return pixels[..., first : first + self.size, first : first + self.size]
        out = np.zeros((*pixels.shape[:2], self.size, self.size), dtype=pixels.dtype)
        out[..., -first : pixels.shape[-1] - first, -first : pixels.shape[-1] - first] = pixels
        return out

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop an RGB image: uint8 ``[3, size, size]``, not normalised and not turned."""
        from PIL import Image, ImageOps

        method = Image.Resampling[self.resample.upper()]
        if self.resize == "fit":
            if image.size != (self.size, self.size):
                image = ImageOps.fit(image, (self.size, self.size), method)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        height, width = self._resized(image.height, image.width)
        rows, columns = self.crop or (height, width)
        top, left = (height - rows) // 2, (width - columns) // 2
        part = (max(0, left), max(0, top), min(width, left + columns), min(height, top + rows))
        pixels = np.asarray(_resized_part(image, (width, height), part, method))
        if pixels.shape[:2] != (rows, columns):
            canvas = np.zeros((rows, columns, 3), dtype=np.uint8)
            canvas[max(0, -top) : max(0, -top) + pixels.shape[0], max(0, -left) : max(0, -left) + pixels.shape[1]] = (
                pixels
            )
            pixels = canvas
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "none":
            return height, width
        if self.resize == "height_width":
            return self.to[0], self.to[1]
        longer = int(self.to[0] * max(height, width) / min(height, width))
        return (longer, self.to[0]) if width <= height else (self.to[0], longer)


def _resized_part(
    image: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], method: Image.Resampling
) -> Image.Image:
    """The box ``part`` (left, top, right, bottom) of the image resized to ``size`` (width, height)."""
    left, top, right, bottom = part
    shape = (right - left, bottom - top)
    if size[0] * size[1] <= _WHOLE:
        return image.resize(size, method).crop(part)
    across, down = image.width / size[0], image.height / size[1]
    return image.resize(shape, method, box=(left * across, top * down, right * across, bottom * down))


# --- image processors -------------------------------------------------------------------------------------------------


def read_processor(config: Mapping[str, Any], image_size: int) -> ImageProcessing:
    """The processing that an image processor's config asks for, for a model of ``image_size`` pixels.

    A missing key has the default of ``transformers``; a switch that is null is off, as there.

    Raises:
        ProcessingError: a key that is not supported, or a result that is not the model's square.
    """
    defaults = _defaults(config)
    values = {**defaults, **config}
    if values.get("use_square_size"):
        values["size"] = {"height": 224, "width": 224}
    for key, value in values.items():
        if key.startswith("do_") and value and key not in defaults and key not in _WITHOUT_EFFECT:
            raise ProcessingError(f"{key} {_shown(value)}, which is not supported: remove it if the model does without")
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not isinstance(values[key], bool | None):
            raise ProcessingError(f"{key} {_shown(values[key])}: give true or false")
    resize, to = _resize(values)
    crop = _sides("crop_size", values["crop_size"], square=True)[1] if values["do_center_crop"] else None
    resample = values["resample"]
    if type(resample) is not int or resample not in _RESAMPLE:  # transformers reads 3.0 as another filter than 3
        raise ProcessingError(f"resample {_shown(resample)}: give a number of 0 to 5 (3 is bicubic)")
    mean, std = _statistics(values)
    _check_result(resize, to, crop, image_size, config)
    return ImageProcessing(
        image_size,
        resize,
        to,
        None if crop is None else (crop[0], crop[1]),
        _RESAMPLE[resample],
        mean,
        std,
    )


def _defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    key = next((key for key in ("image_processor_type", "feature_extractor_type") if config.get(key)), None)
    if key is None:
        return _CLIP_DEFAULTS
    for kind, defaults in _DEFAULTS.items():
        if config[key] in [kind + ending for ending in _KIND_ENDINGS]:
            return defaults
    raise ProcessingError(
        f"{key} {_shown(config[key])}, which is not supported: write its settings as a CLIPImageProcessor's"
    )


def _resize(values: Mapping[str, Any]) -> tuple[Resize, tuple[int, ...]]:
    if not values["do_resize"]:
        return "none", ()
    mode, to = _sides("size", values["size"], square=bool(values["default_to_square"]))
    return mode, to


def _sides(key: str, value: Any, *, square: bool) -> tuple[Resize, tuple[int, ...]]:
    """A size in any of the forms that configs have: a number, [height, width] or a dictionary."""
    wanted = "{'height': H, 'width': W}" if key == "crop_size" else "{'shortest_edge': N} or {'height': H, 'width': W}"
    given = value
    if isinstance(value, int) and not isinstance(value, bool):
        given = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        given = {"height": value[0], "width": value[1]}
    keys = set(given) if isinstance(given, Mapping) else set()
    modes: dict[Resize, tuple[str, ...]] = {"height_width": ("height", "width"), "shortest_edge": ("shortest_edge",)}
    if key == "crop_size":
        del modes["shortest_edge"]
    for mode, names in modes.items():
        if keys == set(names):
            sides = [given[name] for name in names]
            if all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= 16384 for side in sides):
                return mode, tuple(sides)
    raise ProcessingError(f"{key} {_shown(value)}: give {wanted}, whole numbers of pixels")


def _statistics(values: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for pixels in [0, 1], whatever the rescale factor."""
    given = [values["image_mean"], values["image_std"]] if values["do_normalize"] else [0.0, 1.0]
    mean, std = ([value] * 3 if isinstance(value, int | float) else value for value in given)
    numbers = [*mean, *std] if isinstance(mean, list | tuple) and isinstance(std, list | tuple) else [None]
    sound = all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in numbers
    )
    if not sound or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ProcessingError(
            f"image_mean {_shown(given[0])} and image_std {_shown(given[1])}: give three numbers each, the deviations"
            " above 0"
        )
    factor = values["rescale_factor"] if values["do_rescale"] else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ProcessingError(f"rescale_factor {_shown(factor)}: give a number above 0, such as {1 / 255}")
    if not values["do_rescale"] and values["do_normalize"] and max(*mean, *std) <= 1:
        raise ProcessingError(
            f"do_rescale false with image_mean {_shown(given[0])} and image_std {_shown(given[1])}, which are of pixels"
            " in [0, 1]: leave do_rescale out, or give those of pixels from 0 to 255"
        )
    scale = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-9) else 255 * factor
    return tuple(float(value) / scale for value in mean), tuple(float(value) / scale for value in std)


def _check_result(
    resize: Resize, to: tuple[int, ...], crop: tuple[int, ...] | None, side: int, config: Mapping[str, Any]
) -> None:
    """The result must be the model's square whatever the image."""
    wanted = f"the model takes {side} x {side}"
    if crop is not None:
        if crop != (side, side):
            raise ProcessingError(
                f"crop_size {_sides_of(config, 'crop_size', crop)}, but {wanted} (vision_config.image_size)"
            )
    elif resize == "none":
        raise ProcessingError(
            f"do_resize and do_center_crop false: {wanted}, so images of other sizes need one of them"
        )
    elif resize == "shortest_edge":
        raise ProcessingError(
            f"size {_shown(config.get('size', {'shortest_edge': to[0]}))} with do_center_crop false, which leaves"
            f" images that are not square: {wanted}, so set do_center_crop, or size to"
            f" {{'height': {side}, 'width': {side}}}"
        )
    elif to != (side, side):
        raise ProcessingError(f"size {_sides_of(config, 'size', to)}, but {wanted} (vision_config.image_size)")


def _sides_of(config: Mapping[str, Any], key: str, sides: tuple[int, ...]) -> str:
    shown = " x ".join(map(str, sides))
    return shown if key in config else f"missing, which means {shown}"


def _shown(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class ImageSize(int):
    """A backbone's image size in pixels, with the processing by which an image gets that size.

    Code that asks for images "at the backbone's size" then gets those that its image processor makes.
    """

    processing: ImageProcessing

    def __new__(cls, processing: ImageProcessing) -> ImageSize:
        size = super().__new__(cls, processing.size)
        size.processing = processing
        return size

    def __getnewargs__(self) -> tuple[ImageProcessing]:  # type: ignore[override]
        return (self.processing,)
