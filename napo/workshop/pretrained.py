"""Models from strangers: their code never runs, only safetensors are opened, and every weight has its place."""

import contextlib
import json
import warnings
from pathlib import Path

from napo.workshop.files import BadInput, first_line

INDEX = "model.safetensors.index.json"
OTHERS = ("adapter_config.json", "audio_tokenizer_config.json")  # files that make transformers load another model too
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")  # "owner/name": code of the hub


@contextlib.contextmanager
def one_line(name, remedy="give a local folder by MODEL=... or check the network"):
    """Context in which whatever goes wrong with the files of a model becomes a BadInput that names it."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything in the libraries that read it
        reason = first_line(error).strip()[:120]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run: give a model that transformers knows"
        raise BadInput(f"cannot load the model {name!r}: {reason} ({remedy})") from error


def load(auto, name, revision=None, **settings):
    """A model in eval mode, by one of transformers' Auto classes.

    name      hub id or local folder
    settings  more arguments of `from_pretrained`
    Raises BadInput if weights are missing or of another shape, and as `check` does.
    """
    check(name, revision)
    settings |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    with _silence():
        model, found = auto.from_pretrained(name, revision=revision, output_loading_info=True, **settings)
    if missing := sorted(found["missing_keys"]):
        wrong = f"{len(missing)} weights are missing, the first is {missing[0]}"
        raise BadInput(f"the model {name!r} is not whole: {wrong}: get it again")
    if other := sorted(found["mismatched_keys"]):
        wrong = f"{len(other)} weights have another shape than its config.json says, the first is {other[0][0]}"
        raise BadInput(f"the model {name!r} does not fit together: {wrong}: get it again")
    if stray := sorted(found["unexpected_keys"]):
        warnings.warn(f"the model {name!r}: {len(stray)} weights are not used, the first is {stray[0]}", stacklevel=2)
    return model.eval()


def check(name, revision=None):
    """Raises BadInput for a model whose files would make transformers open more than its own safetensors.

    `use_safetensors` alone does not prevent that: an index may name pickles as shards, a configuration may name
    "adapter_model.bin" or a kernel of the hub, and other files name other models.
    """
    with one_line(name):
        if problem := _problem(name, revision):
            raise BadInput(f"the model {name!r} {problem}: give one in plain safetensors")


def _problem(name, revision):
    """What a model would open besides its own safetensors; None if nothing."""
    for file in OTHERS:
        if _file(name, file, revision):
            return f"has an {file}, which names another model"
    for key, value in _entries(name, "config.json", revision):
        if key == "transformers_weights" and not str(value).endswith(".safetensors"):
            return f"keeps its weights in {value!r:.80}"
        if key in KERNELS and "/" in str(value):
            return f"asks for the kernel {value!r:.80}"
    if "audio_tokenizer" in dict(_entries(name, "processor_config.json", revision)):
        return "has a processor that names another model"
    for shard in dict(_entries(name, INDEX, revision)).get("weight_map", {}).values():
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            return f"names the shard {shard!r:.80}"


def _file(name, file, revision):
    """Path of a model's file, fetched unless cached; None if it has none, or if it cannot be had now."""
    from transformers.utils.hub import cached_file

    lenient = ("missing_entries", "connection_errors", "gated_repo")
    return cached_file(name, file, revision=revision, **{f"_raise_exceptions_for_{what}": False for what in lenient})


def _entries(name, file, revision):
    """Every (key, value) of a model's JSON file, at any depth; [] if it has no such file."""
    found = []
    if path := _file(name, file, revision):
        text = Path(path).read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=lambda pairs: found.extend(pairs) or dict(pairs))
    return found


@contextlib.contextmanager
def _silence():
    """Context without transformers' bar over the weights and its report of many lines; bars of downloads stay."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **kwargs | {"disable": True}))
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)
