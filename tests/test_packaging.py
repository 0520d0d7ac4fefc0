"""Two floors: the library runs beside PyTorch and jaxtyping alone; what is imported is what is declared."""

import ast
import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LIBRARY = {"torch", "jaxtyping"}
LOCAL = {path.stem for folder in ("scripts", "tests", "tests/unit", "tests/experiments", "tests/gpu") for path in (ROOT / folder).glob("*.py")}  # noqa: E501  # fmt: skip
# import names that are not their distributions' names
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "hydra": "hydra-core", "yaml": "pyyaml",
}  # fmt: skip
# what is used without an import: where, and by which words
USED_OTHERWISE = {
    "beartype": ("tests/conftest.py", "beartype.beartype"),
    "hydra-joblib-launcher": ("conf/config.yaml", "hydra"),  # chosen on the command line: hydra/launcher=joblib
    "hydra-ray-launcher": ("conf/hydra/launcher/ray_local.yaml", "ray"),
    "hydra-submitit-launcher": ("conf/hydra/launcher/slurm.yaml", "submitit"),
    "matplotlib": ("stn/experiments/datasets/rendered.py", '"matplotlib"'),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mypy": ("Makefile", "bin/mypy"),
    "onnx": ("scripts/export_onnx.py", "torch.onnx.export"),
    "onnxscript": ("scripts/export_onnx.py", "dynamo=True"),
    "pytest-xdist": ("Makefile", "-n 2"),
    "ruff": ("Makefile", "bin/ruff"),
    "setuptools": ("pyproject.toml", "setuptools.build_meta"),  # builds the wheel of this file's tests
    "types-pyyaml": ("pyproject.toml", "tool.mypy"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built in a copy of the sources, where no earlier build is in the way."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "stn", folder / "stn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, folder], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def headers(wheel):
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def declared(headers):
    """Names of distributions by extra, "" for what the library requires; what an extra takes from another is there."""
    found: dict[str, set[str]] = {"": set()} | {extra: set() for extra in headers.get_all("Provides-Extra")}
    for line in headers.get_all("Requires-Dist"):
        requirement = Requirement(line)
        extra = re.search(r'extra == "(\w+)"', line)
        if requirement.name != "stn":
            found[extra[1] if extra else ""].add(canonicalize_name(requirement.name))
    return found


def closure(names: set[str]) -> set[str]:
    """The distributions that these require, on this machine, and themselves."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        found.add(canonicalize_name(requirement.name))
        for line in metadata.requires(requirement.name) or []:
            further = Requirement(line)
            wanted = further.marker is None or any(
                further.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            )
            if wanted and canonicalize_name(further.name) not in found:
                waiting.append(further)
    return found


@pytest.fixture(scope="module")
def beside_torch_alone(wheel, tmp_path_factory):
    """Run code where nothing but the wheel, PyTorch, jaxtyping and what these two require is installed."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    for name in closure(LIBRARY):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))

    def run(code):
        code = f"import sys; sys.path.append({str(site)!r})\n{code}"  # -S: without this environment's packages
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=site, capture_output=True, text=True)

    return run


def test_the_wheel_requires_torch_and_jaxtyping_alone(declared):
    assert declared[""] == LIBRARY


def test_the_library_s_python_has_no_upper_bound_only_hydra_has(headers):
    assert headers["Requires-Python"] == ">=3.10"
    for line in headers.get_all("Requires-Dist"):
        requirement = Requirement(line)
        if requirement.name.startswith("hydra"):
            extra = re.search(r'extra == "(\w+)"', line)[1]
            on = [requirement.marker.evaluate({"python_version": v, "extra": extra}) for v in ("3.13", "3.14")]
            assert on == [True, False], line


def test_the_wheel_holds_the_package_with_its_types_and_templates(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = [path for path in (ROOT / "stn").rglob("*") if path.suffix in (".py", ".j2") or path.name == "py.typed"]
    assert names == {str(path.relative_to(ROOT)) for path in sources}


def test_the_readme_s_library_example_runs_beside_torch_alone(beside_torch_alone):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (example,) = [block for block in blocks if "from stn import" in block]
    done = beside_torch_alone(
        f"{example}\n"
        "import stn, torch\n"
        "scores = network(torch.rand(2, 1, 28, 28))\n"
        "scores.sum().backward()\n"
        "assert scores.shape == (2, 10)\n"
        "assert all([getattr(stn, name) for name in [*stn.__all__, '__version__']])\n"
        "absent = {'numpy', 'pytorch_lightning', 'hydra', 'torchvision'} & set(sys.modules)\n"
        "assert not absent, absent\n"
    )
    assert done.returncode == 0, done.stderr


def test_experiments_without_their_extra_say_what_to_install(beside_torch_alone):
    done = beside_torch_alone("import stn.experiments.datasets.mnist")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: stn.experiments needs omegaconf, pytorch_lightning, torchvision: in a clone run `make setup`, "
        "or pip install '.[experiments]'"
    )


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported as soon as the file is) for every absolute import of a file."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, id(node) not in inside


