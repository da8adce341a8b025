"""The network: its size, its lengths, a batch that reads like single lines, and files that are safe to load."""

import io
import json
import os
import pickle
import shutil
import string
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import hwrlib
import hwrlib.model
from hwrlib.alphabet import IAM, REFERENCE, Alphabet
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import frames, greedy
from hwrlib.model import CRNN, AuxiliaryHead, fused, layer_table, mask_padding
from hwrlib.reference import load_reference_checkpoint
from hwrlib.weights import WeightsError
from hwrlib.winograd import WinogradConv2d


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = CRNN()
    with torch.no_grad():
        model(torch.rand(2, 1, 128, 64) * 2 - 1)  # batch norm with statistics of its own
        model.fc.weight.mul_(20)  # as sure as a trained one: greedy reads something
        model.fc.bias.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def lines():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 128, width, generator=generator) * 2 - 1 for width in (64, 101, 8, 87, 120, 42, 11, 119)]


def padded(lines, width, value=1.0):
    images = torch.full((len(lines), 1, 128, width), value)
    for image, line in zip(images, lines, strict=True):
        image[..., : line.shape[-1]] = line
    return images, torch.tensor([line.shape[-1] for line in lines])


@pytest.mark.parametrize(("alphabet", "parameters"), [(REFERENCE, 9_139_147), (IAM, 9_141_712)])
def test_parameters(alphabet, parameters):
    model = CRNN(alphabet)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [name for name, _ in model.named_children()] == ["cnn", "map2seq", "rnn", "fc"]
    assert model.fc.out_features == alphabet.classes


@pytest.mark.parametrize("width", [8, 9, 11, 12, 63, 64, 65, 101])
def test_frames_are_a_quarter_of_the_width_less_one(model, width):
    with torch.inference_mode():
        log_probs = model(torch.ones(1, 1, 128, width))
    assert log_probs.shape == (1, width // 4 - 1, 80)
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(1, width // 4 - 1), atol=1e-5)


def test_a_batch_reads_like_its_lines_alone(model, lines):
    images, widths = padded(lines, 120)
    with torch.inference_mode():
        together = model(images, widths)
        lengths = frames(widths)
        texts = [reading.text for reading in greedy(together, lengths, IAM)]
        assert any(texts)
        for k, line in enumerate(lines):
            alone = model(line[None])
            assert torch.allclose(together[k, : lengths[k]], alone[0], atol=1e-4)
            assert greedy(alone, lengths[k : k + 1], IAM)[0].text == texts[k]


def test_what_lies_beyond_a_line_and_how_much_of_it_changes_nothing(model, lines):
    with torch.inference_mode():
        images, widths = padded(lines[1:4], 101)
        first, lengths = model(images, widths), frames(widths)
        for width, value in ((101, 0.0), (143, -1.0)):
            other = model(*padded(lines[1:4], width, value))
            for k, length in enumerate(lengths):
                assert torch.allclose(first[k, :length], other[k, :length], atol=1e-4)


def test_padding_would_matter_without_the_widths(model, lines):
    """The check above can fail: grey padding, read as part of the line, does change the log-probabilities."""
    with torch.inference_mode():
        images, widths = padded(lines[:1], 120, 0.0)
        apart = (model(images)[0, :15] - model(images, widths)[0, :15]).abs().max()
    assert apart > 1e-2


def test_gradients_do_not_come_from_beyond_the_line(lines):
    torch.manual_seed(0)
    model = CRNN(Alphabet("ab")).eval()
    images, widths = padded(lines[:2], 120)
    images.requires_grad_()
    model(images, widths)[0, :15].sum().backward()
    assert images.grad[0, ..., :64].abs().max() > 0
    assert images.grad[0, ..., 64:].abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((1, 1, 64, 100), "128"), ((1, 3, 128, 100), "128"), ((1, 128, 100), "128"), ((1, 1, 128, 7), "7 px wide")],
)
def test_images_that_do_not_fit_the_network(model, shape, reason):
    with pytest.raises(ValueError, match=reason):
        model(torch.ones(shape))


