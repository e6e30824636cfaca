"""What makes results stale, across the rooms: settings, threads, the CPU, and the code of every room that counts."""

import json
import shutil
from dataclasses import replace

import pytest

from napo import methods, profiles
from napo.comparison import cells
from napo.engine import generation, models
from napo.evaluation import asking, evaluate
from napo.kit import Kit
from napo.methods import METHODS
from napo.noise import injected, noise_levels, posterior, probe, reference_logps
from napo.official.benchmarks import Benchmark, Question
from napo.pairs import perturb
from napo.profiles import Cell, Decoding
from napo.study import frames
from napo.workshop import artifacts, code_hash, environment
from napo.workshop.files import BadInput

SMOKE = profiles.get("smoke")


@pytest.fixture
def built(tmp_path, monkeypatch):
    """File name -> arguments of `artifacts.build`, of every artefact that is asked for. None of them is made."""
    recorded = {}

    def record(path, make, **how):
        recorded[path.name] = how
        return path

    monkeypatch.setattr(artifacts, "build", record)
    monkeypatch.setattr(artifacts, "is_current", lambda path, **how: True)
    for name in ("pairs.parquet", "reference.parquet", "noise.parquet"):
        file = tmp_path / "smoke" / "base-0" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return recorded


@pytest.fixture
def edited(monkeypatch):
    """A function that makes one file of the package count as edited."""
    hashed = code_hash._code_hash

    def edit(name):
        changed = code_hash.PACKAGE / name
        assert changed.is_file()
        monkeypatch.setattr(code_hash, "_code_hash", lambda file: "edited" if file == changed else hashed(file))

    return edit


def adapter_key(method, tmp_path, **cell):
    how = cells.cell_made_from(Cell(method, 0, 0, 0.0, **cell), SMOKE, tmp_path)
    return artifacts.key(**how)


@pytest.mark.parametrize("margin, method", [("sum", "vb_napo"), ("mean", "lb_napo"), ("sum", "napo_paper")])
def test_a_changed_alpha_makes_trained_adapters_stale(built, tmp_path, monkeypatch, margin, method):
    before = adapter_key(method, tmp_path), adapter_key("sft", tmp_path)
    monkeypatch.setitem(methods.ALPHA, margin, 0.2)
    assert adapter_key(method, tmp_path) != before[0]
    assert adapter_key("sft", tmp_path) == before[1]


def test_a_label_of_plots_makes_no_adapter_stale(built, tmp_path, monkeypatch):
    before = adapter_key("napo_paper", tmp_path)
    monkeypatch.setitem(METHODS, "napo_paper", replace(METHODS["napo_paper"], label="NaPO"))
    assert adapter_key("napo_paper", tmp_path) == before


def test_every_stage_records_how_it_computes(built, tmp_path, monkeypatch):
    """Quantisation, device, threads and the CPU path are in the settings, and so in the key, of whatever computes."""
    leak = injected.Injection("leak", 0.2, 0)
    perturb.pairs(SMOKE, 0, tmp_path)
    for make in (
        reference_logps.build,
        reference_logps.of_crops,
        probe.noise_table,
        posterior.table,
        noise_levels.table,
    ):
        make(SMOKE, 0, tmp_path)
    posterior.of_training(SMOKE, 0, leak, tmp_path)
    cells.train_cell(Cell("napo_paper", 0, 0, 0.0), SMOKE, tmp_path)
    evaluate.bias_table(SMOKE, 0, tmp_path)
    asked = []
    monkeypatch.setattr(evaluate, "cell_benchmarks", lambda *_: [])
    monkeypatch.setattr(asking, "answer", lambda *given: asked.append(given[-1]) or tmp_path)
    evaluate.evaluate_cell(Cell("base", 0, 0, 0.0), SMOKE, tmp_path)
    stages = {
        **dict.fromkeys(("pairs.parquet",), "pairs"),
        **dict.fromkeys(("reference.parquet", "crops.parquet", "noise.parquet", "posterior.parquet"), "noise"),
        **dict.fromkeys(("noise_levels.parquet", "leak-f0.2-s0.parquet", "leak-f0.2-s0-posterior.parquet"), "noise"),
        **dict.fromkeys(("adapter", "steps.jsonl"), "training"),
        **dict.fromkeys(("bias.parquet", "scores.parquet"), "evaluation"),
    }
    assert {name: how["stage"] for name, how in built.items()} == stages
    computing = {"quantisation", "device", "threads", "cpu"}
    assert computing == SMOKE.computing.keys()
    for settings in [how["settings"] for name, how in built.items() if name != "steps.jsonl"] + asked:
        assert {name: settings[name] for name in computing} == SMOKE.computing


