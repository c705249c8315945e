"""Speaker queries: what wins, what is refused, what the refusal names."""

import pytest

from vconv.errors import UsageError
from vconv.speakers import SpeakerMap

VOICES = SpeakerMap(["slt", "awb", "7", "p225", "p226", "p:1"])


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("slt", 0),
        ("p226", 4),
        ("3", 3),
        ("7", 2),  # the speaker named 7, not index 7
        ("index:1", 1),
        ("index:2", 2),
        ("p:1", 5),  # a name with a colon is still a name
        (1, 1),
        ({"awb": 0.2}, 1),
        ("p225:3", 3),
    ],
)
def test_a_name_wins_then_an_index(query: str | int | dict[str, float], index: int) -> None:
    assert VOICES.resolve(query) == ((index, 1.0),)


def test_a_mixture_is_normalised_sorted_and_merged() -> None:
    expected = ((3, pytest.approx(0.7)), (4, pytest.approx(0.3)))
    assert VOICES.resolve("p226:3,p225:7") == expected
    assert VOICES.resolve("p226:0.1, p225:0.7,p226:0.2") == expected
    assert VOICES.resolve({"p226": 3, "p225": 7}) == expected
    assert VOICES.resolve("index:3:0.7,4:0.3") == expected
    assert sum(weight for _, weight in VOICES.resolve("slt:1,awb:1,p225:1")) == 1.0


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("p22", "'p225'"),
        ("SLT", "'slt'"),
        ("slt,awb", "slt"),
        ("p225:x", "p225"),
        ("", "slt"),
        ("p225:0.5,p277:0.5", "'p225'"),
        ("6", "0 to 5"),
        ("index:99", "0 to 5"),
        (-1, "0 to 5"),
        ("p225:0", "positive"),
        ("p225:-1,p226:2", "positive"),
        ("p225:nan", "positive"),
        ("p225:inf", "positive"),
        ({}, "at least one"),
    ],
)
def test_what_cannot_be_resolved_is_refused_naming_what_can(
    query: str | int | dict[str, float], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        VOICES.resolve(query)


@pytest.mark.parametrize("query", ["slt", "7", "p:1", "p225:0.7,p226:0.3", "index:2"])
def test_a_label_resolves_to_the_same_mixture(query: str) -> None:
    mixture = VOICES.resolve(query)
    assert VOICES.resolve(VOICES.label(mixture)) == mixture
    assert VOICES.label(VOICES.resolve("p225:0.7,p226:0.3")) == "p225:0.7,p226:0.3"


@pytest.mark.parametrize("names", [[], ["a", ""], ["a", "b", "a"]])
def test_names_must_be_there_and_differ(names: list[str]) -> None:
    with pytest.raises(UsageError):
        SpeakerMap(names)


def test_a_map_is_its_names() -> None:
    assert len(VOICES) == 6
    assert VOICES.index("awb") == 1
    assert VOICES.names == ("slt", "awb", "7", "p225", "p226", "p:1")
    assert SpeakerMap(["a"]) == SpeakerMap(("a",))
