"""`Kit` and the public names: what notebooks and ten-line scripts call."""

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from photographs import write_upstream
from tiny_cells import make_base, make_profile

import napo
from napo import kit as kit_module
from napo import profiles
from napo.study import plot_style
from napo.workshop import artifacts
from napo.workshop.files import BadInput, MissingArtifact

PUBLIC = (
    *("Kit", "profile", "METHODS", "dpo_loss", "napo_loss", "noise_coefficient", "loss_weights", "objective"),
    *("load_model", "response_logps", "generate", "make_pairs", "estimate_noise", "train_cell", "evaluate_cell"),
    "load_scores",
)
METHODS = ("base", "dpo_all", "napo_paper", "mdpo", "napo_row_weight")


def python(code):
    """What a fresh interpreter prints."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


class TestPublicNames:
    def test_are_those_of_the_contract(self):
        assert set(napo.__all__) == {"__version__", *PUBLIC} and set(PUBLIC) <= set(dir(napo))
        assert all(getattr(napo, name) is not None for name in PUBLIC)
        with pytest.raises(AttributeError, match="no attribute 'losess'"):
            napo.losess  # noqa: B018

    def test_none_is_also_the_name_of_a_module(self):
        """Importing that module would put it in the place of the public name."""
        assert not {module.name for module in pkgutil.iter_modules(napo.__path__)} & set(PUBLIC)

    def test_mean_the_same_before_and_after_everything_is_imported(self):
        modules = [module for module, _ in napo._PUBLIC.values()]
        lines = ["import importlib, napo", f"before = [getattr(napo, name) for name in {PUBLIC!r}]"]
        lines += [f"for module in {modules!r}: importlib.import_module(module)"]
        lines += [f"print(before == [getattr(napo, name) for name in {PUBLIC!r}])", "from napo import objective"]
        assert python("\n".join([*lines, "print(callable(objective))"])) == ["True", "True"]
        after = "import napo.methods, napo.losses, napo.kit\nfrom napo import objective\nprint(callable(objective))"
        assert python(after) == ["True"]

    def test_importing_napo_imports_the_standard_library_only(self):
        code = "import sys, napo; print(*{name.partition('.')[0] for name in sys.modules})"
        assert set(python(code)) - {"napo"} <= sys.stdlib_module_names | {"__main__", "site", "sitecustomize"} | {
            name for name in python("import sys; print(*{name.partition('.')[0] for name in sys.modules})")
        }

    @pytest.mark.parametrize("name", PUBLIC)
    def test_have_a_docstring_and_at_most_eight_parameters(self, name):
        public = getattr(napo, name)
        if callable(public):
            assert public.__doc__ and len(inspect.signature(public).parameters) <= 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Kit on a tiny model whose pairs and reference log-probs are there."""
    folder = tmp_path_factory.mktemp("kit")
    write_upstream(folder / "mine.parquet", 4)
    profile = replace(make_profile(folder, methods=METHODS, seeds=(0, 1)), data=str(folder / "mine.parquet"))
    make_base(profile, folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "tiny", profile)
        yield napo.Kit("tiny", runs_dir=folder / "runs")


class TestCells:
    def test_a_method_alone_is_its_first_base_and_seed(self, tiny):
        assert tiny.cell("dpo_all") == profiles.Cell("dpo_all", 0, 0)
        noisy = tiny.cell("dpo_all", seed=1, flip_rate=0.4, noise_kind="leak")
        assert noisy == profiles.Cell("dpo_all", 0, 1, 0.4, "leak") and tiny.cell(noisy) is noisy

    def test_an_unknown_method_says_which_there_are(self, tiny):
        with pytest.raises(BadInput, match="unknown method 'dpo': use one of base, sft"):
            tiny.train("dpo")


