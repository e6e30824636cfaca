"""Installing and running the repository: locked versions, the Makefile's targets, and continuous integration.

`make` runs for real in a copy of the Makefile; what it would run after an installation is read off `make -n`.
"""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

import pip
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from napo.commands import command
from napo.profiles import PROFILES


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
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )


def test_lock_fits_what_the_project_asks_for(project, lock):
    for name, specifier in requirements(project):
        assert name in lock, f"{name} has no exact version in requirements.lock"
        assert SpecifierSet(specifier).contains(lock[name]), f"{name}: {lock[name]} is not {specifier}"


def test_lock_fits_cpu_and_cuda_builds(lock):
    assert not [name for name in lock if name.startswith(("nvidia", "triton", "napo"))]
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in lock.values())
    assert SpecifierSet(f"=={lock['torch']}").contains(f"{lock['torch']}+cpu")


def test_lock_is_what_is_installed(lock):
    """And complete: every package that the project needs, however deep, has an exact version."""
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
    *conda, by_pip = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    assert {"python=3.11", "pip"} <= set(conda) and project["project"]["requires-python"] == ">=3.11"
    constraint, editable = by_pip["pip"]
    assert constraint == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable).group(1).split(",")
    assert set(extras) <= project["project"]["optional-dependencies"].keys()
    assert f"--editable '.[{','.join(extras)}]'" in (root / "Makefile").read_text()


def test_importing_napo_needs_the_standard_library_only(root):
    """Run without installed packages (-S); the public names import theirs when first used."""
    script = "import sys; import napo; print([name for name in sys.modules if name.startswith('napo.')])"
    assert subprocess.check_output([sys.executable, "-S", "-c", script], text=True, cwd=root) == "[]\n"