def test_threads_and_the_cpu_path_change_the_key(monkeypatch):
    def key(profile):
        return artifacts.key(settings=profile.computing, stage="pairs")

    on_gpu = replace(SMOKE, device="cuda")
    before = key(SMOKE), key(on_gpu)
    assert key(replace(SMOKE, threads=2)) != before[0]
    monkeypatch.setattr(environment, "cpu_path", lambda: "another")
    assert key(SMOKE) != before[0]
    assert key(on_gpu) == before[1]  # what a GPU computes does not depend on the CPU beside it


@pytest.mark.parametrize(
    "flags, path",
    [
        ("fpu avx avx2", "avx2"),
        ("fpu avx2 avx512f avx512dq avx512bw avx512vl", "avx512"),
        ("fpu avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16", "avx512+bf16"),
        ("fpu avx2 avx512f", "avx2"),
    ],
)
def test_the_cpu_path_follows_the_flags_and_the_environment(flags, path, monkeypatch):
    monkeypatch.setattr(environment, "_cpu_info", lambda *names: flags)
    for name in environment.CPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert environment.cpu_path.__wrapped__() == path
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert environment.cpu_path.__wrapped__() == f"{path} ATEN_CPU_CAPABILITY=avx2"


@pytest.mark.parametrize("stage", code_hash.STANDS_ON)
@pytest.mark.parametrize("name", ["workshop/grid.py", "workshop/files.py", "engine/generation.py", "pairs/perturb.py"])
def test_no_stage_leaves_out_plumbing(stage, name, edited):
    before = artifacts.key(settings={}, stage=stage)
    edited(name)
    assert artifacts.key(settings={}, stage=stage) != before


@pytest.mark.parametrize(
    "name, stale",
    [
        ("noise/probe.py", ["noise", "training", "evaluation", "study"]),
        ("comparison/cells.py", ["training", "evaluation", "study"]),
        ("evaluation/asking.py", ["evaluation", "study"]),
        ("study/plots.py", ["study"]),
        ("kit.py", []),
        ("runner/run.py", []),
    ],
)
def test_a_room_makes_the_stages_stale_that_stand_on_it(name, stale, edited):
    before = {stage: artifacts.key(settings={}, stage=stage) for stage in code_hash.STANDS_ON}
    edited(name)
    assert [stage for stage in before if artifacts.key(settings={}, stage=stage) != before[stage]] == stale


def test_the_desk_world_counts_where_rows_come_from_it(edited):
    before = {desk: artifacts.key(settings={}, stage="pairs", desk=desk) for desk in (False, True)}
    edited("desk/scenes.py")
    assert artifacts.key(settings={}, stage="pairs") == before[False]
    assert artifacts.key(settings={}, stage="pairs", desk=True) != before[True]


def test_the_thread_settings_of_workers_and_the_reader_of_parquet_are_code_that_counts(tmp_path):
    """On a copy of the sources, with the very lines changed."""
    package = tmp_path / "napo"
    shutil.copytree(code_hash.PACKAGE / "workshop", package / "workshop")
    for name, old, new in (
        ("grid", '"OPENBLAS_NUM_THREADS"), "1")', '"OPENBLAS_NUM_THREADS"), "2")'),
        ("files", "return read(path)", "return read(path).head(1)"),
    ):
        file, before = package / f"workshop/{name}.py", code_hash.digest(["workshop"], package)
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        code_hash.forget()
        assert code_hash.digest(["workshop"], package) != before
    code_hash.forget()


