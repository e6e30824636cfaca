"""Small data folders in the official benchmarks' layouts, made up, with real image files: for tests."""

import base64
import io
import json

from tiny_rows import photo

VLIND_RECORDS = [
    {
        "global_id": "7",
        "context_id": "3",
        "context": "A snowman stands in a desert.",
        "factual_context": "A snowman stands in snow.",
        "true_statement": "The snowman is in a desert.",
        "false_statement": "The snowman is in snow.",
        "concept": "climate",
        "existent_noun": "a snowman",
        "non-existent_noun": "a bicycle",
        "best_img_id": "4",
        "aggregated_human_label_good_images": {"0": 1, "9": 3, "4": 2, "2": 3, "12": 3},
    },
    {
        "global_id": "8",
        "context_id": "4",
        "context": "Nobody liked any picture.",
        "factual_context": "None.",
        "true_statement": "T.",
        "false_statement": "F.",
        "concept": "climate",
        "existent_noun": "x",
        "non-existent_noun": "y",
        "best_img_id": "0",
        "aggregated_human_label_good_images": {"0": 1},
    },
    {
        "global_id": "9",
        "context_id": "5",
        "context": "A banana is blue.",
        "factual_context": "A banana is yellow.",
        "true_statement": "The banana is blue.",
        "false_statement": "The banana is yellow.",
        "concept": "color",
        "existent_noun": "a banana",
        "non-existent_noun": "a spoon",
        "best_img_id": "1",
        "aggregated_human_label_good_images": {"1": 2},
    },
]
AMBER_QUESTIONS = [(1, "Describe this image."), (2, "Describe this image."), (3, "Is there a dog in this image?")]
PROMPTS = ["Describe it.", "What is this photo about?", "Tell me everything."]


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(number).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def save_json(path, value, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value))


def encoded(number):
    buffer = io.BytesIO()
    photo(number).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def vlind(folder):
    save_json(folder / "data.json", VLIND_RECORDS)
    for record in VLIND_RECORDS[::2]:
        images = folder / "images"
        counterfactual = images / "counterfactual" / record["concept"] / f"{record['context_id']}_{record['context']}"
        for number in range(12):
            save(counterfactual / f"{number}.jpg", number + 20 * int(record["context_id"]))
        factual = images / "factual" / record["concept"] / f"{record['context_id']}_{record['factual_context']}"
        save(factual / "0.jpg", 500 + int(record["context_id"]))
    return folder


def objhal(folder, with_image=False):
    """Three captions to write; images beside COCO's annotations as `make data` has it, or in the rows as in RLAIF-V."""
    rows = [{"org_idx": 10 * i, "image_id": 40 + i, "question": text} for i, text in enumerate(PROMPTS)]
    if with_image:
        rows = [row | {"image": encoded(i)} for i, row in enumerate(rows)]
        save_json(folder / "obj_halbench_300_with_image.jsonl", rows, lines=True)
    else:
        save_json(folder / "objhal_300_index.jsonl", rows, lines=True)
        for i in range(3):
            save(folder.parent / "coco" / "val2014" / f"COCO_val2014_{40 + i:012d}.jpg", i)
    (folder / "synonyms_refine.txt").write_text("dog, puppy\ncat, kitten\ndining table, table\n")
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dining table"}]
    images = [{"id": 40 + i, "file_name": f"COCO_val2014_{40 + i:012d}.jpg"} for i in range(3)]
    for part, number in (("train", 0), ("val", 3)):
        annotations = [{"id": i, "image_id": 40 + i, "category_id": 1 + i} for i in range(number)]
        captions = [{"id": i, "image_id": 40 + i, "caption": "A dog."} for i in range(number)]
        place = folder.parent / "coco" / "annotations"
        instances = {"images": images[:number], "annotations": annotations, "categories": categories}
        save_json(place / f"instances_{part}2014.json", instances)
        save_json(place / f"captions_{part}2014.json", {"images": images[:number], "annotations": captions})
    return folder


def amber(folder):
    annotations = [
        {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat"]},
        {"id": 2, "type": "generative", "truth": ["cat"], "hallu": ["dog"]},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    ]
    save_json(folder / "annotations.json", annotations)
    save_json(folder / "relation.json", {"dog": [], "cat": [], "grass": ["ground"]})
    (folder / "safe_words.txt").write_text("line\nlight")
    queries = [{"id": i, "image": f"AMBER_{i}.jpg", "query": text} for i, text in AMBER_QUESTIONS]
    save_json(folder / "query" / "query_all.json", queries)
    for i, _ in AMBER_QUESTIONS:
        save(folder / "image" / f"AMBER_{i}.jpg", i)
    return folder


def mmhal(folder, n=96):
    kinds = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
    rows = [
        {
            "question_type": kinds[i % 8],
            "question_topic": "outdoor",
            "image_id": f"id{i % 5}",
            "image_src": f"https://example.org/{i % 5}_o.jpg",
            "image_content": ["Dog"],
            "question": f"What colour is dog {i}?",
            "gt_answer": "Brown.",
            "model_answer": "",
        }
        for i in range(n)
    ]
    save_json(folder / "mmhal-bench_answer_template.json", rows)
    for i in range(4):
        save(folder / "images" / f"id{i}.jpg", i)
    save(folder / "images" / "4_o.jpg", 4)  # kept under its name at the source
    return folder


def pope(folder):
    for k, split in enumerate(("random", "popular", "adversarial")):
        rows = [
            {
                "question_id": i + 1,
                "image": f"COCO_val2014_{60 + i // 2:012d}.jpg",
                "text": f"Is there a {('dog', 'cat')[i % 2] + 's' * (k * (i % 2))} in the image?",
                "label": ("yes", "no")[i % 2],
            }
            for i in range(4)
        ]
        save_json(folder / f"coco_pope_{split}.json", rows, lines=True)
    for i in range(2):
        save(folder.parent / "coco" / "val2014" / f"COCO_val2014_{60 + i:012d}.jpg", i)
    return folder


WRITERS = {"vlind": vlind, "objhal": objhal, "amber": amber, "mmhal": mmhal, "pope": pope}