def test_a_line_too_narrow_within_a_batch_is_named(model):
    with pytest.raises(ValueError, match="5 px"):
        model(torch.ones(2, 1, 128, 64), torch.tensor([64, 5]))


def test_padding_is_masked_line_by_line():
    images, widths = torch.ones(2, 1, 3, 5), torch.tensor([5, 2])
    masked = mask_padding(images, widths)
    assert masked[0].eq(1).all() and masked[1, ..., :2].eq(1).all() and masked[1, ..., 2:].eq(0).all()
    assert mask_padding(images, torch.tensor([5, 5])) is images


def test_the_auxiliary_head_has_its_own_say_and_leaves_the_network_as_it_was(model, lines):
    images, widths = padded(lines[5:7], 42)
    trainee = AuxiliaryHead(model).eval()
    with torch.inference_mode():
        main, auxiliary = trainee(images, widths)
        assert torch.equal(main, model(images, widths))
    assert auxiliary.shape == main.shape and auxiliary.exp().sum(-1) == pytest.approx(torch.ones(main.shape[:2]))


def test_the_table_of_layers_counts_everything(model):
    table = layer_table(model, width=100)
    assert table.parameters.sum() == 9_141_712
    assert table.share.sum() == pytest.approx(1)
    assert table.loc["cnn.0", "multiply_adds"] == 9 * 64 * 128 * 100
    assert table.loc["map2seq", "multiply_adds"] == 512 * 7 * 256 * 24
    assert table.loc["fc", "output"] == (24, 80)
    assert not model.training


@pytest.mark.parametrize("training", [False, True])
def test_under_autocast_reading_keeps_what_the_text_hangs_on_in_float32(training):
    model = CRNN(Alphabet("ab")).train(training)
    types = {}

    def note(name):
        def hook(module, inputs, output):
            types[name] = (output[0] if name == "rnn" else output).dtype

        return hook

    for name in ("cnn.0", "cnn.2", "cnn.4", "map2seq", "rnn", "fc"):
        model.get_submodule(name).register_forward_hook(note(name))
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = model(torch.rand(2, 1, 128, 32) * 2 - 1, torch.tensor([32, 32]))
    assert log_probs.dtype == torch.float32
    exact = set() if training else {"cnn.0", "cnn.2", "rnn", "fc"}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == exact


# Saved, shared, loaded

SMALL = Alphabet("ab")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    CRNN(SMALL).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, saved):
    """A folder of weights to break."""
    return Path(shutil.copytree(saved, tmp_path / "weights"))


def refusal(source):
    """The one line that says why a folder of weights is refused."""
    with pytest.raises(WeightsError) as error:
        CRNN.from_pretrained(source)
    text = str(error.value)
    assert "\n" not in text and "\x1b" not in text and len(text) < 600 and str(source) in text
    return text


def test_save_and_load_keep_weights_alphabet_divisor_and_calibration(tmp_path, lines):
    kept = CRNN(Alphabet('xyz é"'), width_divisor=2.5).eval()
    kept.calibration = {"greedy": [0.25, 1.5]}  # what the network is now counts, not what it was made with
    kept.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["alphabet"] == 'xyz é"'
    loaded = CRNN.from_pretrained(str(tmp_path))
    assert (loaded.alphabet, loaded.width_divisor) == (Alphabet('xyz é"'), 2.5)
    assert loaded.calibration == {"greedy": [0.25, 1.5]}
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(kept(lines[0][None]), loaded(lines[0][None]))


def test_a_float16_file_is_half_as_large_and_reads_the_same(tmp_path, model, lines):
    log_probs = {}
    for name in ("full", "half"):
        copy = CRNN().eval()
        copy.load_state_dict(model.state_dict())
        (copy.half() if name == "half" else copy).save_pretrained(tmp_path / name)
        with torch.inference_mode():
            log_probs[name] = CRNN.from_pretrained(tmp_path / name)(lines[0][None])
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] / sizes[1] < 0.51
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert stored["fc.weight"].dtype == torch.float16
    assert (log_probs["full"] - log_probs["half"]).abs().max() < 0.1


