"""Every number that the official scorers gave for the oracle's predictions, before rounding where they have it."""

import json

import pytest

from napo.official import objhal, vlind, words
from napo.official.records import read_predictions


class TestVlind:
    @pytest.fixture(params=["mixed_vtNone", "mixed_photorealistic"])
    def case(self, request, oracle, command):
        folder, cases = oracle("vlind")
        case = cases[request.param]
        names = {"-dp": "--predictions", "-mid": "--model-id", "-vt": "--min-votes", "-st": "--style"}
        arguments = [names.get(word, word) for word in case["argv"]]
        arguments[1] = folder / arguments[1]
        return case, command("vlind", *arguments)

    def test_columns(self, case):
        expected, found = case
        assert {name: found[name] for name in expected["unrounded"]} == expected["unrounded"]
        assert found["num_instances"] == expected["num_instances"] and found["num_images"] == expected["num_images"]

    def test_printed(self, case):
        expected, found = case
        assert found["printed"][1].split() == expected["stdout"].split("\n")[3].split()
        percent = [value for value in found["printed"][1].split(" & ")]
        assert [value.strip(" &") for value in percent] == list(expected["printed_percent"].values())

    def test_counts(self, case):
        expected, found = case
        counts = found["counts"] | {"a_pass": found["counts"]["a"], "b_pass": found["counts"]["b"]}
        ratios = {"a_pass_ratio": "S_CK", "b_pass_ratio": "S_VP", "c_pass_ratio": "S_CB"}
        ratios |= {"d_pass_ratio_macro": "S_LP", "d_pass_ratio_micro": "S_LP_micro"}
        counts |= {official: found[ours] for official, ours in ratios.items()}
        assert {name: counts[name] for name in expected["counts_total"]} == expected["counts_total"]

    def test_concepts(self, case):
        expected, found = case
        assert found["per_concept"].keys() == expected["per_concept"].keys() - {"total"}
        for concept, columns in found["per_concept"].items():
            sums, n = expected["per_concept"][concept], expected["per_concept_num_instances"][concept]
            ratios = [sums[f"{name}_pass_ratio"] for name in "abc"]
            assert list(columns.values()) == [*ratios, sums["d_pass_ratio_macro"], sums["c"] / n, sums["d_macro"] / n]

    def test_answers_are_what_the_parser_reads(self, oracle):
        folder, _ = oracle("vlind")
        answers = [
            answer
            for record in read_predictions(folder / "pred_mixed.json")
            for answer in vlind._all_answers(record, "mix")
        ]
        assert len(answers) > 1000
        assert all(vlind.infer_true_or_false(answer["response"]) == answer["answer"] for answer in answers)


class TestObjectHalBench:
    @pytest.fixture
    def paths(self, oracle, data):
        folder, cases = oracle("objhal")
        case = cases["main_101"]
        return case, folder / case["answers"], folder / case["coco"], data / "objhal" / "synonyms_refine.txt"

    def test_metrics(self, paths, command):
        case, answers, coco, synonyms = paths
        found = command("objhal", "--predictions", answers, "--coco", coco, "--synonyms", synonyms)
        expected = {name: value for name, value in case["overall_metrics"].items() if "gpt" not in name}
        assert {name: found[name] for name in expected} == expected
        assert found["printed"][1].split("\t") == case["printed(CHAIRs CHAIRsr CHAIRi sent_num coco_num avg_len)"]
        assert "\n".join(case["cli_last_lines"]) == "\n".join(found["printed"])
        assert f"Response Hall   : {found['CHAIRs_refine'] * 100:.2f}\n" in case["summarizer_stdout"]
        assert f"Object Hall     : {found['CHAIRi'] * 100:.2f}\n" in case["summarizer_stdout"]
        assert f"Object Recall   : {found['obj_rec'] * 100:.2f}\n" in case["summarizer_stdout"]

    def test_every_sentence(self, paths):
        case, answers, coco, synonyms = paths
        predictions, table, truth = read_predictions(answers), objhal.Synonyms.read(synonyms), objhal.Coco.read(coco)
        assert str(sum(" " in term for term in table.category) + 2) == case["double_word_count_printed"]
        result = objhal.score(predictions, truth, table)
        rows = {(row["example_id"], row["metric"]): row["value"] for row in result.examples}
        for i, sentence in enumerate(case["per_sentence"]):
            tokens = words.lemmas(objhal.caption_of(predictions, i))
            assert table.merged(tokens) == sentence["words"]
            assert [list(named) for named in table.mentions(tokens)] == sentence["generated"]
            image = str(sentence["image_id"])
            assert rows[image, "CHAIRs"] == sentence["CHAIRs"] and rows[image, "present"] == len(sentence["gt"])
            assert rows[image, "hallucinated"] == len(sentence["hallucinated"])
            assert rows[image, "hallucinated"] / max(rows[image, "mentioned"], 1) == sentence["CHAIRi"]


