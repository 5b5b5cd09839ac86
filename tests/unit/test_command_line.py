import os
import pwd
import shlex
import shutil
import subprocess
import sys
import warnings

import pytest

from fastmoco import __version__, cli
from fastmoco.commands import COMMANDS
from fastmoco.commands.arguments import expand_home
from fastmoco.commands.command import Command
from fastmoco.commands.completion import SCRIPTS, completion, words_of
from fastmoco.commands.help_text import WIDTH, command_help, presets_lines
from fastmoco.configuration import load_config, preset_groups, preset_names, quote_values
from fastmoco.errors import UsageError
from fastmoco.option_names import OTHER_NAMES, OTHER_VALUES
from fastmoco.schema_options import describe
from fastmoco.train.settings import TrainConfig
from tests.limits import HANG_SECONDS

SCHEMAS = list(
    dict.fromkeys(command.config for command in COMMANDS.values() if command.config)
)  # in a fixed order, for tests in several processes


def printed(capsys, *words):
    capsys.readouterr()
    assert cli.main(words) == 0
    return capsys.readouterr().out


def test_help_and_version_have_several_spellings(capsys):
    assert printed(capsys, "help") == printed(capsys, "--help") == printed(capsys, "-h")
    assert printed(capsys, "help", "knn") == printed(capsys, "knn", "--help")
    for word in ("version", "--version", "-V"):
        assert printed(capsys, word) == f"fastmoco {__version__}\n"


def test_help_of_a_preset_lists_what_it_sets(capsys):
    text = printed(capsys, "train", "--help", "experiment=moco_v1", "moco.dim=64")
    assert printed(capsys, "help", "train", "experiment=moco_v1", "moco.dim=64") == text
    found = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert ["moco.temperature=0.07", "default:", "0.2"] in found
    assert ["moco.dim=64", "default:", "128"] in found
    assert not any(one[0].startswith("moco.queue_size") for one in found)
    assert cli.main(["help", "train", "experiment=moco_v9"]) == 2


def test_options_that_matter_first_come_first():
    lines = command_help(COMMANDS["train"])
    first = [line for line in lines if line.startswith("  ")][len(COMMANDS["train"].examples)]
    assert first.startswith("  data.train=null ")
    assert sum(line.startswith("  moco.dim=") for line in lines) == 1


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_examples_are_commands_that_parse(command):
    for example in command.examples:
        words = shlex.split(example, comments=True)
        if words[0] == "fastmoco" and words[1] != "help" and "--multirun" not in words:
            name, options = words[1], [w for w in words[2:] if "=" in w]
            schema = TrainConfig if name == "sweep" else COMMANDS[name].config
            own = [w for w in options if name != "sweep" or not w.startswith("scale=")]
            assert schema is None or load_config(schema, quote_values(schema, own))
    known = [key for key, _, _ in describe(command.config)] if command.config else []
    assert set(command.first) <= set(known)
    assert len(command.first) <= 10


@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_preset_has_one_line(schema):
    lines = list(presets_lines(schema))
    known = [name for group in preset_groups(schema).items() for name in preset_names(*group)]
    told = [line for line in lines if line.startswith("  ") and line.endswith(".")]
    assert [line.split()[0] for line in told] == known
    assert all(len(line) <= WIDTH for line in lines)


def test_other_names_lead_to_options_that_exist():
    known = {key for schema in SCHEMAS for key, _, _ in describe(schema)}
    known |= {group for schema in SCHEMAS for group in preset_groups(schema)}
    assert {own for names in OTHER_NAMES.values() for own in names.split()} <= known
    values = {v for schema in SCHEMAS for _, kind, _ in describe(schema) for v in kind.split("|")}
    assert set(OTHER_VALUES.values()) <= values


