"""What official data folders ask, prompt by prompt, and the prediction files: against FORMATS.md's own sentences."""

import json

import official_data
import pytest
from tiny_rows import photo

from napo.official import benchmarks, vlind
from napo.official.datafolder import DataFolder
from napo.workshop.files import BadInput

CK = "Statement: The snowman is in snow.\nBased on the common sense, is the given statement true or false? "
ONLY = "Only respond in True or False."
FORGET = "Forget real-world common sense and just follow the information provided in the "


def asked(name, folder, **settings):
    return benchmarks.read(name, official_data.WRITERS[name](folder / name), **settings)


def by_key(benchmark):
    return {question.key: question for question in benchmark.questions}


def filled(benchmark, answer="True.", model_id="m"):
    return benchmark.predictions({question.key: answer for question in benchmark.questions}, model_id)


# ---- VLind-Bench ----------------------------------------------------------------------------------------------------


def test_vlind_asks_the_official_prompts_about_the_right_pictures(tmp_path):
    questions = by_key(asked("vlind", tmp_path))
    folder = tmp_path / "vlind" / "images" / "counterfactual" / "climate" / "3_A snowman stands in a desert."
    usual = tmp_path / "vlind" / "images" / "factual" / "climate" / "3_A snowman stands in snow." / "0.jpg"
    image = "Based on the image, is the given statement true or false? "
    expected = {
        "a1": (CK + ONLY, usual),
        "a2": (CK.replace("in snow", "in a desert") + ONLY, usual),
        "b1": (f"Statement: There is a snowman in the given image.\n{image}{ONLY}", folder / "4.jpg"),
        "b2": (f"Statement: There is a bicycle in the given image.\n{image}{ONLY}", folder / "4.jpg"),
        "c1": (
            "Context: A snowman stands in a desert.\nStatement: The snowman is in a desert.\nBased on the context, is "
            f"the given statement true or false? {FORGET}context. {ONLY}",
            folder / "4.jpg",
        ),
        "d1:9": (f"Statement: The snowman is in a desert.\n{image}{FORGET}image. {ONLY}", folder / "9.jpg"),
        "d2:2": (f"Statement: The snowman is in snow.\n{image}{FORGET}image. {ONLY}", folder / "2.jpg"),
    }
    for step, (text, picture) in expected.items():
        assert (questions[f"7/{step}"].text, questions[f"7/{step}"].image) == (text, picture), step
    # two votes make an image good, "12" is none, and the record without a good image is not asked about
    assert {key for key in questions if key.startswith("7/d1")} == {"7/d1:9", "7/d1:4", "7/d1:2"}
    assert {question.example_id for question in questions.values()} == {"7", "9"}
    assert len(questions) == (6 + 2 * 3) + (6 + 2 * 1)


def test_the_papers_wording_and_best_image(tmp_path):
    official, paper = by_key(asked("vlind", tmp_path)), by_key(asked("vlind", tmp_path, prompts="paper"))
    assert paper["7/a1"].text == (CK + ONLY).replace("on the common", "on common")
    assert paper["7/b1"].image.name == "9.jpg"  # most votes, first of two in the file; official: 4
    assert {key: q.text for key, q in paper.items() if "/a" not in key} == {
        key: q.text for key, q in official.items() if "/a" not in key
    }


def test_vlind_predictions_are_the_official_records(tmp_path):
    benchmark = asked("vlind", tmp_path)
    answers = {key: ("True, it is" if key.endswith(("1", "1:9")) else "**False**") for key in by_key(benchmark)}
    records = json.loads(benchmark.predictions(answers, "mid")["predictions.json"])
    assert [record["global_id"] for record in records] == ["7", "8", "9"]
    first, skipped, _ = records
    assert skipped == official_data.VLIND_RECORDS[1]
    assert first["mid_pred_a1_image"] == {"response": "True, it is", "answer": "True"}
    assert first["mid_pred_a2_image"] == {"response": "**False**", "answer": "NA"}
    keys = {f"mid_pred_{step}" for step in "a1_image a2_image b1 b2 c1_image c2_image d1 d2".split()}
    assert set(first) - set(official_data.VLIND_RECORDS[0]) == keys
    assert {image: said["answer"] for image, said in first["mid_pred_d1"].items()} == {
        "9": "True",
        "4": "NA",
        "2": "NA",
    }


