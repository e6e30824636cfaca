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

from napo.workshop.files import BadInput, first_line

FOR_VIDEOS = ("torchvision", "num2words")  # packages that only videos need


def load(name, revision=None):
    """The processor of a hub id or local folder, never remote code.

    Raises OSError or ValueError as transformers does, and BadInput if there is none for chats with images, or if a
    package is missing that images need.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except ImportError as error:
        if not any(package in str(error).lower() for package in FOR_VIDEOS):
            reason = first_line(error).strip() or str(error).split("\n")[1].strip()
            raise BadInput(f"the processor of {name!r} needs a package that is not installed: {reason}") from error
        processor = images_only(name, revision)
    parts = ("tokenizer", "image_processor", "chat_template")
    if lacks := [part for part in parts if not getattr(processor, part, None)]:
        raise BadInput(f"the processor of {name!r} has no {' and no '.join(lacks)}: give a chat model that sees images")
    return processor


def images_only(name, revision=None):
    """The same processor without its video half."""
    model_type = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).model_type
    whole = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    loaders = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    parts = [
        loaders[part].from_pretrained(name, revision=revision, trust_remote_code=False)
        if part in loaders
        else stand_in()
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
