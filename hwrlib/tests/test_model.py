"""The network: its size, its lengths, a batch that reads like single lines, and files that are safe to load."""

import json
import pickle
import string
import sys
import zipfile

import pytest
import safetensors.torch
import torch

from hwrlib.alphabet import IAM, REFERENCE, Alphabet, AlphabetError
from hwrlib.decode import greedy
from hwrlib.model import CRNN, check_fits, layer_table, load_reference_checkpoint, required_steps


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
def test_time_steps_are_a_quarter_of_the_width_less_one(model, width):
    with torch.inference_mode():
        log_probs = model(torch.ones(1, 1, 128, width))
    assert log_probs.shape == (1, width // 4 - 1, 80)
    assert model.output_lengths(torch.tensor([width])).tolist() == [width // 4 - 1]
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(1, width // 4 - 1), atol=1e-5)


def test_a_batch_reads_like_its_lines_alone(model, lines):
    images, widths = padded(lines, 120)
    with torch.inference_mode():
        together = model(images, widths)
        lengths = model.output_lengths(widths)
        texts = [reading.text for reading in greedy(together, lengths, IAM)]
        assert any(texts)
        for k, line in enumerate(lines):
            alone = model(line[None])
            assert torch.allclose(together[k, : lengths[k]], alone[0], atol=1e-4)
            assert greedy(alone, lengths[k : k + 1], IAM)[0].text == texts[k]


def test_what_lies_beyond_a_line_and_how_much_of_it_changes_nothing(model, lines):
    with torch.inference_mode():
        images, widths = padded(lines, 120)
        first, lengths = model(images, widths), model.output_lengths(widths)
        for width, value in ((120, 0.0), (120, -1.0), (163, 1.0), (192, -1.0)):
            other = model(*padded(lines, width, value))
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


def test_steps_that_ctc_needs():
    assert required_steps([]) == 0
    assert required_steps([4]) == 1
    assert required_steps([4, 4, 4]) == 5
    check_fits(28, "hello", IAM)
    with pytest.raises(ValueError, match=r"27 px give 5 time steps, but CTC needs 6 for 'hello'.*28 px"):
        check_fits(27, "hello", IAM)


def test_required_steps_is_what_ctc_loss_says():
    for labels in ([1, 2, 3], [1, 1, 2], [2, 2, 2]):
        for steps in range(1, 7):
            log_probs = torch.randn(steps, 1, 4).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([labels]), [steps], [len(labels)])
            assert bool(loss.isfinite()) == (steps >= required_steps(labels))


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


def test_save_and_load_keep_weights_alphabet_and_squeeze(tmp_path, model, lines):
    kept = CRNN(Alphabet('xyz é"'), squeeze=2.5).eval()
    kept.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["alphabet"] == 'xyz é"'
    loaded = CRNN.from_pretrained(str(tmp_path))
    assert loaded.alphabet == Alphabet('xyz é"')
    assert loaded.squeeze == 2.5
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(kept(lines[0][None]), loaded(lines[0][None]))


def test_a_float16_file_is_half_as_large_and_reads_the_same(tmp_path, model, lines):
    texts = {}
    for name in ("full", "half"):
        copy = CRNN().eval()
        copy.load_state_dict(model.state_dict())
        (copy.half() if name == "half" else copy).save_pretrained(tmp_path / name)
        loaded = CRNN.from_pretrained(str(tmp_path / name)).float()
        with torch.inference_mode():
            texts[name] = loaded(lines[0][None])
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] / sizes[1] < 0.51
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert stored["fc.weight"].dtype == torch.float16
    assert (texts["full"] - texts["half"]).abs().max() < 0.1


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


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["char_mapper", "epoch", "whole"])
def test_a_malicious_checkpoint_is_refused_and_leaves_no_trace(tmp_path, place):
    trace, path = tmp_path / "trace", tmp_path / "best_model.pth"
    evil = Malicious(f"touch {trace}")
    checkpoint = {"model_state_dict": {"w": torch.ones(2)}, "char_mapper": None, "epoch": 1} | {place: evil}
    torch.save(evil if place == "whole" else checkpoint, path)
    with pytest.raises(pickle.UnpicklingError):
        load_reference_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have
    assert trace.exists()


def test_a_plain_pickle_with_a_malicious_object_is_refused(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "best_model.pth"
    path.write_bytes(pickle.dumps({"char_mapper": Malicious(f"touch {trace}")}, protocol=2))
    with pytest.raises((pickle.UnpicklingError, ValueError, RuntimeError)):
        load_reference_checkpoint(path)
    assert not trace.exists()


def test_other_files_are_no_reference_checkpoint(tmp_path, as_main):
    path = tmp_path / "x.pth"
    with pytest.raises(FileNotFoundError):
        load_reference_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises((KeyError, ValueError), match="char_mapper"):
        load_reference_checkpoint(path)
    torch.save({"model_state_dict": {}, "char_mapper": CharacterMapper({"a": 1, "b": 3})}, path)
    with pytest.raises(AlphabetError, match="1 to 2"):
        load_reference_checkpoint(path)
    torch.save({"model_state_dict": {}, "char_mapper": CharacterMapper({"a": 1, "b": 2})}, path)
    with pytest.raises(RuntimeError, match="fc"):
        load_reference_checkpoint(path)
