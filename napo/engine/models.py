"""Load a model in 4 bits, put a LoRA adapter on it, and check what would otherwise go wrong silently."""

import contextlib
import functools
import gc
import importlib.resources
import warnings
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from napo.engine import fused_lora, processors
from napo.workshop import pretrained
from napo.workshop.files import BadInput, content_hash, first_line

IDENTIFYING = (".json", ".safetensors", ".jinja", ".model", ".txt")  # files that decide on a model and its prompts


def source(profile, base):
    """Hub id or local folder of a profile's base model; for the desk world a folder of this package."""
    if profile.model != "desk":
        return profile.model
    folder = Path(str(importlib.resources.files("napo.desk") / "bases" / f"base-{base}"))
    if not (folder / "model.safetensors").exists():
        raise BadInput(
            f"base {base}: no model in {folder.name} of napo/desk/bases: make it with `make bases BASES={base}`"
        )
    return str(folder)


def identity(profile, base):
    """Identity of a profile's base model for an artefact's key, as `contents` has it."""
    return contents(source(profile, base), profile.revision)


def contents(name, revision=None):
    """Identity of a model: the hub id with its commit, or hashes of a folder's weights, configuration, tokenizer and
    templates."""
    folder = Path(name)
    if not folder.is_dir():
        return {"hub": name, "revision": revision, "commit": hub_commit(name, revision)}
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in IDENTIFYING)
    return {file.relative_to(folder).as_posix(): content_hash(file) for file in files}


@functools.cache
def hub_commit(name, revision=None):
    """Commit of a hub model, by its configuration, which is fetched unless cached; None if it cannot be had."""
    try:
        return extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
    except (OSError, ValueError):  # `load` will raise the better message
        return None


def check_device(device):
    """Raises BadInput for an unknown device, and for CUDA if torch sees no GPU."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"unknown device {device!r}: use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        raise BadInput(
            f"this profile needs one CUDA GPU and torch ({build}) sees none: use PROFILE=desk, or DEVICE=cpu with a "
            "small model"
        )


def load(name, quantisation, device="cpu", revision=None):
    """A vision-language model, its language model in 4 bits if the settings say so, and its processor.

    name          hub id or local folder; only safetensors, never remote code
    quantisation  profiles.Quantisation
    Returns (model in eval mode, processor). Raises BadInput if the model or the device is not available, or if a
    weight is missing.
    """
    check_device(device)
    place = torch.cuda.current_device() if device == "cuda" else device  # of several processes each has its own
    settings = {"dtype": getattr(torch, quantisation.dtype), "device_map": {"": place}}
    with pretrained.one_line(name):
        if quantisation.four_bit:
            settings["quantization_config"] = four_bit_config(name, quantisation, revision)
        model = pretrained.load(AutoModelForImageTextToText, name, revision, **settings)
        for layer in four_bit_layers(model):  # transformers checks no shape of what it quantises
            if layer.weight.quant_state.shape != (layer.out_features, layer.in_features):
                raise ValueError(f"weights of {tuple(layer.weight.quant_state.shape)} have another shape than {layer}")
        processor = processors.load(name, revision)
    guard_repacking(model)
    return model, processor


def load_base(profile, base, four_bit=None):
    """A profile's base model and processor; four_bit overrides the profile's choice.

    Sets torch's threads to the profile's number, so that results do not depend on how many cores a machine has.
    """
    if profile.threads:
        torch.set_num_threads(profile.threads)
    quantisation = profile.quantisation
    if four_bit is not None:
        quantisation = replace(quantisation, four_bit=four_bit)
    return load(source(profile, base), quantisation, profile.device, profile.revision)


class LoadOnce:
    """A model that is loaded at its first use: finished work needs none."""

    def __init__(self, load):
        self.load, self.loaded = load, None

    def __call__(self):
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded


def skeleton(name, revision=None):
    """A model with all its modules and no weights, from its configuration alone."""
    pretrained.check(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    with init_empty_weights():
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def four_bit_config(name, quantisation, revision=None):
    """bitsandbytes' settings: NF4 for the language model only.

    bitsandbytes matches the skip list from the start of a module's full path, and a given list replaces the default
    one, which skips the head. A bare "vision_tower" would be silently ignored and the head quantised. So the list is
    read off the model's skeleton.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantisation.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantisation.compute_dtype),
        llm_int8_skip_modules=outside_language_model(skeleton(name, revision)),
    )


