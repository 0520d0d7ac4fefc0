"""How a script ends: one line for what bad input explains, a traceback for a bug."""

import io
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture
def handlers():
    """What signals of STOP do; afterwards they do it again."""
    before = {number: signal.getsignal(number) for number in command.STOP}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", command.STOP)
def test_a_signal_ends_a_script_with_one_line_and_its_exit_status(number, handlers, monkeypatch, capsys):
    signal.signal(number, signal.SIG_DFL)  # what starts pytest may ignore it
    monkeypatch.setattr(sys, "argv", ["scripts/x.py", "a b"])
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: os.kill(os.getpid(), number))
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}; resume with: python scripts/x.py 'a b'\n"
    os.kill(os.getpid(), number)  # a second one is ignored until it has ended


def test_a_signal_counts_even_where_a_library_raises_something_in_its_place(handlers, monkeypatch, capsys):
    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except command.Stopped:
            raise KeyboardInterrupt from None  # as Ray does

    monkeypatch.setattr(sys, "argv", ["scripts/x.py"])
    with pytest.raises(SystemExit) as stop:
        command.run(main)
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM; resume with: python scripts/x.py\n"


def test_a_script_that_ends_by_itself_leaves_signals_as_they_were(handlers):
    command.run(lambda: None)
    assert {number: signal.getsignal(number) for number in command.STOP} == handlers


ALONE = {"bundle"}  # it runs where nothing is installed yet
SCRIPTS = sorted(path for path in (command.ROOT / "scripts").glob("*.py") if path.stem not in ALONE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_ends_through_command_run(script):
    text = script.read_text()
    if "argparse" in text:
        assert re.search(r"\nif __name__ == \"__main__\":\n    (command\.)?run\(main\)\n$", text)


@pytest.mark.parametrize("script", sorted((command.ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_wrong_option_of_a_script_is_one_line(script, monkeypatch):
    if "parse_args" not in script.read_text():
        pytest.skip("it has no options")
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--no-such-option"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert re.fullmatch(rf"error: [^\n]+; {script.name} --help lists the options", str(stop.value.code))


@pytest.mark.parametrize("text", ["0", "-5", "11", "x", "1.5", "", "9" * 5000])
def test_an_option_that_is_no_number_in_its_range_says_so(text):
    options = command.Options("")
    options.add_argument("--n", type=command.a_number(1, 10))
    assert options.parse_args(["--n", "10"]).n == 10
    with pytest.raises(SystemExit, match=r"^error: argument --n: '[^\n]*' has to be a whole number, 1 or more"):
        options.parse_args(["--n", text])


def test_a_folder_is_not_a_file_to_write(tmp_path):
    options = command.Options("")
    options.add_argument("--out", type=command.a_file)
    assert options.parse_args(["--out", str(tmp_path / "x")]).out == tmp_path / "x"
    os.mkfifo(tmp_path / "pipe")  # as a device, not a regular file: it would be replaced
    for given in (str(tmp_path), "/", str(tmp_path / "pipe")):
        with pytest.raises(SystemExit, match=rf"^error: argument --out: {given} is a folder or a device: name a file;"):
            options.parse_args(["--out", given])


def test_what_the_terminal_cannot_show_ends_no_script(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    command.run(lambda: print("┏ \udcff"))
    sys.stdout.flush()
    assert shown.getvalue() == b"\\u250f \\udcff\n"


def test_a_process_that_has_ended_does_not_run_even_before_its_parent_has_noticed():
    process = subprocess.Popen(["sleep", "1000"])
    assert command.runs(process.pid)
    process.kill()
    while command.runs(process.pid):
        pass
    assert process.returncode is None
    process.wait()
    assert not command.runs(process.pid)


def test_an_empty_path_is_not_this_folder():
    options = command.Options("")
    options.add_argument("--runs", type=command.a_path)
    assert options.parse_args(["--runs", "x"]).runs == Path("x")
    with pytest.raises(SystemExit, match=r"^error: argument --runs: the path is empty;"):
        options.parse_args(["--runs", ""])
