"""Random models of the other families with their real processors, a few thousand parameters each, for tests.

No torchvision here, so no video processors: a stand-in takes their place, and images go through the PIL processors.
"""

import torch
import transformers
from tiny_models import byte_tokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from napo.engine import processors

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% else %}ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TILES = ["<fake_token_around_image>", "<global-img>"]
TILES += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
SPECIALS = {
    "llava_onevision": ["<video>"],
    "smolvlm": ["<video>", *TILES],
    "idefics3": [*TILES, "<end_of_utterance>"],
    "qwen2_5_vl": ["<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
    "qwen3_vl": ["<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
}


def tiny_family(name, seed=1):
    """(model in eval mode, processor) of one family: a name of `tree_attention.FAMILIES` other than llava."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[name]})
    model, processor = BUILDERS[name](tokenizer)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model.eval(), processor


def without_video(processor_class, **settings):
    """A processor whose video half is a stand-in: the real one needs torchvision."""
    with processors.video_packages(processor_class):
        return processors.without_video(processor_class)(video_processor=processors.stand_in(), **settings)


def _llava_onevision(tokenizer):
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=12
    )
    grids = [[24, 24], [24, 48], [48, 24]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    processor = without_video(
        transformers.LlavaOnevisionProcessor,
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 24, "width": 24}, image_grid_pinpoints=grids, do_pad=True
        ),
        tokenizer=tokenizer,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _tiled(config_class, tokenizer):
    """Configuration of SmolVLM (1 and 2) and Idefics3, which cut an image into tiles."""
    return config_class(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 6,
        },
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


TILED = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}


def _idefics3(tokenizer):
    processor = transformers.Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(**TILED),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.Idefics3ForConditionalGeneration(_tiled(transformers.Idefics3Config, tokenizer)), processor


def _smolvlm(tokenizer):
    config = _tiled(transformers.SmolVLMConfig, tokenizer)
    processor = without_video(
        transformers.SmolVLMProcessor,
        image_processor=SmolVLMImageProcessorPil(**TILED),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _qwen_processor(processor_class, tokenizer, patch_size):
    return without_video(
        processor_class,
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=patch_size, merge_size=2, size={"shortest_edge": 24 * 24, "longest_edge": 48 * 48}
        ),
        tokenizer=tokenizer,
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><image><|vision_end|>"),
    )


def _qwen_ids(tokenizer):
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(["<image>", *SPECIALS["qwen2_5_vl"]]), strict=True))


def _qwen2_5_vl(tokenizer):
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 6,
            "window_size": 24,
            "fullatt_block_indexes": [1],
        },
        text_config=TEXT
        | {"vocab_size": len(tokenizer), "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(transformers.Qwen2_5_VLProcessor, tokenizer, 6)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(tokenizer):
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 6,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        text_config=TEXT
        | {
            "vocab_size": len(tokenizer),
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
        },
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(transformers.Qwen3VLProcessor, tokenizer, 6)
    return transformers.Qwen3VLForConditionalGeneration(config), processor


BUILDERS = {
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