class TestStages:
    def test_a_training_gives_its_adapter_and_an_evaluation_its_scores(self, tiny):
        adapter = tiny.train("napo_paper")
        assert (adapter / "adapter_config.json").is_file() and adapter.parents[1] == tiny.folder / "cells"
        assert "noise/q_vision_biased" in tiny.steps("napo_paper")
        scores = tiny.evaluate("napo_paper")
        assert set(scores["method"]) == {"napo_paper"} and scores.equals(tiny.scores("napo_paper"))

    def test_an_untrained_method_has_scores_and_no_steps(self, tiny):
        tiny.train("base")
        assert tiny.steps("base").empty and set(tiny.evaluate("base")["metric"]) >= {"margin_rejected"}

    def test_two_cells_can_be_compared(self, tiny):
        tiny.evaluate("base")
        tiny.train("napo_paper"), tiny.evaluate("napo_paper")
        paired = tiny.paired("napo_paper", "base").set_index("measure")
        assert "pref_rejected" in paired.index and {"label", "better", "value", "lo", "hi"} <= set(paired)
        assert tiny.results("napo_paper")._repr_markdown_().startswith("# napo_paper-b0-s0-f0, by example")
        cost = tiny.cost("napo_paper")["verdict"]
        assert cost["POPE_acc"] == "not asked" and cost["chosen_logp"] in {"fell", "rose", "no change seen"}

    def test_rows_and_log_probs_are_of_one_base(self, tiny):
        rows, heldout = tiny.rows(), tiny.rows(0, "heldout")
        assert set(heldout["row_id"]) < set(rows["row_id"]) == set(tiny.logps().index)

    def test_trained_policy_differs_and_fresh_one_does_not(self, tiny):
        tiny.train("napo_paper")
        row, known = tiny.rows()[0], tiny.logps()["logps_chosen"].iloc[0]
        fresh, processor = tiny.policy("napo_paper")
        trained, _ = tiny.trained("napo_paper")
        at_start, after = (
            napo.response_logps(policy, processor, [row], ("chosen",))["chosen"].item() for policy in (fresh, trained)
        )
        assert at_start == pytest.approx(known, abs=tiny.tolerance) and abs(after - at_start) > 1e-4
        assert tiny.parameters(fresh)["trainable"].sum() > 0

    def test_a_figure_goes_to_the_runs_own_folder(self, tiny):
        figure = plot_style.new_figure(1)
        assert tiny.save(figure, "one.png") is figure and (tiny.figures / "one.png").is_file()
        assert tiny.figures == artifacts.figures_folder("tiny", tiny.runs_dir)


class TestTrainAll:
    def test_makes_once_what_trainings_share_and_then_all_of_them(self, tiny, monkeypatch):
        made = []
        load = kit_module.models.load_base
        monkeypatch.setattr(
            "napo.engine.models.load_base", lambda *given: (made.append(sorted(files(tiny))), load(*given))[1]
        )
        cells = tiny.train_all()
        assert [cell.method for cell in cells] == [name for name in METHODS[1:] for _ in tiny.profile.seeds]
        shared = {"crops.parquet", "none-posterior.parquet"}
        assert shared <= set(files(tiny)) and all((tiny.folder / "cells" / c.name / "adapter").is_dir() for c in cells)
        assert shared & set(made[1]) and shared <= set(made[2])  # each is made by one load, before any training

    def test_hands_the_grid_what_other_processes_can_import(self, tiny, monkeypatch):
        asked = []
        monkeypatch.setattr(kit_module.grid, "run", lambda cells, worker, **how: asked.append((cells, worker, how)))
        monkeypatch.setattr(type(tiny), "scores", lambda kit, cell=None: pd.DataFrame())
        tiny.train_all(), tiny.evaluate_all()
        assert [how["label"] for _, _, how in asked] == ["shared inputs", "trainings", "evaluations"]
        assert asked[0][0] == [0] and all(how["workers"] == tiny.profile.workers for _, _, how in asked)
        for cells, worker, _ in asked:
            pickle.loads(pickle.dumps((worker, cells)))


def files(kit):
    return [path.name for path in (kit.folder / "base-0").rglob("*.parquet")]


@pytest.mark.parametrize(
    ("stage", "first"),
    [
        *((stage, "01") for stage in ("rows", "reference", "probe", "posterior", "levels")),
        *(("noise", "02"), ("scores", "04"), ("study", "04"), ("report", "04")),
    ],
)
def test_a_stage_out_of_order_names_the_notebook_to_run_first(stage, first, tmp_path):
    with pytest.raises(MissingArtifact, match=f"run notebook {first} first"):
        getattr(napo.Kit("smoke", runs_dir=tmp_path), stage)()


def test_methods_have_a_docstring_and_at_most_eight_parameters():
    for name, method in inspect.getmembers(napo.Kit, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
        assert len(inspect.signature(method).parameters) <= 9, name  # self apart


def test_overrides_are_those_of_profile(tmp_path):
    kit = napo.Kit("smoke", rows=8, methods="dpo_all", runs_dir=tmp_path)
    assert kit.profile == napo.profile("smoke", rows=8, methods="dpo_all") and kit.base == 0
    assert kit.folder == tmp_path / "smoke" and importlib.import_module("napo.kit").Kit is napo.Kit
    with pytest.raises(BadInput, match="unknown profile"):
        napo.Kit("laptop")
