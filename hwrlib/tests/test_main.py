"""The command line: what it prints, what it writes, and how it fails."""

import contextlib
import datetime
import functools
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

import hwrlib
from hwrlib.__main__ import main
from hwrlib.alphabet import Alphabet
from hwrlib.data import load_lines
from hwrlib.model import CRNN, weights_version
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.tests.conftest import untrained
from hwrlib.tests.test_recognizer import page


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    untrained(width_divisor=8.0).save_pretrained(folder)
    return str(folder)


def save_images(folder, count):
    """The first images of the sample, as files, and their rows."""
    rows = load_lines("validation", "sample").select(range(count))
    for k, image in enumerate(rows["image"]):
        image.save(folder / f"{k}.png")
    return rows


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    save_images(folder, 2)
    return folder


@pytest.fixture
def read(weights):
    def run(*arguments):
        return main(["read", "--weights", weights, "--decoder", "greedy", "--precision", "fp32", *map(str, arguments)])

    return run


def picture(*rows):
    return Image.fromarray(page(*rows))


def test_read_without_an_argument_reads_a_picture_that_one_can_look_at_and_says_no_more(capsys):
    assert main(["read", "--precision", "fp32"]) == 0
    note = f"No image given: this is the text of {hwrlib.SAMPLE / 'line.png'} (synthetic).\n"
    assert capsys.readouterr() == ("The baker's oldest recipe calls\n", note)  # a first reading that is right
    assert (hwrlib.SAMPLE / "line.png").is_file()


def test_read_prints_one_text_a_line_with_its_name(read, images, tmp_path, capsys):
    assert read(images, images / "0.png") == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(images / name) for name in ("0.png", "1.png", "0.png")]
    assert rows[0][1:] == rows[2][1:]
    assert read(images / "0.png") == 0 and "\t" not in capsys.readouterr().out
    picture(80, 200).save(tmp_path / "a\tb\nc.png")
    (tmp_path / "d\ne.png").write_bytes(b"no image")
    assert read(tmp_path) == 1
    out, err = capsys.readouterr()
    assert [row.split("\t")[0] for row in out.splitlines()] == [str(tmp_path / r"a\tb\nc.png")] * 2
    assert err.startswith(f"hwrlib: {tmp_path}/d\\ne.png: ") and len(err.splitlines()) == 1


def test_a_page_without_writing_is_a_file_without_lines(read, tmp_path, capsys):
    path = tmp_path / "scan.tif"
    picture(80).save(path, save_all=True, append_images=[picture(), picture(80, 200)])
    assert read(path, "--format", "json") == 0
    out, err = capsys.readouterr()
    pages = [json.loads(row) for row in out.splitlines()]
    assert [made["image"] for made in pages] == [str(path), f"{path}#2", f"{path}#3"]
    assert [len(made["lines"]) for made in pages] == [1, 0, 2]
    assert pages[2]["lines"][0]["box"][1] < pages[2]["lines"][1]["box"][1]
    assert err == f"hwrlib: {path}#2: no writing was found\n"
    assert read(path, "--format", "alto") == 1 and "give --output" in capsys.readouterr().err
    strip = tmp_path / "strip.png"  # so wide that it is a line
    picture().resize((900, 100)).save(strip)
    assert read(strip) == 0 and capsys.readouterr() == ("\n", f"hwrlib: {strip}: no writing was found\n")
    for name in ("text", "alto"):
        assert read(path, "--format", name, "--output", tmp_path / name, "--as", "page") == 0
    assert (tmp_path / "text" / "scan.tif-2.txt").read_text() == ""
    assert "<TextLine" not in (tmp_path / "alto" / "scan.tif-2.alto.xml").read_text()
    picture(80).save(tmp_path / "a.pdf")
    capsys.readouterr()
    assert read(tmp_path / "a.pdf") == 0 and len(capsys.readouterr().out.splitlines()) == 1


