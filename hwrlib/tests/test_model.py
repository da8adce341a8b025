"""The network: its size, its lengths, a batch that reads like single lines, files that are safe to load, and ONNX."""

import json
import os
import pickle
import shutil
import string
import sys
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch

from hwrlib import WEIGHTS
from hwrlib.__main__ import main
from hwrlib.alphabet import IAM, REFERENCE, Alphabet
from hwrlib.cpu import tile
from hwrlib.ctc import frames, greedy
from hwrlib.model import CRNN, AuxiliaryHead, export_onnx, load_reference_checkpoint, weights_version
from hwrlib.tests.conftest import Malicious, untrained

SMALL = Alphabet("ab")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def model():
    return untrained()


@torch.inference_mode()
def test_a_batch_reads_like_its_lines_alone_whatever_lies_beyond_them_and_what_does_not_fit_is_refused(model):
    torch.manual_seed(1)
    widths = torch.tensor([64, 101, 8, 87, 120, 42, 11, 119])
    images, lengths = torch.rand(8, 1, 128, 143) * 2 - 1, frames(widths)
    together = model(images, widths)
    assert any(reading.text for reading in greedy(together, lengths, IAM))
    for k, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        alone = model(images[k : k + 1, ..., :width])[0]
        assert len(alone) == length and torch.allclose(together[k, :length], alone, atol=1e-4)
    for shape in ((1, 1, 64, 100), (1, 3, 128, 100), (1, 128, 100)):
        with pytest.raises(ValueError, match="128"):
            model(torch.ones(shape))
    with pytest.raises(ValueError, match="5 px wide"):
        model(torch.ones(2, 1, 128, 64), torch.tensor([64, 5]))


def test_the_auxiliary_head_has_its_own_say_and_leaves_the_network_as_it_was(model):
    images, widths = torch.rand(2, 1, 128, 42) * 2 - 1, torch.tensor([42, 11])
    with torch.inference_mode():
        main, auxiliary = AuxiliaryHead(model).eval()(images, widths)
        assert torch.equal(main, model(images, widths))
    assert auxiliary.shape == main.shape and auxiliary.exp().sum(-1) == pytest.approx(torch.ones(main.shape[:2]))


@pytest.fixture
def folder(tmp_path):
    """A folder of weights to break."""
    CRNN(SMALL).save_pretrained(tmp_path)
    return tmp_path


def refusal(load, source):
    """The one line that says why weights are refused."""
    with pytest.raises(ValueError) as error:
        load(source)
    text = str(error.value)
    assert text.startswith(str(source)) and text.isprintable() and len(text) < 600
    return text


def test_save_and_load_keep_all_and_the_shipped_weights_have_a_calibration_for_every_decoder(tmp_path):
    kept = CRNN(Alphabet('xyz é"'), width_divisor=2.5).eval()
    kept.calibration = {"greedy": [0.25, 1.5]}  # what the network is now counts, not what it was made with
    kept.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["alphabet"] == 'xyz é"'
    loaded = CRNN.from_pretrained(str(tmp_path))
    assert (loaded.alphabet, loaded.width_divisor) == (kept.alphabet, 2.5)
    assert loaded.calibration == {"greedy": [0.25, 1.5]} and not loaded.training
    assert all(map(torch.equal, kept.state_dict().values(), loaded.state_dict().values()))
    assert weights_version(tmp_path) == weights_version(shutil.copytree(tmp_path, tmp_path / "copy"))
    assert len({weights_version(tmp_path), weights_version(WEIGHTS)}) == 2
    shipped = CRNN.from_pretrained(WEIGHTS)  # in float16 but for what the text hangs on
    assert shipped.alphabet == IAM and sum(p.numel() for p in shipped.parameters()) == 9_141_712
    assert set(shipped.calibration) == {"greedy", "beam", "language"}
    assert all(slope > 0 for _, slope in shipped.calibration.values())
    stored = safetensors.torch.load_file(WEIGHTS / "model.safetensors")
    halves = {name for name, tensor in stored.items() if tensor.dtype == torch.float16}
    assert halves == {name for name, p in shipped.named_parameters() if p.ndim > 1 and name != "cnn.0.weight"}