class TestAmber:
    GENERATIVE = {"CHAIR": "chair", "Cover": "safe_cover", "Cog": "hallu_cover"}
    PARTS = {"as": "State", "an": "Number", "aa": "Action", "asso": "Relation", "ha": "Existence"}

    def test_captions(self, oracle, data, command):
        folder, cases = oracle("amber")
        case, table = cases["gen_1004"], f"table:{folder / 'vectors.json'}"
        predictions = folder / case["file"]
        found = command(
            "amber", "--predictions", predictions, "--amber-data", data / "amber", "--task", "g", "--similarity", table
        )
        assert found["counters"] == {name: case["metrics"][name] for name in found["counters"]}
        for name, counter in self.GENERATIVE.items():
            score, number = (case["metrics"][f"{counter}_{end}"] for end in ("score", "num"))
            assert found[name] == score / number * 100
        assert {name: round(found[name], 1) for name in self.GENERATIVE | {"Hal": 0}} == (
            case["printed"]["Generative Task"]
        )
        assert "vectors.json" in found["similarity"]

    def test_answers(self, oracle, data, command):
        folder, cases = oracle("amber")
        case = cases["disc_d"]
        predictions = folder / case["file"]
        found = command("amber", "--predictions", predictions, "--amber-data", data / "amber", "--task", "d")
        shown = dict(zip(case["printed"], found["sections"].values(), strict=True))
        for section, numbers in case["printed"].items():
            assert {name: round(shown[section][name], 1) for name in numbers} == numbers
        assert found["Accuracy"] == case["metrics"]["qa_correct_score"] / case["metrics"]["qa_correct_num"] * 100
        for short, part in self.PARTS.items():
            counts = found["counts"][part]
            official = {name: case["metrics"][f"{short}_qa_{name}"] for name in ("correct_score", "correct_num")}
            assert official == {"correct_score": counts["right"], "correct_num": counts["asked"]}
            for score, number, ours in (("no_score", "no_num", "gold_no"), ("ans_no_score", "ans_no_num", "said_no")):
                assert case["metrics"][f"{short}_qa_{score}"] == counts["right_no"]
                assert case["metrics"][f"{short}_qa_{number}"] == counts[ours]

    @pytest.mark.parametrize("task, section", [("de", "Exsitence"), ("da", "Attribute"), ("dr", "Relation")])
    def test_one_dimension(self, oracle, data, command, task, section):
        folder, cases = oracle("amber")
        case = cases["disc_d"]
        predictions = folder / case["file"]
        found = command("amber", "--predictions", predictions, "--amber-data", data / "amber", "--task", task)
        numbers = case["printed"][section]
        assert {name: round(found[name], 1) for name in numbers} == numbers
        assert found["printed"][0] == f"{section}:"


def test_mmhal(oracle, command):
    folder, cases = oracle("mmhal")
    case = cases["mixed"]
    for path in (folder / case["reviews"], (folder / case["reviews"]).parent):
        found = command("mmhal", "--reviews", path)
        assert found["score"] == case["unrounded"]["average_score"]
        assert found["hal_rate"] == case["unrounded"]["hallucination_rate"]
        assert found["per_item"] == case["per_item_scores"]
        printed = dict(line.split(": ") for line in found["printed"])
        assert printed["Average score"] == case["rlaif_v"]["average_score"]
        assert printed["Hallucination rate"] == case["rlaif_v"]["hallucination_rate"]
        assert printed["Informativeness"] == case["rlaif_v"]["informativeness"]
        assert printed["Average score for each question type"] == case["rlaif_v"]["per_type"]
        assert len(found["unparseable"]) == case["llava_rlhf"]["n_warnings"]


def test_pope(oracle, data, command):
    folder, cases = oracle("pope")
    case = cases["coco_random"]
    questions = folder / case["labels"]
    found = command("pope", "--questions", questions, "--answers", folder / case["answers"])
    expected = {name: value for name, value in case["rucaibox"].items() if name not in ("stdout", "pred")}
    assert {name: found[name] for name in expected} == expected
    assert "\n".join(found["printed"]) + "\n" == case["rucaibox"]["stdout"]


def test_vlind_alike_from_napos_chunks(oracle, command, write):
    """NaPO's layout of the same answers: chunk files that hold one list each, keys without "_pred"."""
    folder, cases = oracle("vlind")
    records = json.loads((folder / "pred_mixed.json").read_text())
    renamed = [{key.replace("mix_pred_", "llava_"): value for key, value in record.items()} for record in records]
    for i in range(12):
        write(f"chunks/12_{i}.jsonl", json.dumps(renamed[i * 10 : i * 10 + 10]))
    found = command("vlind", "--predictions", write("chunks/x", "").parent, "--model-id", "llava")
    expected = cases["mixed_vtNone"]["unrounded"]
    assert {name: found[name] for name in expected} == expected
