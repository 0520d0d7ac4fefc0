"""Every public name has an example in its docstring, and it runs."""

import doctest

import pytest
import torch
from torch import nn

import stn

NAMES = {name: getattr(stn, name) for name in stn.__all__} | {"Regression.from_linear": stn.Regression.from_linear}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name):
    globs = {"torch": torch, "nn": nn} | {each: getattr(stn, each) for each in stn.__all__}
    examples = doctest.DocTestParser().get_doctest(NAMES[name].__doc__, globs, name, None, 0)
    assert examples.examples, f"{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=said.append)
    assert result.failed == 0, "".join(said)
