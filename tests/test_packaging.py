import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import napo


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock(root):
    """Package -> exact version."""
    lines = [line for line in (root / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return {plain(name): version for name, version in pins.items()}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project):
    """(name, specifier) of every dependency and extra."""
    extras = project["project"]["optional-dependencies"].values()
    for text in [*project["project"]["dependencies"], *(item for extra in extras for item in extra)]:
        name, specifier = re.fullmatch(r"([\w.-]+)(.*)", text).groups()
        yield plain(name), specifier


def run_make(folder, *arguments, **environment):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "TORCH_INDEX", "TEST_WORKERS"))}
    environment = ours | environment
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_lock_fits_what_the_project_asks_for(project, lock):
    for name, specifier in requirements(project):
        assert name in lock, f"{name} has no exact version in requirements.lock"
        assert SpecifierSet(specifier).contains(lock[name]), f"{name}: {lock[name]} is not {specifier}"
    assert lock["nltk"] == "3.9.1"


def test_lock_fits_cpu_and_cuda_and_names_no_place(root, lock):
    assert not [name for name in lock if name.startswith(("nvidia", "triton", "napo"))]
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in lock.values())
    assert "://" not in (root / "requirements.lock").read_text()


def test_lock_is_what_is_installed(lock):
    """And complete: whatever the project's packages need, however deep, has an exact version."""
    installed = {plain(item.name): item.version.partition("+")[0] for item in metadata.distributions()}
    waiting, seen = ["napo"], set()
    while waiting:
        for text in metadata.requires(waiting.pop()) or []:
            marker = text.partition(";")[2]
            name = plain(re.match(r"[\w.-]+", text).group())
            if name in installed and name not in seen and ("extra" not in marker or name in lock):
                seen.add(name)
                waiting.append(name)
    assert "torch" in seen and len(seen) > 50
    seen -= {"pip", "setuptools", "wheel"}
    assert {name: installed[name] for name in seen} == {name: lock.get(name) for name in seen}


def test_conda_environment_agrees(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert {"python=3.11", "pip"} <= set(conda)
    constraint, editable = pip["pip"]
    assert constraint == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable).group(1).split(",")
    assert set(extras) <= project["project"]["optional-dependencies"].keys()
    assert f"--editable '.[{','.join(extras)}]'" in (root / "Makefile").read_text()
    assert project["project"]["requires-python"] == ">=3.11"