def test_oracle_predictions_have_exactly_these_keys(shared):
    """The official prediction file in the oracle and ours, from the same records and answers, are one file."""
    oracle = json.loads((shared / "benchmarks" / "oracle" / "vlind" / "pred_mixed.json").read_text())
    oracle = [record for record in oracle if bool(vlind.good_images(record)) == ("mix_pred_b1" in record)]
    records = [{key: value for key, value in record.items() if not key.startswith("mix_")} for record in oracle]
    answers, usable = {}, {}
    for record in oracle:
        if "mix_pred_b1" not in record:
            continue
        usable[record["global_id"]] = record
        for step in ("a1", "a2", "b1", "b2", "c1", "c2"):
            key = f"mix_pred_{step}{'' if step[0] == 'b' else '_image'}"
            answers[f"{record['global_id']}/{step}"] = record[key]["response"]
        for step in ("d1", "d2"):  # the oracle also has answers on an image "12", which no score reads
            said = {image: record[f"mix_pred_{step}"][image] for image in vlind.good_images(record)}
            record[f"mix_pred_{step}"] = said
            answers |= {f"{record['global_id']}/{step}:{image}": said[image]["response"] for image in said}
    assert len(oracle) > 100
    assert benchmarks.vlind_filled(records, usable, answers, "mix") == oracle


# ---- the others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_image", [False, True])
def test_objhal_asks_its_own_questions_about_coco_images(tmp_path, with_image):
    folder = official_data.objhal(tmp_path / "objhal", with_image)
    benchmark = benchmarks.read("objhal", folder)
    assert [q.text for q in benchmark.questions] == official_data.PROMPTS
    sizes = [q.opened().size for q in benchmark.questions]
    assert sizes == [photo(i).size for i in range(3)] and benchmark.questions[0].opened().mode == "RGB"
    lines = filled(benchmark, "A dog.")["obj_halbench_answer.jsonl"].splitlines()
    assert json.loads(lines[1]) == {
        "question_id": 1,
        "image_id": 41,
        "prompt": official_data.PROMPTS[1],
        "text": "A dog.",
        "model_id": "m",
    }


def test_objhal_of_the_published_index_has_its_300_questions(shared, tmp_path):
    rows = [json.loads(line) for line in (shared / "benchmarks/data/objhal/objhal_300_index.jsonl").open()]
    folder = tmp_path / "objhal"
    official_data.save_json(folder / "objhal_300_index.jsonl", rows, lines=True)
    for row in rows:
        place = folder / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.touch()
    benchmark = benchmarks.read("objhal", folder)
    assert [q.text for q in benchmark.questions] == [row["question"] for row in rows] and benchmark.n_generative == 300


@pytest.mark.parametrize(("task", "ids"), [("g", [1, 2]), ("d", [3]), ("a", [1, 2, 3])])
def test_amber_asks_its_queries_and_writes_yes_or_no(tmp_path, task, ids):
    benchmark = asked("amber", tmp_path, task=task)
    assert [(int(q.key), q.text) for q in benchmark.questions] == [
        pair for pair in official_data.AMBER_QUESTIONS if pair[0] in ids
    ]
    records = json.loads(filled(benchmark, "no, there is none.")["predictions.json"])
    assert [record["id"] for record in records] == ids
    for record in records:
        assert record["response"] == ("No" if record["id"] == 3 else "no, there is none.")


@pytest.mark.parametrize(
    ("task", "file"),
    [("g", "generative"), ("d", "discriminative"), ("da", "discriminative-attribute"), ("a", "all")]
    + [("de", "discriminative-existence"), ("dr", "discriminative-relation")],
)
def test_amber_tasks_are_the_published_lists(shared, task, file):
    """From its own list, and from the list of all, which `make data` fetches: but for one question the same."""
    published = shared / "benchmarks" / "data" / "amber"
    expected = [(row["id"], row["query"]) for row in json.loads((published / f"query_{file}.json").read_text())]
    for names in ({f"query_{file}.json", "annotations.json"}, {"query_all.json", "annotations.json"}):
        files = DataFolder("amber", published)
        files.by_name = {name: published / name for name in names}
        files.image = lambda name: published / name  # the images cannot be had here
        questions, _ = benchmarks._amber(files, None, task, "official")
        asked = [(int(q.key), q.text) for q in questions]
        assert [pair for pair in asked if pair[0] != 13193] == [pair for pair in expected if pair[0] != 13193]
        assert len(asked) == len(expected)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "Yes"),
        (" no.", "No"),
        ("**No**, never", "No"),
        ("NO", "No"),
        ("Not", "Not"),
        ("nobody", "nobody"),
        ("", ""),
    ],
)
def test_yes_or_no(text, read):
    assert benchmarks.yes_or_no(text) == read


def test_mmhal_finds_images_by_id_or_by_their_name_at_the_source(tmp_path):
    benchmark = asked("mmhal", tmp_path)
    assert [q.image.name for q in benchmark.questions[:5]] == ["id0.jpg", "id1.jpg", "id2.jpg", "id3.jpg", "4_o.jpg"]
    lines = [json.loads(line) for line in filled(benchmark, "Brown.")["mmhal-bench_answer.jsonl"].splitlines()]
    assert [line["question_id"] for line in lines] == list(range(96))
    assert lines[7] == {
        "question_id": 7,
        "prompt": "What colour is dog 7?",
        "text": "Brown.",
        "image_id": "id2",
        "model_id": "m",
    }