def test_a_name_on_the_hub_is_fetched_and_checked_as_a_folder_is_but_no_path(monkeypatch, folder, tmp_path):
    asked = []
    fetch = lambda name, file, **options: asked.append((name, file, options)) or str(folder / file)  # noqa: E731
    monkeypatch.setattr("hwrlib.model.hf_hub_download", fetch)
    assert CRNN.from_pretrained("owner/name-1.0", revision="v1").alphabet == SMALL
    assert asked == [("owner/name-1.0", file, {"revision": "v1"}) for file in ("config.json", "model.safetensors")]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: .*no such file"):
        CRNN.from_pretrained("owner/name-1.0")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for source in ("nowhere", "a/b/c", "/nowhere", "./nowhere", "../nowhere", __file__):  # none is sent to the Hub
        with pytest.raises((FileNotFoundError, ValueError), match=source):
            CRNN.from_pretrained(source)


def test_a_config_that_is_none(folder):
    contents = {"Expecting value": b"weights", "utf-8": b'{"alphabet": "\xe9"}', "list indices": b'["alphabet"]'}
    contents |= {"no 'alphabet' in it": b"{}", "recursion": b"[" * 150_000, "200,000 bytes": b"a" * 1_000_000}
    wrong = {
        "alphabet": ["aba", "", ["a", "b"], None, "a\x1b", "a\ud800"],
        "width_divisor": [0, 8.01, -2, 10**400, float("nan"), "2", None, [2]],
        "calibration": [["greedy"], *({"greedy": value} for value in (1, [1, 2, 3], "12", [0, float("nan")]))],
    }
    settings = [{"alphabet": "ab", "width_divisor": 2.5, name: value} for name in wrong for value in wrong[name]]
    reasons = [*contents.items(), *(("config.json", json.dumps(some).encode()) for some in settings)]
    for reason, content in reasons:
        (folder / "config.json").write_bytes(content)
        text = refusal(CRNN.from_pretrained, folder)
        assert "config.json" in text and reason in text


