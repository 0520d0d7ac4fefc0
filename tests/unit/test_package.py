"""What `import stn` gives: every name from the module that defines it, nothing loaded before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import stn
from stn.matrices import homogeneous

LIBRARY = Path(stn.__file__).parent


def test_every_name_of_the_package_is_there():
    for name in stn.__all__:
        value = getattr(stn, name)
        assert getattr(import_module(value.__module__), name) is value
        assert value.__module__.split(".")[:-1] == ["stn"]


def test_types_are_checked_for_every_name_of_the_package():
    tree = ast.parse((LIBRARY / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("stn.")]
    names = {(line.module, alias.name) for line in imports for alias in line.names}
    assert names == {(getattr(stn, name).__module__, name) for name in stn.__all__}
    assert (LIBRARY / "py.typed").exists()


def test_dir_lists_every_name_and_the_version():
    assert {*stn.__all__, "__version__", "__doc__"} <= set(dir(stn))
    assert stn.__version__ == version("stn")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'stn' has no attribute 'Afine'$"):
        stn.Afine  # noqa: B018


def test_importing_stn_loads_no_pytorch_until_a_name_is_used():
    code = "import stn, sys; dir(stn), stn.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=LIBRARY.parent).returncode == 0


def test_a_spline_loads_no_compiler_until_it_is_compiled():
    code = """import sys, torch, stn
spline = stn.ThinPlateSpline()
spline(torch.tensor([spline.identity]), torch.rand(5, 2))
assert 'torch._dynamo' not in sys.modules"""
    assert subprocess.run([sys.executable, "-c", code], cwd=LIBRARY.parent).returncode == 0


def test_signatures_are_checked_while_the_tests_run():
    with pytest.raises(TypeCheckError):
        homogeneous(torch.ones(3))  # it takes (n, d)


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_the_tests_of_the_library_use_the_library_alone(file):
    assert "stn." + "experiments" not in file.read_text()