COMPLETED = """
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_fastmoco 2> /dev/null; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_in_bash():
    cases = {
        "fastmoco noi": "noise-table",
        "fastmoco train moco.temp": "moco.temperature=",
        "fastmoco train experiment = moco_v1": "moco_v1 moco_v1_1gpu",
        "fastmoco train precision =": "auto float32 fp16 bf16",
        "fastmoco train data.train =": "",  # file names, by bash itself
        "fastmoco knn runs/fi": "",
    }
    script = completion("bash") + "".join(COMPLETED.format(words=words) for words in cases)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.stdout.splitlines() == list(cases.values())


@pytest.mark.parametrize("shell", SCRIPTS)
def test_each_script_has_all_words(shell):
    script = completion(shell)
    assert all(name in script for name in COMMANDS)
    assert " ".join(words_of(TrainConfig)) in script


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("wrong"), 2, "wrong"),
        (ValueError("damaged"), 1, "damaged"),
        (FileNotFoundError(2, "No such file or directory", "a.beton"), 2, "a.beton: no such file"),
        (IsADirectoryError(21, "Is a directory", "photos"), 2, "photos: is a directory"),
        (PermissionError(13, "Permission denied", "a"), 2, "a: permission denied"),
        (OSError(28, "No space left on device", "a"), 1, "a: no space left on device"),
        (MemoryError(), 1, "out of memory (MemoryError); give a smaller global_batch_size"),
        (RuntimeError("x: can't allocate memory: 9 B. More"), 1, "allocate memory: 9 B); give"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, line):
    def run(*_):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "verify", Command(name="verify", summary="", run=run))
    assert cli.main(["verify"]) == code
    (shown,) = capsys.readouterr().err.splitlines()
    assert line in shown


def test_an_error_of_a_file_names_the_option(capsys, monkeypatch):
    def run(*_):
        raise FileNotFoundError(2, "No such file or directory", "granted.csv")

    monkeypatch.setattr(Command, "__call__", run)
    assert cli.main(["verify", "out=a.beton", "labels=granted.csv"]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown == "fastmoco: labels=granted.csv: no such file or directory"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run(*_):
        raise RuntimeError("shapes disagree")

    monkeypatch.setitem(cli.COMMANDS, "verify", Command(name="verify", summary="", run=run))
    with pytest.raises(RuntimeError, match="shapes disagree"):
        cli.main(["verify"])


def run_words(monkeypatch, *words, run=lambda words, _: " ".join(words), arguments=()):
    """Run a command that prints its arguments."""
    command = Command(name="verify", summary="", arguments=arguments, run=run)
    monkeypatch.setitem(cli.COMMANDS, "verify", command)
    return cli.main(["verify", *words])


WITH_HOME = {
    "~/set.beton": "HOME/set.beton",
    "data.train=~/set.beton": "data.train=HOME/set.beton",
    'data.train="~/a b"': 'data.train="HOME/a b"',
    "label_noise=~/wrong.csv:noisy": "label_noise=HOME/wrong.csv:noisy",
    "run_dir=~/a,~/b": "run_dir=HOME/a,HOME/b",
    "runs=[~/a,'~/b']": "runs=[HOME/a,'HOME/b']",
    "~/train-{0..3}.tar": "HOME/train-{0..3}.tar",
    "~optimizer": "~optimizer",  # Hydra's deletion
    "out=a~/b": "out=a~/b",
    "out=./~/b": "out=./~/b",
    "policy=~": "policy=~",
}


@pytest.mark.parametrize("word", WITH_HOME)
def test_the_home_folder_is_known_in_every_path(monkeypatch, word):
    monkeypatch.setenv("HOME", "/a,b/\\1 me")
    assert expand_home([word]) == [WITH_HOME[word].replace("HOME", "/a,b/\\1 me")]


def test_the_command_line_expands_the_home_folder(capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    assert run_words(monkeypatch, "~/a", "b", arguments=("SRC", "DST.beton")) == 0
    assert capsys.readouterr().out == "/me/a b\n"


def test_a_user_without_a_home_folder_is_told(capsys, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert run_words(monkeypatch, "out=~/x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastmoco: out=~/x: ~ is no folder, since HOME is not set")


def test_head_may_close_the_pipe(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_words(monkeypatch, run=lambda *_: "result") == 0
        assert cli.main(["--help"]) == cli.main(["version"]) == 0


def test_a_result_that_cannot_be_written_is_an_error(capsys, monkeypatch):
    full = open("/dev/full", "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", full)
    assert run_words(monkeypatch, run=lambda *_: "result") == 1
    assert capsys.readouterr().err == "fastmoco: No space left on device\n"
    with pytest.raises(OSError, match="space"):
        full.close()


def test_a_caller_keeps_its_warnings_and_streams(monkeypatch):
    before = warnings.showwarning, sys.stdout, sys.stderr
    assert run_words(monkeypatch) == 0
    assert (warnings.showwarning, sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(("rank", "waited", "said"), [(0, [], 1), (1, [cli.FIRST_RANK_SECONDS], 0)])
def test_other_ranks_let_the_first_one_say_it(monkeypatch, capsys, rank, waited, said):
    """torchrun ends all processes as soon as one has ended."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    times = []
    monkeypatch.setattr(cli.time, "sleep", times.append)
    assert cli.main(["trian"]) == 2
    assert times == waited
    assert capsys.readouterr().err.count("did you mean train?") == said
