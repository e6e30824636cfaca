"""What a model's processor says of rows before anything is loaded or generated."""

import json

import pytest
from tiny_models import save_tiny_llava
from tiny_rows import make_row

from napo.engine import packing, processors, row_check
from napo.workshop.files import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model") / "llava")


def test_special_tokens_in_any_text_are_named(folder):
    check = row_check.of_model(str(folder), longest=100)
    assert check(make_row()) is None
    for name, token in (("question", "<image>"), ("chosen", "</s>"), ("vision_biased", "<pad>")):
        assert check(make_row(**{name: f"a {token} b"})).startswith(f"{name} contains {token}")


def test_the_limit_is_that_of_encode_to_the_token(folder):
    processor, row = processors.load(str(folder)), make_row()
    n = len(packing.encode(row, processor, ("chosen",))["prompt_ids"])
    assert row_check.RowCheck(processor, n + 2)(row) is None
    packing.encode(row, processor, ("chosen",), n + 2)
    assert row_check.RowCheck(processor, n + 1)(row) == f"the prompt has {n} tokens, the limit is {n + 1}"
    with pytest.raises(BadInput):
        packing.encode(row, processor, ("chosen",), n + 1)


def test_a_models_own_limit_counts_the_longest_answer(folder):
    check = row_check.of_model(str(folder))
    assert check.longest == 4096 and check(make_row()) is None
    assert "prompt and longest answer have" in check(make_row(rejected="a" * 4090))


def test_a_processor_without_a_chat_template_is_refused(folder, tmp_path):
    save_tiny_llava(tmp_path / "llava")
    for file in (tmp_path / "llava").glob("*.jinja"):
        file.unlink()
    for file in (tmp_path / "llava").glob("*_config.json"):
        settings = json.loads(file.read_text())
        settings.pop("chat_template", None)
        file.write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="has no chat_template: give a chat model"):
        row_check.of_model(str(tmp_path / "llava"))