def test_the_shipped_weights_have_a_calibration_for_every_decoder():
    shipped = CRNN.from_pretrained(Path(hwrlib.__file__).parent / "weights")
    assert shipped.alphabet == IAM
    assert set(shipped.calibration) == {greedy.name, PrefixBeam().name, PrefixBeam(words=["a"]).name}
    assert all(slope > 0 for _, slope in shipped.calibration.values())


def test_push_to_hub_sends_the_same_files(monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **options):
            sent.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return "sent"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert CRNN(SMALL, 2.0, {"beam": [0, 1]}).push_to_hub("me/mine") == "sent"
    assert json.loads(sent["config.json"]) == {"alphabet": "ab", "width_divisor": 2.0, "calibration": {"beam": [0, 1]}}
    assert len(sent["model.safetensors"]) > 30_000_000 and "README.md" in sent


def test_a_name_on_the_hub_is_fetched_with_options_and_checked_as_a_folder_is(monkeypatch, folder):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hwrlib.model, "snapshot_download", snapshot_download)
    options = {"revision": "v1", "token": "t", "cache_dir": "c", "local_files_only": True}
    assert CRNN.from_pretrained("owner/name-1.0", **options).alphabet == SMALL
    assert asked == {"name": "owner/name-1.0", "allow_patterns": ["config.json", "model.safetensors"], **options}
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*no such file"):
        CRNN.from_pretrained("owner/name-1.0")


def test_what_the_hub_does_not_give_is_one_line_with_the_name(monkeypatch):
    def snapshot_download(name, **options):
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(hwrlib.model, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=r"^owner/name: no folder, .*first line second line$"):
        CRNN.from_pretrained("owner/name")


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/nowhere", "./nowhere", "../nowhere", "", __file__])
def test_a_path_that_is_no_folder_never_reaches_the_hub(monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hwrlib.model, "snapshot_download", None)
    with pytest.raises((FileNotFoundError, WeightsError), match=source or "config.json"):
        CRNN.from_pretrained(source)


# Settings that are none

