"""transformers stays as it is when this package is imported, or a processor is loaded without its video half."""

import subprocess
import sys

from tiny_families import tiny_family
from transformers.models.smolvlm import processing_smolvlm

IMPORTED = """
import importlib, pkgutil, sys
import transformers
from transformers import AttentionInterface, AutoModelForImageTextToText, Trainer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.smolvlm import modeling_smolvlm, processing_smolvlm
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

def tables():
    return [dict(ALL_ATTENTION_FUNCTIONS), dict(AttentionInterface._global_mapping), dict(ALL_MASK_ATTENTION_FUNCTIONS)]

def contents():  # also of classes: a patched method is an attribute of one
    modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "transformers" and m is not None}
    found = {(name, key): value for name, m in modules.items() for key, value in vars(m).items()}
    classes = {value for value in found.values() if isinstance(value, type)}
    return found | {(kind, key): value for kind in classes for key, value in vars(kind).items()}

before, attention = contents(), tables()
import napo
for module in pkgutil.walk_packages(napo.__path__, "napo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = contents()
changed = [key for key, value in before.items() if after.get(key) is not value]
ours = [str(key) for key in changed if getattr(after.get(key), "__module__", "").startswith("napo")]
patched = [str(key) for key in changed if not str(key[1]).startswith("_")]
assert len(before) > 10000 and "napo.engine.tree_attention" in sys.modules
assert not ours and not patched, (ours, patched)
assert tables() == attention
"""


def test_importing_the_whole_package_changes_nothing_in_transformers(root):
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_processor_without_videos_leaves_its_module_as_it_was():
    before = processing_smolvlm.num2words
    tiny_family("smolvlm")
    assert processing_smolvlm.num2words is before
