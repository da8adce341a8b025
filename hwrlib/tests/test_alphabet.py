"""Text to labels and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrlib.alphabet import IAM, REFERENCE, Alphabet, AlphabetError


def test_both_alphabets_are_the_designed_ones():
    assert (len(REFERENCE), REFERENCE.classes) == (74, 75)
    assert (len(IAM), IAM.classes) == (79, 80)
    assert set(IAM.characters) - set(REFERENCE.characters) == set("#&*+/")
    assert set(REFERENCE.characters) <= set(IAM.characters)
    assert list(IAM.characters) == sorted(IAM.characters)
    assert list(REFERENCE.characters) == sorted(REFERENCE.characters)


@given(st.text(alphabet=IAM.characters))
def test_encode_and_decode_are_inverse_and_never_use_the_blank(text):
    labels = IAM.encode(text)
    assert IAM.decode(labels) == text
    assert all(1 <= label <= 79 for label in labels)


def test_encode_names_the_characters_it_lacks_and_the_text():
    with pytest.raises(AlphabetError) as error:
        IAM.encode("10 € ~ done")
    for part in ("€", "~", "10 € ~ done", "drop"):
        assert part in str(error.value)
    assert isinstance(error.value, ValueError)


def test_the_reference_alphabet_refuses_what_it_used_to_drop_silently():
    with pytest.raises(AlphabetError, match="#&"):
        REFERENCE.encode("Smith & Co. #5")
    assert REFERENCE.drop("Smith & Co. #5") == "Smith  Co. 5"


def test_composed_and_decomposed_accents_are_one_character():
    alphabet = Alphabet("cafeé")
    assert alphabet.encode("cafe\u0301") == alphabet.encode("café") == [1, 2, 3, 5]
    assert alphabet.drop("cafe\u0301!") == "café"


@pytest.mark.parametrize(
    ("characters", "reason"),
    [
        ("", "string of characters"),
        (None, "None"),
        (["a", "b"], "string of characters"),
        ("abcab", "'ab' more than once"),
        ("ab\n", "control"),
        ("a\x1b", "control"),
        ("a\ud800", "surrogates"),
    ],
)
def test_an_alphabet_is_a_string_that_names_each_character_once(characters, reason):
    with pytest.raises(AlphabetError, match=reason):
        Alphabet(characters)


def test_a_long_alphabet_is_checked_quickly():
    characters = "".join(map(chr, range(0x20000, 0x2A000)))
    assert Alphabet(characters).classes == 40_961


@pytest.mark.parametrize("labels", [[1, 4], [-1]])
def test_labels_of_another_alphabet_are_refused(labels):
    with pytest.raises(AlphabetError, match="outside 0 to 3"):
        Alphabet("abc").decode(labels)


def test_alphabets_compare_by_their_characters():
    assert Alphabet("ab") == Alphabet("ab")
    assert hash(Alphabet("ab")) == hash(Alphabet("ab"))
    assert Alphabet("ab") != Alphabet("ba")
    assert Alphabet("ab") != "ab"
    assert repr(Alphabet("ab")) == "Alphabet('ab')"