def test_pope_keeps_its_splits_apart(tmp_path):
    benchmark = asked("pope", tmp_path)
    assert len(benchmark.questions) == 12 and benchmark.questions[0].key == "random/1"
    files = filled(benchmark, "No")
    assert set(files) == {f"coco_pope_{split}_answers.jsonl" for split in benchmarks.POPE_SPLITS}
    first = json.loads(files["coco_pope_popular_answers.jsonl"].splitlines()[1])
    assert first == {"question": "Is there a cats in the image?", "question_id": 2, "answer": "No"}


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_a_limit_takes_the_first_examples(tmp_path, name):
    whole, first = asked(name, tmp_path), asked(name, tmp_path, limit=1)
    assert first.n_generative == (3 if name == "pope" else 1) < whole.n_generative
    assert set(first.questions) < set(whole.questions)
    filled(first)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_unknown_names_and_missing_folders(tmp_path):
    with pytest.raises(BadInput, match="unknown benchmark 'mme': use one of vlind, objhal, amber, mmhal, pope"):
        benchmarks.read("mme", tmp_path)
    with pytest.raises(BadInput, match="no folder .*none with the data of pope: run `make data`"):
        benchmarks.read("pope", tmp_path / "none")
    with pytest.raises(BadInput, match="unknown AMBER task 'x'"):
        benchmarks.read("amber", tmp_path, task="x")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vlind", "data.json"),
        ("objhal", "objhal_300_index.jsonl"),
        ("amber", "query_all.json"),
        ("amber", "annotations.json"),
        ("mmhal", "mmhal-bench_answer_template.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, file):
    folder = official_data.WRITERS[name](tmp_path / name)
    next(folder.rglob(file)).unlink()
    with pytest.raises(BadInput, match=f"no .*{file}.* below"):
        benchmarks.read(name, folder)


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_missing_images_are_counted_and_the_first_is_named(tmp_path, name):
    folder = official_data.WRITERS[name](tmp_path / name)
    picture = sorted(benchmarks.read(name, folder).questions, key=lambda q: q.key)[0].image
    picture.unlink()
    with pytest.raises(BadInput, match=f"{name}: 1 images are missing below .*, the first is") as error:
        benchmarks.read(name, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.json", "[{", "data.json is damaged or cut short .*: fetch or write the file again"),
        ("data.json", "[]", "data.json holds no records"),
        ("data.json", '[{"global_id": 1}]', "not the files of vlind .no field 'aggregated_human"),
        ("data.json", "[7]", "data.json, record 0: int where a record"),
        ("adapted.json", "{", "adapted.json is not valid JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    folder = official_data.vlind(tmp_path / "vlind")
    (folder / file).write_text(content)
    with pytest.raises(BadInput, match=message):
        benchmarks.read("vlind", folder)


def test_a_cut_line_is_named(tmp_path):
    folder = official_data.pope(tmp_path / "pope")
    file = folder / "coco_pope_popular.json"
    file.write_text(file.read_text()[:-10])
    with pytest.raises(BadInput, match="coco_pope_popular.json, line 4: not a complete JSON record"):
        benchmarks.read("pope", folder)


def test_the_same_id_twice_is_refused(tmp_path):
    folder = official_data.vlind(tmp_path / "vlind")
    official_data.save_json(folder / "data.json", [official_data.VLIND_RECORDS[0]] * 2)
    with pytest.raises(BadInput, match="two records have the global_id 7"):
        benchmarks.read("vlind", folder)


def test_an_unreadable_image_is_named_when_it_is_opened(tmp_path):
    benchmark = asked("amber", tmp_path)
    benchmark.questions[0].image.write_bytes(b"no picture")
    with pytest.raises(BadInput, match="AMBER_1.jpg: not a readable image"):
        benchmark.questions[0].opened()
    broken = benchmarks.Question("k", "k", "?", "bm90IGFuIGltYWdl")
    with pytest.raises(BadInput, match="image of example k: not a readable image"):
        broken.opened()


def test_folders_whose_name_lost_its_full_stop_are_found_by_number(tmp_path):
    folder = official_data.vlind(tmp_path / "vlind")
    for place in (folder / "images").glob("*/*/*"):
        place.rename(place.with_name(place.name.rstrip(".")))
    assert len(benchmarks.read("vlind", folder).questions) == 20


def test_only_ambers_captions_count_as_the_papers_examples():
    questions = tuple(benchmarks.Question(str(i), str(i), "?", None) for i in (1, 1004, 1005, 15_220))
    assert benchmarks.Benchmark("amber", None, questions, dict, task="a").n_generative == 2
    assert benchmarks.Benchmark("amber", None, questions, dict, task="g").n_generative == 4
    assert benchmarks.Benchmark("pope", None, questions, dict).n_generative == 4
