"""A model's processor by name, for images: the video half that some families bring is left out where it cannot load.

Qwen2.5-VL, SmolVLM and others ask for torchvision (and num2words) to read videos. Nothing here does, so a stand-in
takes that half's place and images go through the family's own image processor as ever.
"""

import importlib
import types

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from napo.artifacts import BadInput

FOR_VIDEOS = ("torchvision", "num2words")  # packages that only videos need


def load(name, revision=None):
    """The processor of a hub id or local folder. Raises OSError or ValueError as transformers does, BadInput where a
    package is missing that images need too."""
    try:
        return AutoProcessor.from_pretrained(name, revision=revision)
    except ImportError as error:
        if not any(package in str(error).lower() for package in FOR_VIDEOS):
            reason = next(line for line in str(error).splitlines() if line.strip()).strip()
            raise BadInput(f"the processor of {name!r} needs a package that is not installed: {reason}") from error
    return images_only(name, revision)


def images_only(name, revision=None):
    """The same without its video half."""
    whole = processor_class(AutoConfig.from_pretrained(name, revision=revision).model_type)

    class ImagesOnly(whole):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                return super().check_argument_for_proper_class(argument_name, argument)

        def __repr__(self):  # transformers' own writes all parts as JSON, which the stand-in is not
            return f"{whole.__name__}, images only, of {name}"

    stand_in = types.SimpleNamespace(num_frames=1, fps=1, model_input_names=[])
    loaders = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    parts = [
        loaders[part].from_pretrained(name, revision=revision) if part in loaders else stand_in
        for part in whole.get_attributes()
    ]
    settings, _ = whole.get_processor_dict(name, revision=revision)
    ImagesOnly.__name__ = whole.__name__
    return ImagesOnly.from_args_and_dict(parts, settings)


def processor_class(model_type):
    """transformers' processor class of a model family."""
    class_name = PROCESSOR_MAPPING_NAMES[model_type]
    found = getattr(importlib.import_module("transformers"), class_name)
    module = importlib.import_module(found.__module__)
    if hasattr(module, "num2words"):
        module.num2words = module.num2words or str  # writes a video's time into its prompt
    return found