@pytest.fixture
def copy(root, tmp_path):
    """The Makefile alone in a folder, where a wrong step would show."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(root / name, tmp_path)
    return tmp_path


HOSTILE = [
    *(
        "$(touch pwned)",
        "`touch pwned`",
        "$(shell touch pwned)",
        "$$(touch pwned)",
        "${PATH}",
        "price$5.parquet",
        "x,)",
    ),
    *('"; touch pwned; "', "'; touch pwned; '", "a b & touch pwned", "a # b", "--help", "*", "a\\", "line\nline"),
]


class TestMake:
    @pytest.fixture
    def stubbed(self, copy):
        """Runs make where everything is installed and python only notes its arguments; returns these, call by call."""
        python = copy / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" '' >> calls\n")
        python.chmod(0o755)
        (copy / ".venv/trl").mkdir()
        for installed in (".venv/.installed", ".venv/trl/.installed"):
            (copy / installed).touch()

        def run(*arguments, status=0, **environment):
            (copy / "calls").write_text("")
            ended = run_make(copy, *arguments, **environment)
            assert status in (None, ended.returncode), ended.stdout + ended.stderr
            assert not (copy / "pwned").exists()
            return [call.split("\0") for call in (copy / "calls").read_text().split("\0\0")[:-1]]

        return run

    @pytest.fixture(params=HOSTILE)
    def hostile(self, request):
        return request.param

    def test_help_is_the_default_and_names_every_target(self, copy):
        shown = run_make(copy).stdout
        for target in "help reproduce test lint lab explore bench data bases publish clean".split():
            assert re.search(rf"^  make {target} +\w", shown, re.M)
        for variable in "PROFILE MODEL DATA ROWS DEVICE REPORT_TO RUNS TORCH_INDEX=cpu PYTHON".split():
            assert variable in shown
        assert not (copy / ".venv").exists()

    @pytest.mark.parametrize("target", ["reproduce", "publish", "explore"])
    def test_wrong_profile_before_anything_is_installed(self, copy, target):
        ended = run_make(copy, target, "PROFILE=dekc")
        assert ended.returncode == 2
        line = ended.stderr.splitlines()[0]
        assert line == f"error: unknown profile 'dekc': use one of {' '.join(PROFILES)}"
        assert not (copy / ".venv").exists()

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

    def test_cpu_is_pytorchs_own_index(self, copy):
        shown = run_make(copy, "-n", "test", TORCH_INDEX="cpu").stdout
        assert '--index-url="$TORCH_URL"' in shown
        shown = run_make(copy, "--eval", "url: ; @echo $$TORCH_URL", "url", TORCH_INDEX="cpu").stdout
        assert shown == "https://download.pytorch.org/whl/cpu\n"

    def test_commands_and_scripts_exist(self, root):
        makefile = (root / "Makefile").read_text()
        assert (
            set(re.findall(r"python -m napo (\w+)", makefile)) == {"run", "serve", "fetch"} <= command.COMMANDS.keys()
        )
        scripts = re.findall(r"python ([\w/]+\.py)", makefile)
        scripts += [name.replace(".", "/") + ".py" for name in re.findall(r"python -m (tools[\w.]+)", makefile)]
        assert len(scripts) == 5 and all((root / name).is_file() for name in scripts)

    def test_lint_covers_every_folder_of_code(self, root):
        (linted,) = re.findall(r"^CODE := (.*)$", (root / "Makefile").read_text(), re.M)
        code = [path.relative_to(root) for kind in ("py", "ipynb") for path in root.glob(f"[a-z]*/**/*.{kind}")]
        assert set(linted.split()) == {path.parts[0] for path in code} - {"runs", "build", "data"}

    def test_values_arrive_literally_and_nothing_of_them_is_run(self, stubbed, hostile):
        names = "MODEL DATA ROWS DEVICE BENCHMARKS REPORT_TO METHODS RUNS".split()
        (called,) = stubbed("reproduce", "PROFILE=paper", f"BAD_ROWS={hostile}", *(f"{n}={hostile}" for n in names))
        options = {f"--{name.lower().replace('_', '-')}={hostile}" for name in names[:-1]}
        assert set(called[3:]) == options | {"--profile=paper", f"--runs-dir={hostile}", "-p", f"bad_rows={hostile}"}
        (called,) = stubbed("explore", f"RUNS={hostile}")
        assert called == ["-m", "napo", "serve", "--profile=desk", f"--runs-dir={hostile}"]
        (called,) = stubbed("test", f"TEST_WORKERS={hostile}")
        assert called == ["-m", "pytest", "tests", "-n", hostile, "--dist", "worksteal"]
        assert stubbed("bench", f"DEVICE={hostile}")[0] == ["benchmarks/engine.py", f"--device={hostile}"]
        (called,) = stubbed("data", f"GROUPS={hostile}")
        assert called == ["-m", "napo", "fetch", "--", *hostile.split()]
        seeds = [called[-1] for called in stubbed("bases", f"BASES={hostile}")]
        assert sorted(seeds) == sorted(hostile.split())

    def test_a_hostile_profile_is_refused_and_installation_takes_values_literally(self, stubbed, copy, hostile):
        for profile in (hostile, f"smoke{hostile}", "smoke desk"):
            ended = run_make(copy, "reproduce", f"PROFILE={profile}")
            assert ended.returncode == 2 and ended.stderr.startswith("error: unknown profile ")
            assert ended.stderr.count("\n") == 2  # ours and make's own
        os.utime(copy / "requirements.lock", (2**32, 2**32))
        python, index = copy / "python", f"TORCH_INDEX={hostile}"
        calls = stubbed(".venv/.installed", f"PYTHON={copy / 'absent'}{hostile}", index, status=2)
        assert calls == []
        python.write_text("#!/bin/sh\nexit 0\n")
        python.chmod(0o755)
        calls = stubbed(".venv/.installed", f"PYTHON={python}", index, status=None)
        assert f"--index-url={hostile}" in next(called for called in calls if "-qq" in called)

    def test_parameters_come_from_the_command_line_only(self, stubbed):
        named = dict.fromkeys(
            "PROFILE RUNS MODEL DATA ROWS DEVICE METHODS BAD_ROWS NAPO_MODEL NAPO_BAD_ROWS".split(), "env"
        )
        (called,) = stubbed("reproduce", **named)
        assert called[:3] == ["-m", "napo", "run"] and called[3:5] == ["--profile=desk", "--runs-dir=runs"]
        assert all(option.endswith("=") for option in called[5:]) and len(called) == 12
        asked = command.parser("run")
        command.add_profile(asked, "desk", command.OVERRIDES)
        assert command.given_overrides(asked.parse_args(called[3:])) == {}

    def test_clean_keeps_what_is_published(self, copy):
        for name in ("runs/desk/a", "figures/desk/a.png", "figures/study/a.png", ".venv/a"):
            (copy / name).parent.mkdir(parents=True)
            (copy / name).touch()
        assert "kept figures/study/ and .venv/" in run_make(copy, "clean").stdout
        assert not (copy / "runs").exists() and not (copy / "figures/desk").exists()
        assert (copy / "figures/study/a.png").exists() and (copy / ".venv/a").exists()


def write_wheel(folder, name, version, *needs):
    """An empty package, below `folder` as a package index has it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    about = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    path = folder / name / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(about) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index on the loopback device: the folders of `directory` as pages."""

    def do_GET(self):
        self.server.asked.append(unquote(self.path))
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Serves a folder as an index; returns (URL, list of the paths that were asked for)."""
    servers = []

    def start(folder):
        handler = functools.partial(Index, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", server.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


BACKEND = """
import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    shutil.copy("napo/napo-0-py3-none-any.whl", folder)
    return "napo-0-py3-none-any.whl"
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


class TestTorchIndex:
    """TORCH_INDEX with two indexes on the loopback device: PyTorch's, and the default one of everything else."""

    @pytest.fixture
    def copy(self, copy):
        """A project that needs torch and one package more. It builds itself without setuptools, and its .venv/ is there
        already, with the pip that the tests run under: making one takes long."""
        (copy / "pyproject.toml").write_text(PROJECT)
        (copy / "backend.py").write_text(BACKEND)
        (copy / "requirements.lock").write_text("torch==2.13.0\n")
        write_wheel(copy, "napo", "0", "torch>=2.13", "beside")
        venv.create(copy / ".venv", symlinks=True)
        (site_packages,) = copy.glob(".venv/lib/python*/site-packages")
        (site_packages / "pip").symlink_to(Path(pip.__file__).parent)
        return copy

    @pytest.fixture
    def default(self, tmp_path, serve):
        """(URL, paths asked for) of the default index, which has torch too."""
        for name, version in (("torch", "2.13.0"), ("torch", "2.14.0"), ("beside", "1.0")):
            write_wheel(tmp_path / "default", name, version)
        return serve(tmp_path / "default")

    @pytest.fixture
    def install(self, copy, default):
        """Runs make's installation; a setting of this machine names the default index as an extra one."""
        settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": default[0], "PIP_EXTRA_INDEX_URL": default[0]}
        settings |= {"PIP_FIND_LINKS": "", "NO_PROXY": "127.0.0.1", "PIP_NO_CACHE_DIR": "1"}
        return lambda torch_index: run_make(copy, ".venv/.installed", TORCH_INDEX=torch_index, **settings)

    def test_only_torch_comes_from_it_and_nothing_else_is_asked_of_it(self, install, copy, tmp_path, serve, default):
        write_wheel(tmp_path / "pytorch", "torch", "2.13.0+cpu", "beside")
        write_wheel(tmp_path / "pytorch", "beside", "9.0")  # a stranger's, under the name of a dependency
        url, asked = serve(tmp_path / "pytorch")
        ended = install(url)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        installed = {path.name for path in copy.glob(".venv/lib/python*/site-packages/*.dist-info")}
        assert {"torch-2.13.0+cpu.dist-info", "beside-1.0.dist-info", "napo-0.dist-info"} <= installed
        assert {path.split("/")[1] for path in asked} == {"torch"}
        assert {path.split("/")[1] for path in default[1]} == {"beside"}

    def test_an_index_that_does_not_answer_is_said_in_one_line(self, install, copy):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            ended = install(url)
        assert ended.returncode == 2 and not (copy / ".venv/.installed").exists()
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: no torch==2.13.0 from {url}: check the network, or leave out TORCH_INDEX")


class TestContinuousIntegration:
    """.ci/run with a make and a git that only print how they were called."""

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

    def test_shared_fixture(self, root, tmp_path):
        spec = importlib.util.spec_from_file_location("conftest_of_all_tests", root / "tests/conftest.py")
        conftest = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(conftest)
        assert conftest.shared_folder(tmp_path, True) == tmp_path
        with pytest.raises(pytest.skip.Exception):
            conftest.shared_folder(tmp_path / "absent", False)
        with pytest.raises(pytest.fail.Exception):
            conftest.shared_folder(tmp_path / "absent", True)


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", "pyproject.toml", "requirements.lock", "environment.yml"])
def test_nothing_is_installed_from_an_index_of_ours(root, name):
    """Only PyTorch's own index may be named."""
    assert set(re.findall(r"https?://([\w.-]+)", (root / name).read_text())) <= {"download.pytorch.org"}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebooks_have_a_kernel_that_any_machine_has(path):
    kernel = json.loads(path.read_text())["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python")


def test_contributing_names_files_and_constants_that_exist(root):
    text = (root / "CONTRIBUTING.md").read_text()
    code = re.findall(r"`([^`\n]+)`", text)
    paths = {name for name in code if re.fullmatch(r"(napo|tests|tools|experiments|benchmarks|\.ci)/[\w/.]*", name)}
    assert len(paths) > 25 and not [name for name in paths if not (root / name).exists()]
    sources = "\n".join(path.read_text() for folder in ("napo", "tests") for path in (root / folder).rglob("*.py"))
    names = {name for name in code if re.fullmatch(r"_?[A-Z]{4,}(_[A-Z]+)*", name)}
    assert len(names) > 8 and not [name for name in names if not re.search(rf"^{name}\b", sources, re.M)]