def test_weights_of_other_tensors_cut_off_missing_or_none_are_refused(folder):
    file = folder / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    broken = {
        "Missing": {name: tensor for name, tensor in whole.items() if name != "fc.bias"},
        "Unexpected": whole | {"cnn.99.weight": torch.ones(3)},
        "size mismatch": whole | {"fc.bias": torch.ones(4)},
        "fc.bias has values that are not finite": whole | {"fc.bias": torch.tensor([0, float("nan"), 0])},
        "cnn.1.running_var has": whole | {"cnn.1.running_var": torch.full((64,), float("inf"))},
        "Missing key": {"\x1b[2J\nx" * 500: torch.ones(1)},  # a name that must not reach the terminal raw
    }
    for reason, tensors in broken.items():
        safetensors.torch.save_file(tensors, file)
        text = refusal(CRNN.from_pretrained, folder)
        assert reason in text and "model.safetensors" in text
    safetensors.torch.save_file(whole, file)
    assert CRNN.from_pretrained(folder).alphabet == SMALL
    whole = file.read_bytes()
    for content in (b"", whole[:1000], whole[: len(whole) // 2], b"\xff" * 100, LFS):
        file.write_bytes(content)
        text = refusal(CRNN.from_pretrained, folder)
        assert "model.safetensors" in text and ("git lfs pull" in text) == (content is LFS)
    file.unlink()
    assert "no such file" in refusal(CRNN.from_pretrained, folder)
    os.mkfifo(file)  # to read a pipe would wait for ever
    assert "no such file" in refusal(CRNN.from_pretrained, folder)


class CharacterMapper:
    """As the reference's, pickled under the name that its notebook gave it."""

    __module__, __qualname__ = "__main__", "CharacterMapper"

    def __init__(self, characters):
        self.char2idx = {c: k for k, c in enumerate(characters, start=1)}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint as the reference has published one, and its file."""
    torch.manual_seed(4)
    trained = CRNN(REFERENCE)
    mapper = CharacterMapper(sorted(set(string.ascii_letters + string.digits + " .,;:!?'\"()-")))
    monkeypatch.setattr(sys.modules["__main__"], "CharacterMapper", CharacterMapper, raising=False)
    contents = {"epoch": 9, "model_state_dict": trained.state_dict(), "val_cer": 0.1295, "char_mapper": mapper}
    contents["optimizer_state_dict"] = torch.optim.Adam(trained.parameters(), lr=1e-3).state_dict()
    torch.save(contents, tmp_path / "best_model.pth")
    return contents, tmp_path / "best_model.pth"


def test_the_published_checkpoint_loads(checkpoint, monkeypatch):
    contents, path = checkpoint
    monkeypatch.delattr(sys.modules["__main__"], "CharacterMapper")  # whoever loads it has no such class
    model = load_reference_checkpoint(path)
    assert model.alphabet == REFERENCE and sum(p.numel() for p in model.parameters()) == 9_139_147
    tensors = zip(contents["model_state_dict"].values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # what was allowed for one file is not allowed for the next


def test_a_malicious_checkpoint_leaves_no_trace_and_other_files_are_none(checkpoint, tmp_path):
    contents, path = checkpoint
    whole, evil = path.read_bytes(), Malicious(f"touch {tmp_path / 'trace'}")
    for hostile in (evil, {"epoch": evil}, contents | {"char_mapper": evil}):
        torch.save(hostile, path)
        assert "more in it than tensors" in refusal(load_reference_checkpoint, path)
    path.write_bytes(pickle.dumps(evil, protocol=2))
    refusal(load_reference_checkpoint, path)
    assert not (tmp_path / "trace").exists()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04", LFS):
        path.write_bytes(content)
        assert ("git lfs pull" in refusal(load_reference_checkpoint, path)) == (content is LFS)
    others = {"no 'char_mapper' in it": {}, "size mismatch": contents | {"char_mapper": CharacterMapper("ab")}}
    for reason, other in others.items():
        torch.save(other, path)
        assert reason in refusal(load_reference_checkpoint, path)
    path.unlink()
    assert "no such file" in refusal(load_reference_checkpoint, path)


def test_bombs_are_refused_before_they_take_memory(tmp_path):
    path = tmp_path / "best_model.pth"
    bomb, empty = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x94\x35\x77\x85R.", b"\x80\x02}."

    def packed(compression=zipfile.ZIP_STORED, **records):
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, content in records.items():
                file.writestr(f"x/{name.replace('_', '.')}", content)
        return path.read_bytes()

    deflated = packed(zipfile.ZIP_DEFLATED, data_pkl=empty, zeros=bytes(50_000_000))
    first, second = packed(data_pkl=bomb, version=b"3"), packed(data_pkl=empty.ljust(len(bomb)), version=b"3")
    for reason, content in (
        ("bytearray", first),
        ("bytearray", packed(DATA_PKL=bomb, data_pkl=empty)),  # torch takes the first for data.pkl
        ("behind other data", first + second),  # Python's reader sees the second, torch's the first
        ("compressed", deflated),
    ):
        path.write_bytes(content)
        tracemalloc.start()
        assert reason in refusal(load_reference_checkpoint, path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


@torch.inference_mode()
def test_onnx_gives_what_torch_gives_for_a_line_of_any_width_also_from_a_network_in_tiles(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = CRNN.from_pretrained(WEIGHTS)
    assert main(["export", str(tmp_path / "plain.onnx")]) == 0
    tile(model)
    export_onnx(model, tmp_path / "tiled.onnx")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "tiled.onnx").read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "plain.onnx", providers=["CPUExecutionProvider"])
    for width in (8, 9, 500, 1000):
        line = torch.rand(1, 1, 128, width, generator=torch.Generator().manual_seed(width)) * 2 - 1
        (found,) = session.run(None, {"image": line.numpy()})
        assert found.shape == (1, width // 4 - 1, model.alphabet.classes)
        torch.testing.assert_close(torch.from_numpy(found), model(line), atol=1e-3, rtol=0)


def test_without_onnx_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(tmp_path / "model.onnx")]) == 1 and "pip install onnx" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()