def test_version_and_licence(root, project):
    assert metadata.version("napo") == napo.__version__
    assert project["project"]["license"] == "Apache-2.0"
    text = (root / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_napo_itself_imports_nothing():
    script = "import sys; before = set(sys.modules); import napo; print(set(sys.modules) - before)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "{'napo'}\n"


class TestMake:
    @pytest.fixture
    def copy(self, root, tmp_path):
        """The Makefile alone, where a wrong step would be seen."""
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(root / name, tmp_path)
        return tmp_path

    def test_help_is_the_default_and_names_every_target(self, copy):
        shown = run_make(copy).stdout
        for target in "help reproduce test lint lab explore bench bases publish clean".split():
            assert re.search(rf"^  make {target} +\w", shown, re.M)
        for variable in "PROFILE MODEL DATA ROWS DEVICE REPORT_TO RUNS TORCH_INDEX=cpu PYTHON".split():
            assert variable in shown
        assert not (copy / ".venv").exists()

    @pytest.mark.parametrize("target", ["reproduce", "publish", "explore"])
    def test_wrong_profile_before_anything_is_installed(self, copy, target):
        ended = run_make(copy, target, "PROFILE=dekc")
        assert ended.returncode == 2
        assert (
            ended.stderr.splitlines()[0]
            == "error: unknown profile 'dekc': use one of smoke desk study paper paper_small"
        )
        assert not (copy / ".venv").exists()

    def test_profiles_are_those_of_the_package(self, root):
        from napo.profiles import PROFILES

        known = re.search(r"^PROFILES := (.*)$", (root / "Makefile").read_text(), re.M).group(1)
        assert known.split() == list(PROFILES)

    def test_old_python_is_refused(self, copy):
        old = copy / "python-old"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        ended = run_make(copy, "test", f"PYTHON={old}")
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: no Python 3.11 or newer")
        assert not (copy / ".venv").exists()

    def test_no_pip_when_installed_and_pip_when_the_lock_changes(self, copy):
        (copy / ".venv").mkdir()
        (copy / ".venv/.installed").touch()
        assert "pip" not in run_make(copy, "-n", "test").stdout
        os.utime(copy / "requirements.lock", (2**32, 2**32))
        shown = run_make(copy, "-n", "test").stdout
        assert "pip install" in shown and "--constraint requirements.lock" in shown
        assert "index-url" not in shown

    def test_cpu_wheels_by_one_variable(self, copy):
        shown = run_make(copy, "-n", "test", TORCH_INDEX="cpu").stdout
        assert '--extra-index-url "https://download.pytorch.org/whl/cpu"' in shown

    def test_lab_opens_notebook_00_in_our_environment(self, copy):
        shown = run_make(copy, "-n", "lab").stdout
        assert re.search(
            r"JUPYTER_PREFER_ENV_PATH=1 .venv/bin/python -m jupyterlab .*notebooks/00_box_cox.ipynb", shown
        )
        assert ("--allow-root" in shown) == (os.geteuid() == 0)

    def test_explore_serves_the_profiles_margins(self, copy):
        shown = run_make(copy, "-n", "explore", "PROFILE=smoke", "RUNS=elsewhere").stdout
        assert 'python -m napo.serve --profile "smoke" --runs-dir "elsewhere"' in shown

    def test_parameters_reach_the_runner(self, copy):
        given = ["MODEL=a b", "DATA=x.parquet", "ROWS=7", "DEVICE=cuda", "RUNS=elsewhere", "PROFILE=paper"]
        shown = run_make(copy, "-n", "reproduce", *given, ROWS="9").stdout
        expected = (
            '--profile "paper" --runs-dir "elsewhere" -p "model=a b" -p "data=x.parquet" -p "rows=7" -p "device=cuda"'
        )
        assert expected in re.sub(r"\s+", " ", shown.replace("\\\n", " "))
        plain_call = run_make(copy, "-n", "reproduce", MODEL="from the environment").stdout
        assert ' -p "' not in plain_call and '--profile "desk"' in plain_call

    def test_clean_keeps_what_is_published(self, copy):
        for name in ("runs/desk/a", "figures/desk/a.png", "figures/study/a.png", ".venv/a"):
            (copy / name).parent.mkdir(parents=True)
            (copy / name).touch()
        assert "kept figures/study/ and .venv/" in run_make(copy, "clean").stdout
        assert not (copy / "runs").exists() and not (copy / "figures/desk").exists()
        assert (copy / "figures/study/a.png").exists() and (copy / ".venv/a").exists()


class TestContinuousIntegration:
    """.ci/run with a make and a git that only say what they were asked for."""

    @pytest.fixture
    def ci(self, root, tmp_path):
        clone, tools = tmp_path / "clone", tmp_path / "tools"
        (clone / ".ci").mkdir(parents=True)
        shutil.copy(root / ".ci/run", clone / ".ci")
        tools.mkdir()
        for tool in ("git", "chromium"):  # a Chromium, so that none is installed
            (tools / tool).write_text("#!/bin/sh\n")

        def run(tests, shared=False, path=f"{tools}:{os.environ['PATH']}"):
            make = (
                f'#!/bin/sh\necho "make $1 $CI_REQUIRE_SHARED ${{MPLBACKEND-none}} $CI_REQUIRE_BROWSER"\n'
                f"[ $1 = lint ] && exit 0\n{tests}\n"
            )
            (tools / "make").write_text(make)
            for tool in tools.iterdir():
                if not tool.is_symlink():
                    tool.chmod(0o755)
            if shared:
                (tmp_path / "shared").mkdir()
            ours = {"PATH": path, "MPLBACKEND": "Agg"}
            environment = {k: v for k, v in os.environ.items() if not k.startswith("CI_REQUIRE")} | ours
            command = [clone / ".ci/run"]
            return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)

        return run

    def test_green(self, ci):
        ended = ci('echo "===== 3 passed in 1s ====="')
        assert ended.returncode == 0
        assert ended.stdout.splitlines()[:2] == ["make lint  none ", "make test  none 1"]
        assert ended.stdout.splitlines()[-1] == "===== 3 passed in 1s ====="

    def test_without_a_chromium_one_is_installed_first(self, ci, tmp_path):
        tools, asked = tmp_path / "tools", tmp_path / "asked"
        (tools / "chromium").unlink()
        for tool in "bash sh env dirname mktemp tee grep tail rm".split():
            (tools / tool).symlink_to(shutil.which(tool))
        (tools / "id").write_text("#!/bin/sh\necho 0\n")
        (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
        ended = ci('echo "===== 3 passed in 1s ====="', path=str(tools))
        assert ended.returncode == 0, ended.stderr
        update, install = asked.read_text().splitlines()
        assert update.startswith("update") and install.startswith("install -y") and " chromium" in install
        assert "make test  none 1" in ended.stdout

    def test_shared_folder_makes_its_tests_obligatory(self, ci):
        assert "make test 1 none" in ci('echo "===== 3 passed in 1s ====="', shared=True).stdout

    @pytest.mark.parametrize(
        "tests, status",
        [("echo '== 1 failed, 3 passed =='; exit 2", 2), ("echo '== no tests ran =='; exit 5", 5), ("echo; exit 0", 5)],
    )
    def test_red(self, ci, tests, status):
        assert ci(tests).returncode == status

    def test_shared_fixture(self, root, shared_names):
        present, absent = shared_names
        spec = importlib.util.spec_from_file_location("conftest_of_all_tests", root / "tests/conftest.py")
        conftest = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(conftest)
        assert conftest.shared_folder(present, True) == present
        with pytest.raises(pytest.skip.Exception):
            conftest.shared_folder(absent, False)
        with pytest.raises(pytest.fail.Exception):
            conftest.shared_folder(absent, True)

    @pytest.fixture
    def shared_names(self, tmp_path):
        (tmp_path / "present").mkdir()
        return tmp_path / "present", tmp_path / "absent"


def test_no_machine_of_ours_is_named(root):
    """Only PyTorch's own index may be named in what installs."""
    for name in ("Makefile", ".ci/run", "pyproject.toml", "requirements.lock", "environment.yml"):
        hosts = set(re.findall(r"https?://([\w.-]+)", (root / name).read_text()))
        assert hosts <= {"download.pytorch.org"}, name


def test_notebooks_have_a_kernel_that_any_machine_has(root):
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        kernel = json.loads(path.read_text())["metadata"]["kernelspec"]
        assert (kernel["name"], kernel["language"]) == ("python3", "python"), path.name


def test_contributing_names_files_and_names_that_there_are(root):
    text = (root / "CONTRIBUTING.md").read_text()
    code = re.findall(r"`([^`\n]+)`", text)
    paths = {name for name in code if re.fullmatch(r"(napo|tests|benchmarks|\.ci)/[\w/.]*", name)}
    assert len(paths) > 25 and not [name for name in paths if not (root / name).exists()]
    sources = "\n".join(path.read_text() for folder in ("napo", "tests") for path in (root / folder).rglob("*.py"))
    names = {name for name in code if re.fullmatch(r"_?[A-Z]{4,}(_[A-Z]+)*", name)}
    assert len(names) > 8 and not [name for name in names if not re.search(rf"^{name}\b", sources, re.M)]