def outside_language_model(model):
    """Full paths of everything that is not the language model's decoder: vision tower, projector, output head."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    paths = [f"model.{name}" for name, child in model.model.named_children() if child is not decoder]
    return paths + [name for name, module in model.named_modules() if module is head]


def guard_repacking(model):
    """Keep 4-bit weights in the layout that they were loaded in, and their products in the compute dtype.

    On a CPU with AVX512-BF16 a stock Linear4bit repacks its weights in the first eval forward whose input needs no
    gradient. From then on it computes in bfloat16, and gradients are silently wrong (93 % off, measured).
    """
    for module in four_bit_layers(model):
        module.support_avx512bf16_for_cpu = False


def four_bit_layers(model):
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def parameter_table(model):
    """What is quantised and what is trained, to print before a training: one dict for each part of the model.

    Keys: `part`; `parameters`, `in_4_bit`, `trainable` (counts); `megabytes` as stored.
    """
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = dict(causal_lm.model.named_children()) | {"lm_head": causal_lm.get_output_embeddings()}
    return [_part_row(name, part) for name, part in parts.items()]


def _part_row(name, part):
    row = {"part": name, "parameters": 0, "in_4_bit": 0, "trainable": 0, "megabytes": 0.0}
    for parameter in part.parameters():
        packed = isinstance(parameter, bnb.nn.Params4bit)
        count = parameter.quant_state.shape.numel() if packed and parameter.quant_state else parameter.numel()
        row["parameters"] += count
        row["in_4_bit"] += count if packed else 0
        row["trainable"] += count if parameter.requires_grad else 0
        row["megabytes"] += parameter.numel() * parameter.element_size() / 2**20
    return row


def check_quantised(model):
    """Raises BadInput unless layers of the language model, and of nothing else, are in 4 bits."""
    decoder = next(name for name, child in model.model.named_children() if child is model.get_decoder())
    rows = parameter_table(model)
    wrong = [row["part"] for row in rows if row["in_4_bit"] and row["part"] != decoder]
    if wrong:
        raise BadInput(
            f"{', '.join(wrong)} quantised to 4 bits: only {decoder} should be (see models.outside_language_model)"
        )
    if not any(row["in_4_bit"] for row in rows):
        raise BadInput(f"no layer of {decoder} is in 4 bits although the profile asks for it")


def attach_lora(model, lora, seed):
    """The model with a fresh, trainable LoRA adapter. It starts as the identity, so policy = reference at step 0.

    lora  profiles.Lora;  seed  of the adapter's random half
    Returns peft's PeftModel. Raises BadInput if no layer matches the targets.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        try:
            policy = get_peft_model(model, config)
        except ValueError as error:
            raise BadInput(f"LoRA found no layer to adapt with targets {lora.targets!r}: {error}") from error
    fused_lora.fuse(policy)
    return policy


@contextlib.contextmanager
def quiet():
    """Context without two warnings: that peft uses an old name, and that adapter keys are missing (`load_adapter`
    raises)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def load_adapter(model, folder):
    """A model with a trained adapter, loaded by stock peft and never merged.

    Raises BadInput if the folder holds none, or one that does not fit the model: every weight of the file must have
    found its place, of which peft at most warns.
    """
    file = Path(folder) / "adapter_model.safetensors"
    if not file.with_name("adapter_config.json").exists():
        raise BadInput(f"no adapter in {folder}: run notebook 03 first")
    if not file.exists():  # peft would take a pickle instead
        raise BadInput(f"{folder}: no {file.name}; only safetensors are loaded, never pickles")
    try:
        if (kind := PeftConfig.from_pretrained(str(folder)).peft_type) != "LORA":  # others load further files
            raise ValueError(f"{kind} is not LoRA")
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        with safe_open(file, "pt") as weights:
            stray = sorted(set(weights.keys()) ^ set(get_peft_model_state_dict(adapted)))
    except Exception as error:  # as in pretrained.one_line
        reason = " ".join(first_line(error).split())[:120]
        raise BadInput(f"{folder}: no adapter of this model ({reason}): give the model it was trained on") from error
    if stray:
        raise BadInput(
            f"{folder}: {len(stray)} weights do not belong to this model or are missing, the first is {stray[0]}: "
            "give the model it was trained on"
        )
    fused_lora.fuse(adapted)
    return adapted


def without_adapter(model):
    """Context in which a model computes as its base does; a model without an adapter is one already."""
    return model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext()


@torch.no_grad()
def adapter_effect(model, batch):
    """Largest absolute change of a logit when the adapter is switched on: 0 means that it does nothing."""
    model.eval()
    inputs = {name: tensor for name, tensor in batch.items() if name != "response_mask"}
    on = model(**inputs).logits
    with model.disable_adapter():
        off = model(**inputs).logits
    return (on - off).abs().max().item()


def free():
    """Give the memory of deleted models back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
