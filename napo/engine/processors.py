"""A model's processor by name, for images only: a video half that cannot be loaded is left out.

Qwen2.5-VL, SmolVLM and others need torchvision (and num2words) to read videos. Nothing here reads videos, so a stand-in
takes that half's place, and images go through the family's own image processor.
"""

import sys
import types
from contextlib import nullcontext
from unittest import mock

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from napo.workshop.files import BadInput

FOR_VIDEOS = ("torchvision", "num2words")  # packages that only videos need


def load(name, revision=None):
    """The processor of a hub id or local folder. Raises OSError or ValueError as transformers does, and BadInput if a
    package is missing that images need."""
    try:
        return AutoProcessor.from_pretrained(name, revision=revision)
    except ImportError as error:
        if not any(package in str(error).lower() for package in FOR_VIDEOS):
            reason = next(line for line in str(error).splitlines() if line.strip()).strip()
            raise BadInput(f"the processor of {name!r} needs a package that is not installed: {reason}") from error
    return images_only(name, revision)


def images_only(name, revision=None):
    """The same processor without its video half."""
    model_type = AutoConfig.from_pretrained(name, revision=revision).model_type
    whole = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    loaders = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    parts = [
        loaders[part].from_pretrained(name, revision=revision) if part in loaders else stand_in()
        for part in whole.get_attributes()
    ]
    settings, _ = whole.get_processor_dict(name, revision=revision)
    with video_packages(whole):
        return without_video(whole).from_args_and_dict(parts, settings)


def stand_in():
    """What takes the place of a video processor."""
    return types.SimpleNamespace(num_frames=1, fps=1, model_input_names=[])


def without_video(whole):
    """A processor class that takes any object for its video processor."""

    class ImagesOnly(whole):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                return super().check_argument_for_proper_class(argument_name, argument)

        def __repr__(self):  # transformers' own writes all parts as JSON, which the stand-in is not
            return f"{whole.__name__}, images only"

    ImagesOnly.__name__ = whole.__name__
    return ImagesOnly


def video_packages(whole):
    """Context in which a class of processors finds its video packages: SmolVLM's constructor asks for num2words."""
    module = sys.modules[whole.__module__]
    return (
        mock.patch.object(module, "num2words", module.num2words or str)
        if hasattr(module, "num2words")
        else nullcontext()
    )
