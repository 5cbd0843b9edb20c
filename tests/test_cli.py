import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from pullback import cli, models
from pullback.commands import demo, geodesic, inputs
from pullback.curves import Curve, length
from pullback.metrics import Pullback

matplotlib.use("Agg")

COMMANDS = ("demo", "train", "encode", "geodesic", "distances", "map", "check")
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "tqdm", "sklearn", "networkx", "geomstats")
TRAIN = ["train", "digits", "--classes", "0,1", "--output-std", "0.2", "--epochs", "60"]
TRAIN += ["--rbf-epochs", "2", "--rbf-centers", "8", "--out"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model of a few epochs, by the command line."""
    folder = tmp_path_factory.mktemp("model")
    assert cli.main([*TRAIN, str(folder)]) == 0
    return folder


@pytest.fixture
def pairs(tmp_path):
    """A file of 150 pairs that are close together, so that each is solved within milliseconds."""
    start = np.random.default_rng(0).normal(size=(150, 2))
    np.savetxt(tmp_path / "pairs.csv", np.hstack([start, start + 0.05]), delimiter=",")
    return tmp_path / "pairs.csv"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def python(code: str, *, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Python code in a process of its own, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **pipes)


def flip(path: Path) -> None:
    """Damage a file: one byte in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# help


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
from pullback import cli
try:
    cli.main({[*arguments, "--help"]})
except SystemExit as end:
    assert end.code == 0
print("loaded:", sorted(set(sys.modules) & set({HEAVY})))
"""
    process = python(code)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "usage: pullback" in out
    assert out.rstrip().endswith("loaded: []")


def test_help_answers_within_half_a_second():
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pullback.cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.5


def test_the_version_is_that_of_the_installed_package(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"pullback {version('pullback')}\n"


def test_the_documentation_names_every_option():
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf8")
    subparsers = next(a for a in cli.parser()._actions if a.dest == "command").choices
    assert tuple(subparsers) == COMMANDS
    for name, command in subparsers.items():
        section = re.search(rf"## pullback {name}\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
        assert section, name
        options = {option for action in command._actions for option in action.option_strings if option[:2] == "--"}
        missing = sorted(option for option in options - {"--help", "--resume"} if option not in section[1])
        assert missing == [], name


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("map nowhere", "neither a folder nor a shipped model"),
        ("map {tmp}", "no model.safetensors"),
        ("map mnist012 --out map.pdf", "ends in .png"),
        ("map mnist012 --codes none.npz --out {tmp}/map.png", "no file none.npz"),
        ("map mnist012 --codes {tmp}/foreign.npz --out {tmp}/map.png", "no array named 'codes'"),
        ("map mnist012 --codes {tmp}/wide.npz --out {tmp}/map.png", "wanted floats (n, 2)"),
        ("map mnist012 --codes {tmp}/text.csv --out {tmp}/map.png", "cannot be read"),
        ("map mnist012 --bounds 1 0 0 1 --out {tmp}/map.png", "left < right"),
        ("encode mnist012 nowhere.npy --out {tmp}/c.npz", "nowhere.npy"),
        (
            "encode mnist012 text.csv --out {tmp}/c.npz",
            "walking, blood-cells, or a .npy or .npz file",
        ),
        ("encode mnist012 digits --out {tmp}/c.npz", "shape"),
        ("encode mnist012 digits --classes 11 --out {tmp}/c.npz", "11"),
        ("train {tmp}/plain.npy --classes 0,1 --out {tmp}/m", "labels"),
        ("geodesic mnist012 --pairs none.csv --out {tmp}/g", "none.csv"),
        ("geodesic mnist012 --pairs {tmp}/text.csv --out {tmp}/g", "text.csv, line 2"),
        ("geodesic mnist012 --pairs {tmp}/text.csv --codes {tmp}/wide.npz --out {tmp}/g", "--codes goes with --random"),
        ("geodesic mnist012 --pairs none.csv --out {tmp}/g", "wanted a CSV file, a pair a row, start_0,start_1,end_0"),
        ("geodesic mnist012 --pairs {tmp} --out {tmp}/g", "wanted a CSV file"),
        ("geodesic mnist012 --random 3 --codes {tmp}/damaged.npz --out {tmp}/g", "damaged.npz cannot be read"),
        ("geodesic mnist012 --random 3 --codes {tmp} --out {tmp}/g", "no file {tmp} with codes"),
        ("geodesic mnist012 --random 3 --out {tmp}/text.csv/g", "cannot write to"),
        ("map mnist012 --out {tmp}/folder.png", "is a folder"),
        ("map mnist012 --out {tmp}/taken.png", "taken.npz is a folder"),
        ("demo --out {tmp}/text.csv", "cannot write to"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.csv").write_text("0,0,1,1\n0,zero,1,1\n")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    np.savez(tmp_path / "wide.npz", codes=np.zeros((4, 3)))
    np.save(tmp_path / "plain.npy", np.zeros((4, 3)))
    np.savez_compressed(tmp_path / "damaged.npz", codes=np.random.default_rng(0).normal(size=(99, 2)))
    flip(tmp_path / "damaged.npz")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "taken.npz").mkdir()
    assert run(*arguments.replace("{tmp}", str(tmp_path)).split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("pullback: error: ")
    assert err.count("\n") == 1
    assert message.replace("{tmp}", str(tmp_path)) in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "geodesic mnist012 --out g",
        "geodesic mnist012 --out g --random 3 --pairs p.csv",
        "geodesic mnist012 --out g --random 0",
        "geodesic mnist012 --out g --random 3 --tol -1",
        "train digits --out m --classes a,b",
        "train digits --out m --seed -1",
        "demo --seed 4294967296",
        "geodesic mnist012 --out g --random 3 --seed 0.5",
    ],
)
def test_a_command_line_that_cannot_be_read_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        run(*arguments.split())
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_seed_out_of_range_is_told_the_range(capsys):
    with pytest.raises(SystemExit, match="2"):
        run("train", "digits", "--out", "m", "--seed", 2**32)
    assert "'4294967296' is not a whole number from 0 to 4294967295" in capsys.readouterr().err
    assert cli.parser().parse_args(["demo", "--seed", "4294967295"]).seed == 2**32 - 1


@pytest.mark.parametrize("flush", ["True", "False"], ids=["while it runs", "at the end"])
@pytest.mark.parametrize("arguments", [["demo"], ["--traceback", "demo"]])
def test_a_reader_of_the_output_that_went_away_is_no_error(flush, arguments):
    code = f"""
import sys
from pullback import cli
from pullback.commands import demo
demo.run = lambda options: print("a line", flush={flush})
sys.exit(cli.main({arguments}))
"""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == cli.BROKEN_PIPE


def test_traceback_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="neither a folder"):
        run("--traceback", "map", "nowhere")


def test_a_warning_is_one_line(capsys, monkeypatch):
    import warnings

    monkeypatch.setattr(demo, "run", lambda options: warnings.warn("two\nlines", UserWarning, stacklevel=1))
    warnings.simplefilter("default")
    assert run("demo") == 0
    assert capsys.readouterr().err == "pullback: warning: two lines\n"


# pairs


def test_pairs_are_rows_of_start_and_end(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("0,1,2,3\n\n 4 ,5,6,7e0\n")
    start, end = inputs.pairs_from(str(path), 2)
    assert start.tolist() == [[0, 1], [4, 5]]
    assert end.tolist() == [[2, 3], [6, 7]]


def test_the_mark_that_spreadsheets_put_in_front_is_no_number(tmp_path):
    path = tmp_path / "pairs.csv"
    for content in ("0,1,2,3\n", "start_0,start_1,end_0,end_1\n0,1,2,3\n"):
        path.write_text(content, encoding="utf-8-sig")
        start, end = inputs.pairs_from(str(path), 2)
        assert (start.tolist(), end.tolist()) == ([[0, 1]], [[2, 3]])


def test_pairs_are_found_by_the_names_of_their_columns(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("status,end_0,end_1,start_1,start_0\nok,2,3,1,0\n")
    start, end = inputs.pairs_from(str(path), 2)
    assert (start.tolist(), end.tolist()) == ([[0, 1]], [[2, 3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,1,2,3\n0,1,2\n", "line 2: 3 columns, wanted 4"),
        ("0,1,2,3\n\n0,1,x,3\n", "line 3: 'x' is not a number"),
        ("0,1,2,nan\n", "line 1: 'nan' is not finite"),
        ("a,b,c,d\n0,1,2,3\n", "line 1: 'a' is not a number"),
        ("start_0,start_1,end_0,end_1\n1,2,3\n", "line 2: 3 columns, wanted 4"),
        ("\n", "no pairs"),
        ("start_0,start_1,end_0,end_1\n", "no pairs"),
        (b"0,1,2,3\n\xff\xfe,1,2,3\n", "pairs.csv"),
    ],
)
def test_an_unreadable_row_is_named_by_its_line(content, message, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        inputs.pairs_from(str(path), 2)


def test_random_pairs_are_reproducible_and_never_of_one_code_with_itself():
    pairs = inputs.random_pairs(3, 1000, seed=1)
    assert torch.equal(pairs, inputs.random_pairs(3, 1000, seed=1))
    assert not torch.equal(pairs, inputs.random_pairs(3, 1000, seed=2))
    assert bool((pairs[:, 0] != pairs[:, 1]).all())
    assert pairs.unique(dim=0).shape == (6, 2)


# train, encode, map


def test_a_trained_model_can_be_loaded(trained):
    assert models.load(trained).latent_dim == 2


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_training_shows_the_download(name, tmp_path, monkeypatch, capsys):
    shown = []

    def download(*_, progress=False, **__):
        shown.append(progress)
        raise ValueError("offline")

    monkeypatch.setattr(inputs.datasets, name.replace("-", "_"), download)
    assert run("train", name, "--out", tmp_path) == 2
    assert shown == [True]


@pytest.mark.parametrize(("name", "file"), [("walking", "cmu_subject07_walk"), ("blood-cells", "pbmc68k_reduced")])
def test_data_that_cannot_be_downloaded_are_asked_for_by_name(name, file, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PULLBACK_DATA", raising=False)
    assert run("train", name, "--out", tmp_path) == 2
    assert file in capsys.readouterr().err


def test_training_again_finds_the_model_there(trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert run(*TRAIN, trained) == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_training_goes_on_when_the_command_is_given_again(trained, tmp_path, monkeypatch, capsys):
    loss, n_calls = models.VAE.loss, 0

    def interrupted_in_epoch_21(*arguments, **settings):  # of 60, with 3 batches each
        nonlocal n_calls
        n_calls += 1
        if n_calls == 62:
            raise KeyboardInterrupt
        return loss(*arguments, **settings)

    monkeypatch.setattr(models.VAE, "loss", interrupted_in_epoch_21)
    assert run(*TRAIN, tmp_path) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert run("map", tmp_path, "--out", tmp_path / "map.png") == 2
    assert "interrupted" in capsys.readouterr().err
    assert run(*TRAIN, tmp_path) == 0
    assert n_calls == 62 + 3 * 40
    assert (tmp_path / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_encode_writes_codes_and_labels(trained, tmp_path):
    path = tmp_path / "deep" / "codes.npz"
    assert run("encode", trained, "digits", "--classes", "1", "--out", path) == 0
    with np.load(path, allow_pickle=False) as file:
        assert file["codes"].shape == (182, 2)
        assert file["codes"].dtype == np.float64
        assert set(file["labels"]) == {1}


def test_map_writes_a_picture_and_its_numbers(trained, tmp_path):
    path = tmp_path / "map.png"
    assert run("map", trained, "--out", path, "--resolution", 8, "--bounds", 0, 2, 0, 1) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        np.testing.assert_allclose(file["x"], np.arange(0.125, 2, 0.25))
        np.testing.assert_allclose(file["y"], np.arange(0.125, 1, 0.25))
        z = torch.tensor([file["x"][5], file["y"][2]], dtype=torch.float64)
        volume = Pullback(models.load(trained).decoder).log_volume(z)
        np.testing.assert_allclose(file["log_volume"][2, 5], volume, rtol=1e-9)


# geodesic


def test_geodesic_writes_a_table_and_the_curves(trained, tmp_path):
    folder = tmp_path / "out"
    assert run("geodesic", trained, "--random", 5, "--block", 2, "--out", folder) == 0
    rows = rows_of(folder / "geodesics.csv")
    assert [int(row["pair"]) for row in rows] == list(range(5))
    with np.load(folder / "geodesics.npz", allow_pickle=False) as file:
        arrays = dict(file)
    model = models.load(trained)
    metric = Pullback(model.decoder)
    np.testing.assert_array_equal(model.codes[arrays["indices"][:, 0]], arrays["start"])
    np.testing.assert_array_equal(arrays["nodes"][:, [0, -1]], np.stack([arrays["start"], arrays["end"]], 1))
    assert arrays["converged"].tolist() == [status in ("CONVERGED", "NON_SMOOTH") for status in arrays["status"]]
    for name in ("straight_length", "length", "length_error", "start_0", "end_1"):
        column = {"start_0": arrays["start"][:, 0], "end_1": arrays["end"][:, 1]}.get(name, arrays.get(name))
        np.testing.assert_array_equal([float(row[name]) for row in rows], column)
    assert [row["status"] for row in rows] == arrays["status"].tolist()
    solved = arrays["converged"]
    assert solved.any()
    assert (arrays["length"][solved] <= arrays["straight_length"][solved] * (1 + 1e-4)).all()
    np.testing.assert_allclose(
        length(metric, Curve(torch.from_numpy(arrays["nodes"])))[solved], arrays["length"][solved], rtol=1e-3
    )
    assert sorted(path.name for path in folder.iterdir()) == ["geodesics.csv", "geodesics.npz", "run.json"]


def test_what_geodesic_writes_can_be_its_pairs(trained, tmp_path):
    assert run("geodesic", trained, "--random", 3, "--out", tmp_path / "a") == 0
    assert run("geodesic", trained, "--pairs", tmp_path / "a" / "geodesics.csv", "--out", tmp_path / "b") == 0
    assert (tmp_path / "a" / "geodesics.csv").read_text() == (tmp_path / "b" / "geodesics.csv").read_text()


class Solver:
    """Counts the pairs that the command solves, and is interrupted after some blocks."""

    def __init__(self, monkeypatch, blocks=10**9):
        self.pairs, self.blocks, self.solve = 0, blocks, geodesic.geodesic
        monkeypatch.setattr(geodesic, "geodesic", self)

    def __call__(self, metric, start, end, **settings):
        if self.blocks == 0:
            raise KeyboardInterrupt
        self.blocks -= 1
        self.pairs += len(start)
        return self.solve(metric, start, end, **settings)


def test_an_interrupted_run_keeps_its_blocks_and_goes_on(trained, pairs, tmp_path, monkeypatch, capsys):
    command = ("geodesic", trained, "--pairs", pairs, "--block", 40, "--out")
    with monkeypatch.context() as patched:
        Solver(patched, blocks=2)
        assert run(*command, tmp_path / "a") == 130
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    assert len(rows_of(tmp_path / "a" / "geodesics.csv")) == 80
    solver = Solver(monkeypatch)
    assert run(*command, tmp_path / "a") == 0
    assert solver.pairs == 70
    assert run(*command, tmp_path / "b") == 0
    assert (tmp_path / "a" / "geodesics.csv").read_text() == (tmp_path / "b" / "geodesics.csv").read_text()
    with np.load(tmp_path / "a" / "geodesics.npz") as a, np.load(tmp_path / "b" / "geodesics.npz") as b:
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def stopped_by(stop: int, command: list[object], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that gets a signal as soon as it has finished three blocks."""
    code = f"""
import signal, sys
from pullback import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
sys.exit(cli.main({[str(part) for part in command]}))
"""
    process = python(code)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("block-*.npz"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(stop)
    out, err = process.communicate()
    assert len(list(folder.glob("block-*.npz"))) >= 3, err
    return process.returncode, out, err


def test_a_killed_run_goes_on(trained, pairs, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    command = ["geodesic", trained, "--pairs", pairs, "--out", folder]
    stopped_by(signal.SIGKILL, [*command, "--block", 1], folder)
    n_kept = len(list(folder.glob("block-*.npz")))
    assert n_kept < 150
    assert len(rows_of(folder / "geodesics.csv")) >= n_kept - 1  # the table grows with every block
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 150 - n_kept
    assert [int(row["pair"]) for row in rows_of(folder / "geodesics.csv")] == list(range(150))


def test_ctrl_c_is_one_line_and_exit_code_130(trained, pairs, tmp_path):
    folder = tmp_path / "out"
    command = ["geodesic", trained, "--pairs", pairs, "--block", 1, "--out", folder]
    code, out, err = stopped_by(signal.SIGINT, command, folder)
    assert code == 130
    assert "Traceback" not in out + err
    assert err.splitlines()[-1].startswith("pullback: interrupted")


def test_a_finished_run_is_not_solved_again(trained, tmp_path, monkeypatch, capsys):
    command = ("geodesic", trained, "--random", 3, "--out", tmp_path)
    assert run(*command) == 0
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 0
    assert "solved already" in capsys.readouterr().out
    assert run(*command, "--no-resume") == 0
    assert solver.pairs == 3


def test_a_finished_run_without_its_table_writes_it_again(trained, tmp_path, monkeypatch):
    command = ("geodesic", trained, "--random", 3, "--out", tmp_path)
    assert run(*command) == 0
    before = (tmp_path / "geodesics.csv").read_bytes()
    (tmp_path / "geodesics.csv").unlink()
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 0
    assert (tmp_path / "geodesics.csv").read_bytes() == before


@pytest.mark.filterwarnings("always::pullback._checks.PullbackWarning")
def test_a_finished_run_that_was_damaged_is_solved_again(trained, tmp_path, monkeypatch, capsys):
    command = ("geodesic", trained, "--random", 3, "--out", tmp_path)
    assert run(*command) == 0
    before = (tmp_path / "geodesics.npz").read_bytes()
    flip(tmp_path / "geodesics.npz")
    capsys.readouterr()
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 3
    out, err = capsys.readouterr()
    assert "solved already" not in out
    assert "geodesics.npz is damaged: it is made again" in err
    with np.load(tmp_path / "geodesics.npz") as file:
        assert len(file["length"]) == 3
    assert (tmp_path / "geodesics.npz").stat().st_size == len(before)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.filterwarnings("always::pullback._checks.PullbackWarning")
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_block_and_all_behind_it_are_solved_again(damage, trained, pairs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    command = ("geodesic", trained, "--pairs", pairs, "--block", 30, "--out", folder)
    with monkeypatch.context() as patched:
        Solver(patched, blocks=3)
        assert run(*command) == 130
    damage(folder / "block-000001.npz")
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 120
    assert "block-000001.npz is missing or damaged" in capsys.readouterr().err
    rows = rows_of(folder / "geodesics.csv")
    assert [int(row["pair"]) for row in rows] == list(range(150))
    np.testing.assert_allclose([float(row["start_0"]) for row in rows], np.loadtxt(pairs, delimiter=",")[:, 0])


def test_a_run_interrupted_behind_its_last_block_is_only_joined(trained, tmp_path, monkeypatch):
    command = ("geodesic", trained, "--random", 3, "--out", tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(geodesic, "_joined", interrupted)
        assert run(*command) == 130
    solver = Solver(monkeypatch)
    assert run(*command) == 0
    assert solver.pairs == 0
    assert len(rows_of(tmp_path / "geodesics.csv")) == 3


@pytest.mark.parametrize("resume", [[], ["--no-resume"]])
def test_files_of_others_are_never_touched(resume, trained, tmp_path):
    names = ("block-notes.npz", "block-12.npz", "block-000000.npz.bak", "block-0000001.npz", "other.npz")
    for name in names:
        (tmp_path / name).write_bytes(b"precious")
    for _ in range(2):
        assert run("geodesic", trained, "--random", 3, "--block", 2, "--out", tmp_path, *resume) == 0
    assert [(tmp_path / name).read_bytes() for name in names] == [b"precious"] * len(names)


@pytest.mark.parametrize("resume", [[], ["--no-resume"]])
@pytest.mark.parametrize("name", ["geodesics.npz", "geodesics.csv", "block-000000.npz"])
def test_results_without_a_record_are_refused_and_kept(name, resume, trained, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"precious")
    assert run("geodesic", trained, "--random", 2, "--out", tmp_path, *resume) == 2
    err = capsys.readouterr().err
    assert f"holds {name}, but no run.json" in err
    assert "choose another --out, or remove the file" in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"precious"}


@pytest.mark.parametrize("resume", [[], ["--no-resume"]])
def test_a_foreign_record_is_refused_and_kept(resume, trained, tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"format": "theirs"}')
    assert run("geodesic", trained, "--random", 2, "--out", tmp_path, *resume) == 2
    assert (tmp_path / "run.json").read_text() == '{"format": "theirs"}'


@pytest.mark.parametrize(("other", "what"), [(["--seed", 1], "pairs"), (["--tol", 1e-3], "tol")])
def test_another_run_in_the_same_folder_is_refused(other, what, trained, tmp_path, capsys):
    command = ("geodesic", trained, "--random", 2, "--out", tmp_path)
    assert run(*command) == 0
    before = (tmp_path / "geodesics.csv").read_text()
    assert run(*command, *other) == 2
    assert f"holds a run with other {what}" in capsys.readouterr().err
    assert (tmp_path / "geodesics.csv").read_text() == before
    assert run(*command, *other, "--no-resume") == 0


def test_another_model_in_the_same_folder_is_refused(trained, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("0,0,0.1,0.1\n")
    command = ("--pairs", tmp_path / "pairs.csv", "--out", tmp_path / "out")
    assert run("geodesic", trained, *command) == 0
    assert run("geodesic", "mnist012", *command) == 2
    assert "holds a run with other model" in capsys.readouterr().err


# demo


def test_an_interrupted_demo_does_not_say_that_it_goes_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "solution", interrupted)
    assert run("demo", "--out", tmp_path) == 130
    assert capsys.readouterr().err == "\npullback: interrupted\n"


def test_the_demo_pairs_alternate_between_two_classes_and_one():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2])
    pairs = demo.pairs_of_classes(labels, 7, seed=0)
    assert labels[pairs].tolist() == [[0, 1], [0, 0], [0, 2], [1, 1], [1, 2], [2, 2], [0, 1]]
    assert bool((pairs[:, 0] != pairs[:, 1]).all())


def test_the_demo_gives_the_threads_back(tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr(demo, "pairs_of_classes", lambda *_: during.append(torch.get_num_threads()) or 1 / 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            run("demo", "--out", tmp_path)
        assert (during, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_the_demo_writes_two_pictures_and_the_table_that_it_prints(tmp_path, capsys):
    assert run("demo", "--pairs", 3, "--out", tmp_path / "demo") == 0
    out = capsys.readouterr().out
    rows = rows_of(tmp_path / "demo" / "geodesics.csv")
    assert [(row["start_class"], row["end_class"]) for row in rows] == [("0", "1"), ("0", "0"), ("0", "2")]
    for row in rows:
        assert row["status"] == "CONVERGED"
        assert float(row["ratio"]) == float(row["straight_length"]) / float(row["length"])
        assert float(row["ratio"]) > 1 - 1e-4
        assert f"{float(row['length']):.4g}" in out
    for name in ("magnification.png", "interpolation.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
