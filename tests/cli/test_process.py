"""What only a whole process shows: start-up, signals, and an output that nobody reads."""

import io
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from door import ROOT, TINY, shell
from utils.cli.output import Steady, steady
from utils.runs.results import find_runs

LONG = [word for word in TINY if not word.startswith("epochs")] + ["epochs=2000"]


def test_help_imports_nothing_heavy():
    """The whole second that Hydra takes, and torch's two: whoever asks shouldn't wait."""
    code = (
        "import sys, utils.cli.script; print(sorted({'torch', 'hydra', 'wandb'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "evaluate.py", "x.pt", "-h"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Examples:" in done.stdout
    assert " torch\n" not in done.stderr and " hydra\n" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], "Hydra 1."),
        (["--hydra-help"], "Hydra"),
        (["--cfg", "job", "x.pt"], "ckpt: x.pt"),
        (["x.pt", "--cfg", "hydra", "-p", "hydra.job.name"], "evaluate"),
        (["-sc", "query=bash"], "device="),
        (["-cn", "train", "--help"], "python train.py"),
    ],
)
def test_what_only_asks_is_answered_by_hydra(words, said):
    line = "python evaluate.py dev"
    done = shell("evaluate", *words, env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert done.returncode == 0 and said in done.stdout, done.stderr


OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in ("SIGHUP", "SIGINT")]


@pytest.mark.parametrize("name", ["SIGTERM", *OTHERS])
def test_a_signal_is_told_apart_by_the_exit_code_and_the_run_goes_on(tmp_path, name):
    words = [sys.executable, "train.py", *LONG, f"runs_dir={tmp_path}"]
    number, pipe = getattr(signal, name), subprocess.PIPE
    # Whoever runs these tests under nohup has it ignored by all their children.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=heard
    ) as process:
        while "epoch 1/" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    assert "everything is saved: the same command goes on from here" in err
    assert list(tmp_path.glob("*/resume.pt"))


ALSO = [pytest.param(name, marks=pytest.mark.long) for name in ("a full disk", "none")]


@pytest.mark.parametrize("outlet", ["a closed pipe", *ALSO])
def test_an_output_that_nobody_takes_stops_no_training(tmp_path, outlet):
    words = [sys.executable, "train.py", *TINY, f"runs_dir={tmp_path}"]
    if outlet == "a full disk":
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
        code, err = done.returncode, done.stderr
    elif outlet == "none":  # it was closed before this process began
        closed = ["sh", "-c", 'exec "$@" >&-', "sh", *words]
        done = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        code, err = done.returncode, done.stderr
    else:
        pipe = subprocess.PIPE
        with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            process.stdout.readline()
            process.stdout.close()
            err, code = process.stderr.read(), process.wait()
    assert code == 0 and err == ""
    assert len(find_runs(tmp_path)) == 1


def test_a_stream_that_failed_once_stays_silent(tmp_path):
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        stream = Steady(full)
        for _ in range(3):
            print("x" * 10_000, file=stream, flush=True)
        assert os.path.samefile(f"/dev/fd/{full.fileno()}", os.devnull)


def test_a_line_is_written_at_once_with_its_end():
    class Outlet(io.StringIO):
        def write(self, text):
            pieces.append(text)
            return super().write(text)

    pieces: list[str] = []
    stream = Steady(Outlet())
    print("job", 1, file=stream)
    print("and", end=" ", flush=True, file=stream)
    print("more", file=stream)
    assert pieces == ["job 1\n", "and ", "more\n"]


def test_a_name_that_the_locale_cannot_spell_is_printed_all_the_same(monkeypatch):
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="surrogateescape")
        monkeypatch.setattr(sys, name, stream)
    steady()
    print("läufe", flush=True)
    assert sys.stdout.buffer.getvalue() == rb"l\xe4ufe" + b"\n"