CONFIGS = {
    "no JSON": (b"weights", "Expecting value"),
    "empty": (b"", "Expecting value"),
    "not UTF-8": (b'{"alphabet": "\xe9"}', "utf-8"),
    "a list": (b'["alphabet", "width_divisor"]', "no alphabet"),
    "a string": (b'"alphabet width_divisor"', "no alphabet"),
    "nothing in it": (b"{}", "no alphabet"),
    "no divisor": (b'{"alphabet": "ab", "squeeze": 2.5}', "no width_divisor"),
    "nested": (b"[" * 150_000, "recursion"),
    "large": (b'{"alphabet": "' + b"a" * 1_000_000, "200,000 bytes"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
}
SETTINGS = {
    "twice": ({"alphabet": "aba"}, "'a' more than once"),
    "no character": ({"alphabet": ""}, "string of characters"),
    "alphabet a list": ({"alphabet": ["a", "b"]}, "string of characters"),
    "alphabet null": ({"alphabet": None}, "string of characters"),
    "a control character": ({"alphabet": "a\x1b"}, "control"),
    "half a surrogate": ({"alphabet": "a\ud800"}, "control"),
    **{
        f"divisor {value}": ({"width_divisor": value}, "width_divisor")
        for value in (0, 0.99, 8.01, -2, 10**400, float("nan"), float("inf"), True, "2", None, [2])
    },
    **{
        f"calibration {value}": ({"calibration": value}, "calibration")
        for value in (
            [],
            0,
            "greedy",
            {"greedy": 1},
            {"greedy": [1]},
            {"greedy": [1, 2, 3]},
            {"greedy": [1, "2"]},
            {"greedy": "12"},
            {"greedy": [0, float("nan")]},
            {"greedy": [0, 10**400]},
            {"greedy": [True, 1]},
        )
    },
}


@pytest.mark.parametrize(("content", "reason"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_none(tmp_path, content, reason):
    (tmp_path / "config.json").write_bytes(content)
    text = refusal(tmp_path)
    assert reason in text and "config.json" in text


@pytest.mark.parametrize(("change", "reason"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_no_network_has(tmp_path, change, reason):
    settings = {"alphabet": "ab", "width_divisor": 2.5, "calibration": {}} | change
    (tmp_path / "config.json").write_text(json.dumps(settings))
    text = refusal(tmp_path)
    assert reason in text and "config.json" in text


@pytest.mark.parametrize("divisor", [1, 1.0, 8])
def test_settings_at_the_edge(folder, divisor):
    (folder / "config.json").write_text(json.dumps({"alphabet": "ab", "width_divisor": divisor}))
    assert CRNN.from_pretrained(folder).width_divisor == divisor


def test_a_network_is_not_made_with_settings_that_could_not_be_loaded():
    for options in ({"width_divisor": 9}, {"width_divisor": float("nan")}, {"calibration": {"greedy": 1}}):
        with pytest.raises(ValueError, match="give"):
            CRNN(SMALL, **options)


# Tensors that are not its own


def test_the_tensors_are_all_its_own_and_no_other(folder):
    file = folder / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    broken = {
        "Missing": {name: tensor for name, tensor in whole.items() if name != "fc.bias"},
        "Unexpected": whole | {"cnn.99.weight": torch.ones(3)},
        "size mismatch": whole | {"fc.bias": torch.ones(4)},
        "fc.bias has values that are not finite": whole | {"fc.bias": torch.tensor([0, float("nan"), 0])},
        "cnn.1.running_var has": whole | {"cnn.1.running_var": torch.full((64,), float("inf"))},
        "Missing key": {},
    }
    for reason, tensors in broken.items():
        safetensors.torch.save_file(tensors, file)
        text = refusal(folder)
        assert reason in text and "model.safetensors" in text
    safetensors.torch.save_file(whole, file)
    assert CRNN.from_pretrained(folder).alphabet == SMALL


def test_weights_that_are_cut_off_or_no_weights(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 36569096\n"
    for content in (b"", whole[:4], whole[:1000], whole[: len(whole) // 2], b"\xff" * 100, pointer, b"PK\x03\x04" * 9):
        file.write_bytes(content)
        assert "model.safetensors" in refusal(folder)
        assert ("git lfs pull" in refusal(folder)) == (content is pointer)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_its_two_files(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder) and "no such file" in refusal(folder)
    (folder / name).mkdir()
    assert name in refusal(folder)


def test_a_pipe_is_no_file_of_weights(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "no such file" in refusal(folder)


def test_a_name_in_a_hostile_file_does_not_reach_the_terminal_raw(folder):
    safetensors.torch.save_file({"\x1b[2J\nx" * 500: torch.ones(1)}, folder / "model.safetensors")
    assert "Missing" in refusal(folder)


# The reference's checkpoint


class CharacterMapper:
    """As the reference's, pickled under the name that its notebook gave it."""

    __module__, __qualname__ = "__main__", "CharacterMapper"

    def __init__(self, labels):
        self.chars = sorted(labels)
        self.char2idx = labels
        self.idx2char = {label: character for character, label in labels.items()}
        self.num_classes = len(labels) + 1


@pytest.fixture
def as_main(monkeypatch):
    """Pickle finds the class where the reference's notebook had it, while it writes."""
    monkeypatch.setattr(sys.modules["__main__"], "CharacterMapper", CharacterMapper, raising=False)


def test_the_published_checkpoint_loads(tmp_path, as_main, monkeypatch):
    torch.manual_seed(4)
    trained = CRNN(REFERENCE)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    trained(torch.rand(2, 1, 128, 16)).sum().backward()
    optimizer.step()
    characters = sorted(set(string.ascii_letters + string.digits + " .,;:!?'\"()-"))
    checkpoint = {
        "epoch": 9,
        "model_state_dict": trained.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "val_cer": 0.1295,
        "val_wer": 0.42,
        "char_mapper": CharacterMapper({c: k for k, c in enumerate(characters, start=1)}),
    }
    path = tmp_path / "best_model.pth"
    torch.save(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        assert b"c__main__\nCharacterMapper\n" in archive.read("best_model/data.pkl")
    monkeypatch.delattr(sys.modules["__main__"], "CharacterMapper")  # whoever loads it has no such class
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    model = load_reference_checkpoint(path)
    assert model.alphabet == REFERENCE
    assert not model.training
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), model.state_dict().values(), strict=True)
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # what was allowed for one file is not allowed for the next


def refused(path):
    """The one line that says why a checkpoint is refused."""
    with pytest.raises(WeightsError) as error:
        load_reference_checkpoint(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600
    return text


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["char_mapper", "epoch", "whole"])
def test_a_malicious_checkpoint_is_refused_and_leaves_no_trace(tmp_path, place):
    trace, path = tmp_path / "trace", tmp_path / "best_model.pth"
    evil = Malicious(f"touch {trace}")
    checkpoint = {"model_state_dict": {"w": torch.ones(2)}, "char_mapper": None, "epoch": 1} | {place: evil}
    torch.save(evil if place == "whole" else checkpoint, path)
    assert "system" in refused(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have
    assert trace.exists()


@pytest.mark.parametrize("appended", [False, True])
def test_a_plain_pickle_with_a_malicious_object_is_refused(tmp_path, appended):
    trace, path = tmp_path / "trace", tmp_path / "best_model.pth"
    content = pickle.dumps({"char_mapper": Malicious(f"touch {trace}")}, protocol=2)
    path.write_bytes(content + (archive({"x/data.pkl": pickle.dumps({}, 2)}) if appended else b""))
    refused(path)
    assert not trace.exists()


def archive(records):
    """A zip as torch.save lays it out."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    return packed.getvalue()


def peak_of(action):
    """Bytes that an action allocates at most, as Python counts them."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def pickled_call(function, argument):
    """A pickle that calls a function with a number."""
    return b"\x80\x02c" + function + b"\nJ" + argument.to_bytes(4, "little") + b"\x85R."


EMPTY = b"\x80\x02}."  # a dictionary, pickled


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "best_model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", EMPTY)
        with file.open("x/data/0", "w", force_zip64=True) as record:
            for _ in range(41):
                record.write(bytes(10_000_000))
    assert path.stat().st_size < 1_000_000
    assert "410,000,004 bytes" in refused(path)
    assert peak_of(lambda: refused(path)) < 5_000_000


def test_a_header_that_lies_about_its_size_does_not_get_a_bomb_past(tmp_path):
    path, size, packed = tmp_path / "best_model.pth", 50_000_000, io.BytesIO()
    for name in ("x/data/0", "x/data.pkl"):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, bytes(size))
        path.write_bytes(packed.getvalue().replace(size.to_bytes(4, "little"), (10).to_bytes(4, "little")))
        assert peak_of(lambda: refused(path)) < 5_000_000
        assert "compressed" in refused(path)


def test_too_much_is_too_much_uncompressed_as_well(tmp_path, monkeypatch):
    path = tmp_path / "best_model.pth"
    monkeypatch.setattr(hwrlib.reference, "LARGEST_CHECKPOINT", 1_000_000)
    path.write_bytes(archive({"x/data.pkl": EMPTY, "x/data/0": bytes(1_000_000)}))
    assert "1,000,004 bytes" in refused(path)


@pytest.mark.parametrize("function", [b"builtins\nbytearray", b"__builtin__\nbytearray", b"torch\nTensor"])
def test_a_pickle_that_asks_for_memory_is_refused(tmp_path, function):
    path = tmp_path / "best_model.pth"
    path.write_bytes(archive({"x/data.pkl": pickled_call(function, 2_000_000_000), "x/version": b"3"}))
    assert function.decode().replace("\n", " ") in refused(path)
    assert peak_of(lambda: refused(path)) < 5_000_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_records_with_one_name_torch_reads_the_one_that_was_checked(tmp_path):
    path, hostile = tmp_path / "best_model.pth", pickled_call(b"builtins\nbytearray", 20_000_000)
    for names in (("x/data.pkl", "x/data.pkl"), ("x/DATA.PKL", "x/data.pkl")):
        with zipfile.ZipFile(path, "w") as file:
            for name, content in zip(names, (hostile, EMPTY), strict=True):
                file.writestr(name, content)
            file.writestr("x/version", b"3")
        assert len(torch.load(path, weights_only=True)) == 20_000_000
        assert "no char_mapper" in refused(path)
        assert peak_of(lambda: refused(path)) < 5_000_000


def test_torch_reads_what_was_checked_also_in_a_zip_of_two_faces(tmp_path):
    path, hostile = tmp_path / "best_model.pth", pickled_call(b"builtins\nbytearray", 20_000_000)
    two = [archive({"x/data.pkl": content, "x/version": b"3"}) for content in (hostile, EMPTY.ljust(len(hostile)))]
    path.write_bytes(b"".join(two))  # Python's reader sees the second, torch's the first
    assert len(torch.load(path, weights_only=True)) == 20_000_000
    assert "no char_mapper" in refused(path)
    assert peak_of(lambda: refused(path)) < 5_000_000


def test_other_files_are_no_reference_checkpoint(tmp_path, as_main):
    path = tmp_path / "x.pth"
    with pytest.raises(FileNotFoundError, match=r"x\.pth"):
        load_reference_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    assert "no char_mapper" in refused(path)
    torch.save([1, 2], path)
    assert "no char_mapper" in refused(path)
    torch.save({"model_state_dict": {}, "char_mapper": CharacterMapper({"a": 1, "b": 3})}, path)
    assert "1 to 2" in refused(path)
    torch.save({"model_state_dict": {}, "char_mapper": CharacterMapper({"a": 1, "b": 2})}, path)
    assert "Missing" in refused(path)
    torch.save({"model_state_dict": CRNN(IAM).state_dict(), "char_mapper": CharacterMapper({"a": 1, "b": 2})}, path)
    assert "size mismatch" in refused(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[-len(whole) // 2 :], b"", b"PK\x03\x04", b"no checkpoint"):
        path.write_bytes(content)
        refused(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(path)
    torch.save({"model_state_dict": {}}, path, _use_new_zipfile_serialization=False)
    assert "zip" in refused(path)
    path.unlink()
    path.mkdir()
    refused(path)


@pytest.mark.parametrize("shape", [(1, 16, 268), (2, 5, 7), (1, 1, 1), (3, 4, 4), (1, 8, 9)])
def test_winograds_convolution_is_the_convolution_and_so_are_its_gradients(shape):
    torch.manual_seed(0)
    count, *size = shape
    convolution = torch.nn.Conv2d(20, 30, 3, padding=1)
    x, gradient = torch.randn(count, 20, *size), torch.randn(count, 30, *size)

    def results(layer, maps):
        maps = maps.detach().requires_grad_()
        y = layer(maps)
        return y, *torch.autograd.grad(y, [maps, layer.weight, layer.bias], gradient)

    expected = results(convolution, x)
    for maps in (x, x.to(memory_format=torch.channels_last)):
        for result, plain in zip(results(WinogradConv2d(convolution), maps), expected, strict=True):
            torch.testing.assert_close(result, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)
        fixed = WinogradConv2d(convolution, fixed=True)(maps)
        torch.testing.assert_close(fixed, expected[0], atol=1e-4, rtol=1e-4)


def test_winograds_convolution_is_plain_in_16_bits():
    convolution, x = torch.nn.Conv2d(20, 30, 3, padding=1), torch.randn(1, 20, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(WinogradConv2d(convolution)(x), convolution(x))


def test_winograds_convolution_draws_no_random_numbers():
    convolution, before = torch.nn.Conv2d(2, 3, 3, padding=1), torch.get_rng_state()
    WinogradConv2d(convolution)
    assert torch.equal(torch.get_rng_state(), before)


@torch.inference_mode()
def test_large_convolutions_are_winograds_where_that_is_asked_for(model, lines):
    images, widths = padded(lines, 120)
    plain, tiled = fused(model), fused(model, winograd=True)
    torch.testing.assert_close(tiled(images, widths), plain(images, widths), atol=1e-3, rtol=1e-3)
    counts = [sum(isinstance(layer, WinogradConv2d) for layer in network.cnn) for network in (plain, tiled)]
    assert counts == [0, 4]
