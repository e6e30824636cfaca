"""Rows to tensors: the prompt is the template's, the response follows it with its end token, no image token is cut."""

import copy

import pytest
import torch
from tiny_families import BUILDERS, tiny_family
from tiny_models import tiny_llava
from tiny_rows import TEXTS, make_row, photo
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from napo.engine import logps, packing
from napo.workshop.files import BadInput


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_llava()


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


def test_prompt_is_the_chat_templates_own_tokens(processor):
    row = make_row()
    turn = [
        {
            "role": "user",
            "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["question"]}],
        }
    ]
    stock = processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    encoded = packing.encode(row, processor, ("chosen",))
    assert encoded["prompt_ids"].tolist() == stock["input_ids"][0].tolist()
    assert torch.equal(encoded["vision"]["pixel_values"], stock["pixel_values"])
    assert (encoded["prompt_ids"] == processor.image_token_id).sum() == 4


def test_prompt_is_the_templates_own_when_template_and_tokenizer_both_add_a_start_token(processor):
    """Two start tokens are another prompt than the one that the model was trained on."""
    other = copy.deepcopy(processor)
    other.chat_template = "<s>" + processor.chat_template
    other.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert other.tokenizer("a")["input_ids"][0] == 1
    encoded = packing.encode(make_row(), other, ("chosen",))
    assert (encoded["prompt_ids"] == 1).sum() == 1


def test_start_token_of_the_tokenizer_alone_is_kept_once(processor):
    other = copy.deepcopy(processor)
    other.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    encoded = packing.encode(make_row(), other, tuple(TEXTS))
    assert encoded["prompt_ids"][0] == 1 and (encoded["prompt_ids"] == 1).sum() == 1
    assert not any((ids == 1).any() for ids in encoded["responses"].values())


def test_response_follows_the_prompt_as_the_template_renders_it_and_ends_with_the_end_token(processor):
    row, tokenizer = make_row(), processor.tokenizer
    encoded = packing.encode(row, processor, tuple(TEXTS))
    for kind, text in TEXTS.items():
        answered = [*packing.conversation(row), {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        whole = tokenizer(processor.apply_chat_template(answered), add_special_tokens=False)["input_ids"]
        prompt = tokenizer(packing.prompt_text(row, processor), add_special_tokens=False)["input_ids"]
        assert prompt + encoded["responses"][kind].tolist() == whole
        assert encoded["responses"][kind][-1] == tokenizer.eos_token_id
        assert len(encoded["responses"][kind]) == len(" " + text) + 1
    assert encoded["n_cut"] == 0 and encoded["row_id"] == "file.parquet:0"


def test_masked_prompts_leave_their_part_out(processor):
    row = make_row()
    whole = packing.prompt_text(row, processor)
    no_image = packing.prompt_text(row, processor, image=False)
    no_question = packing.prompt_text(row, processor, question=False)
    assert "<image>" in whole and row["question"] in whole
    assert "<image>" not in no_image and row["question"] in no_image
    assert "<image>" in no_question and row["question"] not in no_question


def test_a_long_response_is_cut_at_its_end_and_counted(processor):
    row = make_row()
    full = packing.encode(row, processor, ("chosen", "rejected"))
    n_prompt = len(full["prompt_ids"])
    cut = packing.encode(row, processor, ("chosen", "rejected"), max_length=n_prompt + 6)
    assert torch.equal(cut["prompt_ids"], full["prompt_ids"])
    assert cut["responses"]["chosen"].tolist() == full["responses"]["chosen"][:6].tolist()
    assert torch.equal(cut["responses"]["rejected"], full["responses"]["rejected"])
    assert cut["n_cut"] == 1


def test_image_tokens_are_never_cut(processor):
    n_prompt = len(packing.encode(make_row(), processor, ())["prompt_ids"])
    with pytest.raises(BadInput, match=r"row file\.parquet:7: the prompt has .* tokens, max_length is 8: image tokens"):
        packing.encode(make_row(7), processor, ("chosen",), max_length=8)
    for max_length in range(1, n_prompt + 2):
        with pytest.raises(BadInput, match="never cut"):
            packing.encode(make_row(), processor, ("chosen",), max_length=max_length)
    assert len(packing.encode(make_row(), processor, ("chosen",), n_prompt + 2)["responses"]["chosen"]) == 2


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_answer_is_refused_by_row_and_kind(processor, empty):
    with pytest.raises(BadInput, match=r"row file\.parquet:3: vision_biased is empty") as refusal:
        packing.encode(make_row(3, vision_biased=empty), processor, tuple(TEXTS))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["question", "chosen"])
def test_an_image_token_in_a_text_is_refused_by_row(processor, name):
    """Data in LLaVA's own format have one in every question; the model would look for a second image."""
    with pytest.raises(BadInput, match=rf"row file\.parquet:0: {name} contains <image>"):
        packing.encode(make_row(**{name: "<image>\nwhat?"}), processor, ("chosen",))


def test_processor_and_model_that_disagree_are_named_before_any_training(model_and_processor):
    model, processor = model_and_processor
    packing.check_image_tokens(model, processor, make_row())
    other = copy.deepcopy(processor)
    other.patch_size = 6  # sixteen image tokens where the model makes four
    with pytest.raises(BadInput, match=r"row file\.parquet:0: processor and model disagree on the image tokens") as bad:
        packing.check_image_tokens(model, other, make_row())
    assert "\n" not in str(bad.value)


def test_collated_batch_by_hand(processor):
    """Two rows, two kinds: four sequences, row by row; masks cover exactly prompt + response and response."""
    rows = [make_row(0), make_row(1, question="why?", chosen="because of it all")]
    kinds = ("chosen", "rejected")
    encoded = [packing.encode(row, processor, kinds) for row in rows]
    batch = packing.collate_plain(encoded, kinds, processor.tokenizer.pad_token_id)
    order = [(row, kind) for row in encoded for kind in kinds]
    assert batch["input_ids"].shape[0] == 4 and batch["input_ids"].dtype == torch.int64
    for i, (row, kind) in enumerate(order):
        n_prompt, n = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["responses"][kind])
        assert batch["input_ids"][i, :n].tolist() == [*row["prompt_ids"].tolist(), *row["responses"][kind].tolist()]
        assert (batch["input_ids"][i, n:] == processor.tokenizer.pad_token_id).all()
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert batch["response_mask"][i].nonzero()[:, 0].tolist() == list(range(n_prompt, n))
        assert torch.equal(batch["pixel_values"][i], row["vision"]["pixel_values"][0])
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_packed_batch_by_hand(processor):
    """Two rows of different length: [prompt][chosen][rejected], positions that start again, padding on the right."""
    kinds = ("chosen", "rejected")
    rows = [make_row(0), make_row(1, question="why?", chosen="because of it all", rejected="no")]
    encoded = [packing.encode(row, processor, kinds) for row in rows]
    batch = packing.collate_packed(encoded, kinds, processor.tokenizer.pad_token_id)
    assert batch["kinds"] == kinds and batch["pixel_values"].shape[0] == 2
    length = batch["input_ids"].shape[1]
    for i, row in enumerate(encoded):
        prompt, chosen, rejected = (part.tolist() for part in (row["prompt_ids"], *row["responses"].values()))
        p, c, r = len(prompt), len(chosen), len(rejected)
        padding = length - p - c - r
        assert (
            batch["input_ids"][i].tolist() == prompt + chosen + rejected + [processor.tokenizer.pad_token_id] * padding
        )
        assert batch["segments"][i].tolist() == [0] * p + [1] * c + [2] * r + [-1] * padding
        positions = [*range(p), *range(p, p + c), *range(p, p + r)] + [0] * padding
        assert batch["position_ids"][i].tolist() == positions
    assert (batch["segments"] >= 0).sum(1).max() == length
    assert {tensor.dtype for tensor in (batch["input_ids"], batch["segments"], batch["position_ids"])} == {torch.int64}


