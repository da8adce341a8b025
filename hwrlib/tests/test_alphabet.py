"""Text to labels and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrlib.alphabet import IAM, REFERENCE, Alphabet


def test_both_alphabets_are_the_designed_ones():
    assert (len(REFERENCE), REFERENCE.classes, len(IAM), IAM.classes) == (74, 75, 79, 80)
    assert set(IAM.characters) - set(REFERENCE.characters) == set("#&*+/")
    assert Alphabet("ab") == Alphabet("ab") != Alphabet("ba")


@given(st.text(alphabet=IAM.characters))
def test_encode_and_decode_are_inverse_and_never_use_the_blank(text):
    labels = IAM.encode(text)
    assert IAM.decode(labels) == text and all(1 <= label <= 79 for label in labels)


def test_what_an_alphabet_lacks_is_refused_with_the_text_or_dropped_where_one_asks_and_accents_may_be_apart():
    with pytest.raises(ValueError, match=r"'#&' in 'Smith & Co. #5': not in the alphabet.*drop"):
        REFERENCE.encode("Smith & Co. #5")
    assert REFERENCE.drop("Smith & Co. #5") == "Smith  Co. 5"
    alphabet = Alphabet("cafeé")
    assert alphabet.encode("cafe\u0301") == alphabet.encode("café") == [1, 2, 3, 5]
    assert alphabet.drop("cafe\u0301!") == "café"


def test_an_alphabet_names_each_character_once_and_refuses_labels_of_another():
    for characters in ("", None, ["a", "b"], "abcab", "ab\n", "a\x1b", "a\ud800"):
        with pytest.raises(ValueError, match="an alphabet"):
            Alphabet(characters)
    for labels in ([1, 4], [-1]):
        with pytest.raises(ValueError, match="outside 0 to 3"):
            Alphabet("abc").decode(labels)
