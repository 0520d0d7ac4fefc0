"""How a script ends: one line for what bad input explains, a traceback for a bug."""

import re

import pytest

from stn.experiments import command


def test_bad_input_ends_a_script_with_one_line():
    def main():
        raise ValueError("no such\n  thing")

    with pytest.raises(SystemExit, match=r"^error: no such thing$"):
        command.run(main)


def test_a_bug_is_seen_whole():
    def main():
        raise KeyError("x")

    with pytest.raises(KeyError):
        command.run(main)


ALONE = {"bundle"}  # it runs where nothing is installed yet
SCRIPTS = sorted(path for path in (command.ROOT / "scripts").glob("*.py") if path.stem not in ALONE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_ends_through_command_run(script):
    text = script.read_text()
    if "argparse" in text:
        assert re.search(r"\nif __name__ == \"__main__\":\n    (command\.)?run\(main\)\n$", text)