def test_packed_batch_cuts_answers_as_the_plain_one_does(processor):
    n_prompt = len(packing.encode(make_row(), processor, ())["prompt_ids"])
    encoded = packing.encode(make_row(), processor, tuple(TEXTS), max_length=n_prompt + 3)
    batch = packing.collate_packed([encoded], tuple(TEXTS))
    assert [(batch["segments"] == k).sum().item() for k in range(5)] == [n_prompt, 3, 3, 3, 3]


def test_an_answer_that_tokenises_to_nothing_is_refused_by_row_and_kind(processor):
    other = copy.deepcopy(processor)
    other.tokenizer._tokenizer.normalizer = normalizers.Replace("?!", "")
    other.chat_template = processor.chat_template.replace("ASSISTANT: {{", "ASSISTANT:{{")
    with pytest.raises(BadInput, match=r"row file\.parquet:4: rejected tokenises to nothing \('\?!'\)"):
        packing.encode(make_row(4, rejected="?!"), other, tuple(TEXTS))


def test_images_that_do_not_share_a_size_are_refused_by_row(processor):
    other = copy.deepcopy(processor)
    other.image_processor.do_resize = other.image_processor.do_center_crop = False
    rows = [make_row(0), make_row(1, image=photo(1, (48, 40)))]
    for collate in (packing.collate_packed, packing.collate_plain):
        with pytest.raises(
            BadInput, match=r"row file\.parquet:1: pixel_values of size \(3, 40, 48\) .* file\.parquet:0"
        ):
            collate([packing.encode(row, other, ("chosen",)) for row in rows], ("chosen",))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_images_of_many_sizes_share_a_batch_where_the_family_cuts_tiles(name):
    """What stands beside a row, with more tiles than it has, does not change its log-probs."""
    model, processor = tiny_family(name)
    rows = [make_row(i, image=photo(i, size)) for i, size in enumerate([(60, 40), (20, 60), (90, 20)])]
    encoded = [packing.encode(row, processor, ("chosen",)) for row in rows]
    with torch.no_grad():
        together = logps.packed_sums(model, packing.collate_packed(encoded, ("chosen",)))[:, 0]
        alone = [logps.packed_sums(model, packing.collate_packed([row], ("chosen",)))[:, 0] for row in encoded]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_prompts_with_one_image_each_share_a_batch_in_every_family(name):
    _, processor = tiny_family(name)
    rows = [make_row(0), make_row(1)]
    texts = [packing.prompt_text(row, processor) for row in rows]
    inputs = packing.tokenised(texts, [row["image"] for row in rows], processor, padding=True, padding_side="left")
    alone = packing.tokenised(texts[:1], [rows[0]["image"]], processor)
    length = alone["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"][0, -length:], alone["input_ids"][0])


@pytest.mark.parametrize(
    "lengths, groups", [([5, 2, 3, 4, 1], [[0], [3, 4], [2, 1]]), ([2, 2], [[0], [1]]), ([7], [[0]])]
)
def test_first_fit_by_hand(lengths, groups):
    """5 fills a group; 4 takes the 1 that 3 and 2, which fill another, leave over."""
    assert packing.first_fit(lengths) == groups