def test_what_cannot_be_read_never_ends_or_would_overwrite_pages_is_said_in_one_line(read, images, tmp_path, capsys):
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    bad = [*(str(tmp_path / f"{name}.png") for name in ("program", "pipe", "none")), "/dev/zero"]
    assert read(*bad, images / "0.png") == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{images / '0.png'}\t") and len(out.splitlines()) == 1
    for said, name in zip(err.splitlines(), bad, strict=True):
        assert said.startswith("hwrlib: ") and name in said
    refused = [((images, images / "0.png", "--output", tmp_path / "out"), "2 files called 0.png")]
    (tmp_path / "empty").mkdir()
    refused += [((images, "--format", "alto"), "give --output"), ((tmp_path / "empty",), "empty")]
    refused += [((images, "--weights", tmp_path / "no"), str(tmp_path / "no"))]
    for arguments, reason in refused:
        assert read(*arguments) == 1
        err = capsys.readouterr().err
        assert reason in err and len(err.splitlines()) == 1


def test_files_written_beside_their_pages_are_no_pages_and_a_name_that_is_no_utf_8_is_spelt_out(read, tmp_path, capsys):
    try:
        picture(80).save(os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    for _ in range(2):
        assert read(tmp_path, "--output", tmp_path, "--format", "pdf", "--as", "line") == 0
        assert capsys.readouterr().out == f"{tmp_path}/caf\\xe9.png.pdf\n"


def test_standard_input_is_read_and_closed_ones_are_said(read, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((images / "1.png").read_bytes())))
    assert read("-", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["image"] == "-"
    monkeypatch.setattr(sys, "stdin", None)
    assert read("-") == 1
    monkeypatch.setattr(sys, "stdout", None)
    assert read(images) == 1 and read(images, "--output", tmp_path) == 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert read("-") == 1
    assert len(list(tmp_path.glob("*.txt"))) == 2
    monkeypatch.undo()
    assert [err.split()[-1] for err in capsys.readouterr().err.splitlines()] == ["read", "--output"]


@contextlib.contextmanager
def closed_pipe(monkeypatch):
    """Standard output as after `| head -1` has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        yield


def test_results_come_one_file_at_a_time_until_nobody_reads_them_or_ctrl_c(read, images, tmp_path, monkeypatch, capfd):
    seen, reading = [], Recognizer.read_page

    def read_page(self, *arguments):
        seen.append(len((tmp_path / "out").read_text().splitlines()))
        if len(seen) > 2:
            raise KeyboardInterrupt
        return reading(self, *arguments)

    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(Recognizer, "read_page", read_page)
        monkeypatch.setattr(sys, "stdout", out)
        assert (read(images), read(images)) == (0, 130)
    assert seen == [0, 1, 2]
    monkeypatch.setattr(Recognizer, "read_page", reading)
    with closed_pipe(monkeypatch):
        assert read(images) == 141
    assert capfd.readouterr().err == ""


def test_help_the_server_and_reading_start_without_what_they_do_not_need():
    code = "import sys, hwrlib.__main__, hwrlib.app.server as _; print('torch' in sys.modules); "
    code += "import hwrlib.archive.bulk, hwrlib.app.app as _; print('datasets' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
    assert all(hasattr(hwrlib, name) for name in hwrlib.__all__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    rows = load_lines("validation", "sample").select(range(4))
    rows = rows.add_column("scan", ["grey", "bin", "grey", "bin"])
    for split in ("train", "validation"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_evaluate_reports_and_names_what_cannot_be_read(weights, folder, tmp_path, capsys, monkeypatch):
    report, table = tmp_path / "new" / "report.json", tmp_path / "new" / "readings.csv"
    arguments, began = ["evaluate", "--data", str(folder), "--weights", weights], datetime.date.today().isoformat()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "all: 4 lines: CER" in out and "grey: 2 lines" in out
    with closed_pipe(monkeypatch):  # nobody reads what is printed, yet the files are written
        assert main([*arguments, "--report", str(report), "--predictions", str(table)]) == 141
    scores = json.loads(report.read_text())
    about = {"data": str(folder), "split": "validation", "decoder": "greedy", "weights": weights_version(weights)}
    assert about == {name: scores[name] for name in about}
    assert began <= scores["date"] <= datetime.date.today().isoformat()
    readings = pd.read_csv(table, keep_default_na=False)
    assert scores["all"]["cer"]["rate"] == readings.errors.sum() / readings.characters.sum()
    assert list(readings.reference) == load_lines("validation", str(folder))["text"][:]
    (place := tmp_path / "validation").mkdir()
    texts = save_images(place, 4)["text"][:]
    pd.DataFrame({"file_name": [f"{k}.png" for k in range(4)], "text": texts}).to_csv(place / "metadata.csv")
    (place / "1.png").write_bytes((place / "1.png").read_bytes()[:-2000])  # its header is whole
    Image.new("L", (50, 400), 255).save(place / "2.png")  # decoded, but no line
    assert main(["evaluate", "--data", str(tmp_path), "--weights", weights, "--predictions", str(table)]) == 1
    assert list(pd.read_csv(table).id) == [0, 3]
    out, err = capsys.readouterr()
    assert "all: 2 lines: CER" in out
    assert ["row 1" in err, "row 2" in err, len(err.splitlines())] == [True, True, 2]


def test_train_makes_its_settings_from_flags_starts_as_told_and_ends_its_process_group(folder, tmp_path, monkeypatch):
    trained = []

    def make_trainer(start, rows, held_out, output, settings, **options):
        call = SimpleNamespace(start=start, rows=rows, held_out=held_out, settings=settings, done=[], **options)
        trained.append(call)
        ending = SimpleNamespace(end_training=lambda: call.done.append("end_training"))
        return SimpleNamespace(run=lambda: call.done.append("run"), accelerator=ending)

    monkeypatch.setattr("hwrlib.training.make_trainer", make_trainer)
    texts, init = "".join(load_lines("train", folder)["text"]), ["--init", str(tmp_path / "start")]
    start = CRNN(Alphabet("".join(sorted(set(texts)))), 3.0, {"greedy": [0.5, 1.5]})
    start.save_pretrained(tmp_path / "start")
    narrow = ["--width-divisor", "2"]
    arguments = ["train", "--data", str(folder), "--output", str(tmp_path / "run")]
    more = ["--extra", str(folder), "--extra", "sample", "--replay", "sample", "--repeat", "2", "--skip-bad-rows"]
    flags = ["--learning-rate", "1e-4", "--minutes", "2.5", "--schedule", "hold", "--frozen", "--precision", "bf16"]
    others = ((2, narrow), (3, init), (3, init + narrow))
    for seed, options in ((1, []), (1, [*more, *flags, "--preset", "personal"]), *others):
        assert main([*arguments, "--seed", str(seed), *options]) == 0
    assert [call.done for call in trained] == [["run", "end_training"]] * 5
    assert [call.start.width_divisor for call in trained] == [1.0, 1.0, 2.0, 3.0, 2.0]
    first, again, other = (call.start.fc.weight for call in trained[:3])
    assert torch.equal(first, again) and not torch.equal(first, other)  # the seed decides the first weights
    for call in trained[3:]:  # but what it is told to start from brings its own, alphabet and calibration
        assert call.start.alphabet == start.alphabet and call.start.calibration == {"greedy": [0.5, 1.5]}
        assert torch.equal(call.start.fc.weight, start.fc.weight)
    wanted = {"learning_rate": 1e-4, "minutes": 2.5, "schedule": "hold", "frozen": True, "precision": "bf16", "seed": 1}
    assert vars(trained[1].settings) == vars(PRESETS["personal"]) | wanted
    assert vars(trained[0].settings) == vars(PRESETS["recipe"]) | {"seed": 1}
    assert (trained[1].repeat, trained[1].skip_bad, [len(rows) for rows in trained[1].extra]) == (2, True, [4, 507])
    assert len(trained[1].replay_rows) == 507 and trained[0].replay_rows is None
    assert trained[0].rows["text"][:] == trained[0].held_out["text"][:] == load_lines("train", folder)["text"][:]


def test_only_train_offers_to_leave_out_rows(weights, tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.png,one\n")
    data = ["--data", str(tmp_path)]
    for command in (["evaluate", "--split", "train", "--weights", weights], ["train", "--output", str(tmp_path)]):
        assert main([*command, *data]) == 1
        first, advice, *more = capsys.readouterr().err.splitlines()
        assert "row 0: the image of 'one' is missing" in first and advice.startswith("mend such rows, or take them out")
        assert more == ["hwrlib: --skip-bad-rows trains on the others"] * (command[0] == "train")


def test_train_starts_from_weights_resumes_and_says_what_is_wrong(weights, folder, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--data", str(folder), "--init", weights, "--output", str(run)]
    arguments += ["--batch-size", "2", "--precision", "fp32", "--augmentation", "0"]
    assert main([*arguments, "--epochs", "1"]) == 0
    assert CRNN.from_pretrained(run / "best").width_divisor == 8.0
    assert main([*arguments, "--epochs", "2", "--resume"]) == 0
    assert list(pd.read_csv(run / "history.csv").epoch) == [1, 2]
    capsys.readouterr()
    file = str(next(folder.glob("train*.parquet")))
    wrong = [("--epochs", "1", "resume it"), ("--batch-size", "0", "batch_size"), ("--width-divisor", "9", "1 to 8")]
    for flag, value, reason in (*wrong, ("--data", file, "one file")):
        assert main([*arguments, flag, value]) == 1
        assert reason in capsys.readouterr().err.splitlines()[-1]
    for flag, value in (("--epochs", "abc"), ("--schedule", "sideways"), ("--preset", "none"), ("--speed", "9")):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, flag, value])
        assert flag in capsys.readouterr().err.splitlines()[-1]


def test_the_app_is_served_here_alone_or_with_a_token_and_to_so_many_at_once(weights, tmp_path, monkeypatch, capsys):
    voila, web = pytest.importorskip("voila.app"), pytest.importorskip("tornado.web")
    served, kernels = [], ["one"]
    monkeypatch.setattr(voila.Voila, "launch_instance", classmethod(lambda cls, argv: served.append((cls, argv))))
    for name in ("PYTHONPATH", "HWR_LINES", "HWR_WEIGHTS"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
    monkeypatch.chdir(tmp_path)
    assert main(["app", "--port", "9000", "--weights", weights, "--no-browser"]) == 0
    ((_, (notebook, *options)),) = served
    assert [cell["cell_type"] for cell in json.loads(Path(notebook).read_text())["cells"]] == ["markdown", "code"]
    assert {"--port=9000", "--Voila.ip=127.0.0.1", "--no-browser"} <= set(options)
    assert "token" not in " ".join(options) + capsys.readouterr().out
    assert os.environ["HWR_LINES"] == str(Path("my_lines").resolve()) and os.environ["HWR_WEIGHTS"] == weights
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(Path(hwrlib.__file__).parent.parent)
    assert main(["app", "--host", "0.0.0.0"]) == main(["app", "--host", "0.0.0.0"]) == 0
    tokens = {option for _, argv in served for option in argv if option.startswith("--token=")}
    printed = capsys.readouterr().out
    assert len(tokens) == 2 and all(len(token) > 40 and f"/?{token[2:]}" in printed for token in tokens)
    assert "//0.0.0.0" not in printed  # no address that a browser elsewhere could open
    assert main(["app", "--visitors", "2"]) == 0
    _, _, _, (server, _) = served
    handler = SimpleNamespace(kernel_manager=SimpleNamespace(list_kernel_ids=lambda: kernels), xsrf_token="")
    server().let_in(handler, notebook=None, cwd="")
    kernels.append("two")
    with pytest.raises(web.HTTPError, match="All 2 places are taken"):
        server().let_in(handler, notebook=None, cwd="")


def test_without_voila_the_app_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "voila", None)
    assert main(["app"]) == 1 and "the app needs Voila: pip install" in capsys.readouterr().err


def test_the_commands_of_the_readmes_are_understood(monkeypatch):
    for name in ("read", "train", "evaluate", "app", "archive", "export"):
        command = getattr(hwrlib.__main__, name)
        monkeypatch.setattr(f"hwrlib.__main__.{name}", functools.wraps(command)(lambda options: 0))
    root = Path(hwrlib.__file__).parent.parent
    for text in ((root / name).read_text("utf-8") for name in ("README.md", "hwrlib/weights/README.md")):
        commands = re.findall(r"python -m hwrlib ([a-z][^`#|\n]*)", text)
        assert len(commands) > 2 and [main(shlex.split(command)) for command in commands] == [0] * len(commands)