TRAINED = Cell("napo_paper", 0, 0, 0.0)


@pytest.mark.parametrize(
    "name, notebook, read",
    [
        ("base-0/pairs.parquet", "01", lambda runs: cells.cell_inputs(SMOKE, TRAINED, runs)),
        ("base-0/noise.parquet", "02", lambda runs: Kit("smoke", runs_dir=runs).noise()),
        ("base-0/posterior.parquet", "02", lambda runs: posterior.beside(None, SMOKE, runs)),
        ("base-0/noise_levels.parquet", "02", lambda runs: noise_levels.read(SMOKE, runs)),
        (f"cells/{TRAINED.name}/adapter", "03", lambda runs: evaluate.load_cell(TRAINED, SMOKE, runs)),
        (f"cells/{TRAINED.name}/steps.jsonl", "03", lambda runs: frames.steps(SMOKE, ["napo_paper"], runs)),
        (f"cells/{TRAINED.name}/scores.parquet", "04", lambda runs: Kit("smoke", runs_dir=runs).scores(TRAINED)),
        (f"cells/{TRAINED.name}/answers.parquet", "04", lambda runs: Kit("smoke", runs_dir=runs).answers(TRAINED)),
    ],
)
def test_a_stage_refuses_a_damaged_file_of_an_earlier_one(tmp_path, monkeypatch, name, notebook, read):
    """Whoever runs the stage; as the runner makes such a file again, this is for a notebook or a Kit alone."""
    monkeypatch.setattr(models, "load_base", lambda *_: (None, None))
    path = tmp_path / "smoke" / name
    artifacts.build(path, lambda temporary: temporary.write_text("made"), settings={}, stage="pairs")
    path.write_text("mad!")
    with pytest.raises(
        BadInput, match=rf"{path.name} is damaged or was changed by hand: run notebook {notebook} again"
    ):
        read(tmp_path)


class TestAnswers:
    """The log of answers that an interrupted evaluation leaves."""

    QUESTIONS = [Question(f"q{i}", f"e{i}", f"Is it {i}?", "image") for i in range(4)]
    BENCHMARK = Benchmark("own", None, tuple(QUESTIONS), predictions=None)

    @pytest.fixture
    def ask(self, tmp_path, monkeypatch):
        """A function that answers with `word`, fails after `stop` batches of one, and returns (answers, asked)."""

        def ask(word, stop=None):
            asked = []

            def generate(model, processor, prompts, decoding):
                if len(asked) == stop:
                    raise KeyboardInterrupt
                asked.append(prompts[0][0]["row_id"])
                return [word] * len(prompts)

            monkeypatch.setattr(generation, "generate", generate)
            monkeypatch.setattr(Question, "opened", lambda question: None)
            decodings = {"own": Decoding(1, 0.0, 8, batch_size=1)}
            try:
                path = asking.answer([self.BENCHMARK], lambda: (None, None), decodings, tmp_path, {"model": "m"})
            except KeyboardInterrupt:
                return [], asked
            return list(asking.pd.read_parquet(path)["answer"]), asked

        return ask

    def test_the_same_code_resumes(self, ask):
        assert ask("old", stop=3) == ([], ["q0", "q1", "q2"])
        assert ask("new") == (["old", "old", "old", "new"], ["q3"])

    def test_changed_generation_asks_again_and_mixes_nothing(self, ask, edited, tmp_path):
        ask("old", stop=3)
        edited("engine/generation.py")
        assert ask("new") == (["new"] * 4, ["q0", "q1", "q2", "q3"])
        assert not list(tmp_path.glob("*.jsonl"))

    def test_finished_answers_of_changed_generation_are_asked_again(self, ask, edited, tmp_path):
        assert ask("old")[0] == ["old"] * 4
        assert ask("new")[0] == ["old"] * 4
        edited("engine/generation.py")
        assert ask("new")[0] == ["new"] * 4
        assert json.loads((tmp_path / "provenance.json").read_text())["artefacts"]["answers.parquet"]