def distributions(paths: list[Path], at_once: bool = False) -> dict[str, set[str]]:
    """Which files import which distribution; `at_once` leaves out imports inside of functions."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for module, outside in imports(path):
            name = module.split(".")[0]
            if name not in sys.stdlib_module_names and name not in LOCAL | {"stn"} and (outside or not at_once):
                distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
                found.setdefault(distribution, set()).add(str(path.relative_to(ROOT)))
    return found


LABORATORY = [*(ROOT / "stn/experiments").rglob("*.py"), ROOT / "run.py"]
COMMANDS = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
ALL = sorted([*LABORATORY, *COMMANDS, *(ROOT / "stn").glob("*.py")])


# PyTorch documents these modes under these names, and has no other
DOCUMENTED = {"torch.utils._python_dispatch.TorchDispatchMode", "torch._subclasses.fake_tensor.FakeTensorMode",
              "torch._subclasses.fake_tensor.FakeTensor"}  # fmt: skip


def private(path: Path) -> list[str]:
    """What a file imports from a library's modules, or by its names, that begin with an underscore."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    foreign = [name for name in found if name.split(".")[0] not in sys.stdlib_module_names]
    return [name for name in foreign if re.search(r"(^|\.)_", name) and name not in DOCUMENTED]


def undeclared(found: dict[str, set[str]], names: set[str]) -> dict[str, set[str]]:
    return {name: files for name, files in found.items() if name not in names}


def test_no_module_of_the_library_imports_the_laboratory():
    for path in (ROOT / "stn").glob("*.py"):
        assert [module for module, _ in imports(path) if module.startswith("stn.experiments")] == []


def test_the_library_imports_torch_and_jaxtyping_alone():
    assert undeclared(distributions(list((ROOT / "stn").glob("*.py"))), LIBRARY) == {}


def test_the_laboratory_imports_what_its_extra_declares(declared):
    assert undeclared(distributions(LABORATORY, at_once=True), LIBRARY | declared["experiments"]) == {}


def test_everything_imported_is_declared_by_some_extra(declared):
    assert undeclared(distributions(LABORATORY + COMMANDS), set().union(*declared.values())) == {}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_part_of_a_library_is_imported(path):
    assert private(path) == []


def test_nothing_is_declared_that_nobody_uses(declared):
    used = set(distributions(LABORATORY + COMMANDS)) | LIBRARY
    spare = set().union(*declared.values()) - used - set(USED_OTHERWISE)
    fonts = {name for name in spare if "font" in name}
    code = (ROOT / "stn/experiments/datasets/rendered.py").read_text()
    assert {name for name in fonts if f'"{name.replace("-", "_")}"' not in code} == set()
    assert spare - fonts == set()
    assert [name for name, (file, words) in USED_OTHERWISE.items() if words not in (ROOT / file).read_text()] == []


def test_every_requirement_is_pinned_and_no_pin_names_a_place(declared):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(Requirement(line).name) for line in lines}
    assert set().union(*declared.values()) - pins == set()
    assert [line for line in lines if re.search(r"https?:|file:|@|^-|^#", line)] == []


# --- what people look for in a repository


def test_ci_runs_the_one_script_on_every_python_that_is_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["run"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert "3.10 to 3.13" in (ROOT / "Makefile").read_text()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_pre_commit_runs_the_tools_of_make_lint():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]]
    assert entries == [".venv/bin/ruff format", ".venv/bin/ruff check", ".venv/bin/mypy"]
    assert all(hook["language"] == "system" for hook in repo["hooks"])
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2]
    assert all(f"@{entry}" in lint for entry in entries)


def test_the_image_takes_what_make_setup_needs_and_leaves_out_the_rest():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    assert [word for word, _ in words] == ["FROM", "RUN", "WORKDIR", "COPY", "RUN", "CMD"]
    assert re.fullmatch(r"python:3\.1[0-3]-slim", words[0][1])
    assert words[3][1] == ". ."
    assert words[4][1] == "make setup"
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert {".venv", "runs"} <= set(ignored)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "stn", "README.md", "LICENSE"):
        assert (ROOT / name).exists()
        assert name not in ignored


def test_the_dev_container_is_built_from_the_dockerfile():
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (folder / container["build"]["context"]).resolve() == ROOT
    assert container["postCreateCommand"] == "make setup"


def test_the_lock_has_the_pins_with_a_hash_each_and_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    entries = [entry.split(" --hash=sha256:") for entry in text.replace("\\\n   ", "").splitlines()]
    assert all(hashes and all(re.fullmatch("[0-9a-f]{64}", each.strip()) for each in hashes) for _, *hashes in entries)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert {entry[0].partition(";")[0].strip() for entry in entries} == {pin.partition(";")[0].strip() for pin in pins}
    assert re.search(r"://|file:|@|--index|--find", text) is None


def test_torch_hub_gives_every_recorded_network_by_a_name(monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])  # which torch.hub extends
    entries = runpy.run_path(str(ROOT / "hubconf.py"))
    names = [name for name, value in entries.items() if callable(value) and not name.startswith("_")]
    index = json.loads((ROOT / "results/weights/index.json").read_text())
    assert {*names} == {"_".join(name.split("-")[:words]) for name in index for words in (2, 3)}
    network = torch.hub.load(str(ROOT), "mnist_st_cnn_tps_rts", source="local")
    assert not network.training
    assert network(torch.zeros(2, 1, 42, 42)).shape == (2, 10)
