"""Batched answers: token for token those of one prompt at a time, identical prompts once, masked ones as asked."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import BUILDERS as FAMILIES
from tiny_families import tiny_family
from tiny_models import tiny_llava
from tiny_rows import make_row, photo

from napo.engine import packing
from napo.engine.generation import chunks, generate
from napo.profiles import Perturbation

SETTINGS = Perturbation(max_new_tokens=12, batch_size=4)


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_llava()


class Counted:
    """A model whose calls of `generate` are kept: a list of input dicts."""

    def __init__(self, model):
        self.model, self.device, self.calls = model, model.device, []

    def eval(self):
        return self

    def generate(self, **inputs):
        self.calls.append(inputs)
        return self.model.generate(**inputs)

    def prompts(self):
        return sum(len(call["input_ids"]) for call in self.calls)


def stock_answer(model, processor, row, image=True, question=True, **settings):
    """One prompt, no padding, stock transformers."""
    text = packing.prompt_text(row, processor, image, question)
    inputs = processor(text=[text], images=[row["image"]] if image else None, return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=12, **settings)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def prompts_of_many_lengths(n=9):
    rows = [make_row(i, question=f"why is that so {i}? " * (1 + (5 * i) % 4)) for i in range(n)]
    kinds = [(True, True), (False, True), (True, False)]
    return [(row, *kinds[i % 3]) for i, row in enumerate(rows)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_batched_greedy_equals_one_by_one(model_and_processor, batch_size):
    model, processor = model_and_processor
    prompts = prompts_of_many_lengths()
    expected = [stock_answer(model, processor, *prompt) for prompt in prompts]
    answers = generate(model, processor, prompts, Perturbation(max_new_tokens=12, batch_size=batch_size))
    assert answers == expected
    assert len(set(answers)) > 3 and len({len(answer) for answer in answers}) > 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_images_of_many_sizes_in_one_batch_get_the_answers_they_get_alone(family):
    model, processor = tiny_family(family, seed=4)  # with it every family gives several answers
    sizes = [(60, 40), (20, 60), (90, 20), (40, 40)]
    prompts = [(make_row(i, image=photo(i, size)), True, i % 2 == 0) for i, size in enumerate(sizes)]
    counted = Counted(model)
    answers = generate(counted, processor, prompts, SETTINGS)
    assert len(counted.calls) == 1 and len(set(answers)) > 1
    assert answers == [generate(model, processor, [prompt], SETTINGS)[0] for prompt in prompts]


def test_keys_and_values_are_kept_whatever_the_configuration_says(monkeypatch):
    """After the prompt each step reads one token; a model saved by a training often says use_cache=False."""
    model, processor = tiny_llava(seed=3)
    model.config.use_cache = model.generation_config.use_cache = model.config.text_config.use_cache = False
    read, stock = [], model.model.language_model.forward
    monkeypatch.setattr(
        model.model.language_model,
        "forward",
        lambda *a, **k: read.append(k["inputs_embeds"].shape[1]) or stock(*a, **k),
    )
    generate(model, processor, prompts_of_many_lengths(3)[:1], SETTINGS, min_new_tokens=12)
    assert read[0] > 1 and read[1:] == [1] * 11


def test_beam_search_is_stock_beam_search(model_and_processor):
    model, processor = model_and_processor
    prompts = prompts_of_many_lengths()
    answers = generate(model, processor, prompts, Perturbation(max_new_tokens=12, batch_size=4, num_beams=3))
    assert answers == [stock_answer(model, processor, *prompt, num_beams=3) for prompt in prompts]
    assert answers != generate(model, processor, prompts, SETTINGS)


def test_identical_prompts_are_generated_once(model_and_processor):
    model, processor = model_and_processor
    blank = Image.new("RGB", (60, 40), (255, 255, 255))
    same = [(make_row(i, image=blank.copy(), question="why?"), True, True) for i in range(20)]
    other = [(make_row(9, image=blank.copy(), question="who?"), True, True), (make_row(3, question="why?"), True, True)]
    counted = Counted(model)
    answers = generate(counted, processor, same + other, SETTINGS)
    assert counted.prompts() == 3 and len(counted.calls) == 1
    assert len(answers) == 22 and len(set(answers[:20])) == 1
    assert answers[20] == stock_answer(model, processor, other[0][0])


def test_one_pixel_makes_another_prompt(model_and_processor):
    model, processor = model_and_processor
    one, other = make_row(0, question="why?"), make_row(0, question="why?")
    other["image"] = one["image"].copy()
    other["image"].putpixel((0, 0), (1, 2, 3))
    counted = Counted(model)
    generate(counted, processor, [(one, True, True), (other, True, True)], SETTINGS)
    assert counted.prompts() == 2


def test_equal_bytes_of_another_shape_are_another_prompt(model_and_processor):
    flat = np.arange(24, dtype=np.uint8).repeat(3)
    images = [Image.fromarray(flat.reshape(shape)) for shape in ((4, 6, 3), (6, 4, 3))]
    assert images[0].tobytes() == images[1].tobytes()
    counted = Counted(model_and_processor[0])
    rows = [make_row(0, image=image, question="why?") for image in images]
    generate(counted, model_and_processor[1], [(row, True, True) for row in rows], SETTINGS)
    assert counted.prompts() == 2


def test_prompt_without_an_image_has_no_image_token_and_no_pixels(model_and_processor):
    model, processor = model_and_processor
    counted = Counted(model)
    generate(counted, processor, [(make_row(), False, True)], SETTINGS)
    (call,) = counted.calls
    assert not (call["input_ids"] == processor.image_token_id).any() and "pixel_values" not in call
    assert "what is it 0?" in processor.tokenizer.decode(call["input_ids"][0])


def test_prompt_without_a_question_is_the_template_around_the_image_tokens(model_and_processor):
    model, processor = model_and_processor
    counted = Counted(model)
    generate(counted, processor, [(make_row(), True, False)], SETTINGS)
    (call,) = counted.calls
    assert (call["input_ids"] == processor.image_token_id).sum() == 4 and "pixel_values" in call
    rest = [i for i in call["input_ids"][0].tolist() if i != processor.image_token_id]
    assert processor.tokenizer.decode(rest).split() == ["USER:", "ASSISTANT:"]


def test_nothing_is_sampled(model_and_processor):
    model, processor = model_and_processor
    prompts = prompts_of_many_lengths(4)
    torch.manual_seed(0)
    first = generate(model, processor, prompts, SETTINGS)
    torch.manual_seed(1)
    assert generate(model, processor, prompts, SETTINGS) == first
    counted = Counted(model)
    generate(counted, processor, prompts, SETTINGS)
    assert all(call["do_sample"] is False and call["num_beams"] == 1 for call in counted.calls)


def test_answers_keep_the_order_of_their_prompts(model_and_processor):
    model, processor = model_and_processor
    prompts = prompts_of_many_lengths()
    answers = generate(model, processor, prompts, SETTINGS)
    assert generate(model, processor, prompts[::-1], SETTINGS) == answers[::-1]


def padding(calls):
    return sum((call["attention_mask"] == 0).sum().item() for call in calls)


def test_prompts_of_similar_length_share_a_batch(model_and_processor):
    """Short and long questions in turns: in the order of arrival nearly half of every batch would be padding."""
    model, processor = model_and_processor
    rows = [make_row(i, question="why? " * (1 + 20 * (i % 2) + i % 3)) for i in range(8)]
    prompts, counted = [(row, True, True) for row in rows], Counted(model)
    answers = generate(counted, processor, prompts, SETTINGS)
    assert answers == [stock_answer(model, processor, *prompt) for prompt in prompts] and len(set(answers)) > 3
    texts = [packing.prompt_text(row, processor) for row in rows]
    as_they_came = [
        packing.tokenised([texts[i] for i in batch], [rows[i]["image"] for i in batch], processor, padding=True)
        for batch in chunks(range(8), SETTINGS.batch_size)
    ]
    assert [len(call["input_ids"]) for call in counted.calls] == [len(call["input_ids"]) for call in as_they_came]
    assert 0 < padding(counted.calls) < padding(as_they_came) / 5


def test_no_prompts_no_answers(model_and_processor):
    assert generate(*model_and_processor, [], SETTINGS) == []


def test_batches_hold_at_most_batch_size(model_and_processor):
    model, processor = model_and_processor
    counted = Counted(model)
    generate(counted, processor, prompts_of_many_lengths(14), SETTINGS)
    assert max(len(call["input_ids"]) for call in counted.calls) == 4 and counted.prompts() == 14
    assert chunks(list(range(5)), 2) == [[0, 1], [2, 3], [4]]


def test_photo_fixture_differs_by_seed():
    assert photo(0).tobytes() != photo(1).tobytes()
