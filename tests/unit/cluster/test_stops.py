from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cluster.generation.stops import StopStrings

TEXT = st.text("ab\n", max_size=20)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def through(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    filtered = StopStrings(stops)
    text = "".join(filtered.push(piece) for piece in pieces) + filtered.finish()
    return text, filtered.stopped


@given(st.lists(TEXT), STOPS)
@example(["ab", "a"], ["b", "aba"])
def test_a_stream_ends_before_its_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    text, stopped = through(pieces, stops)

    assert (text, stopped) == through([whole], stops)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    assert not stopped or whole[len(text) :].startswith(tuple(stops))
    assert stopped or text == whole


def test_text_that_cannot_be_a_stop_string_is_not_held_back() -> None:
    stops = StopStrings(["END"])

    assert [stops.push("one E"), stops.push("N"), stops.push("E two")] == ["one ", "", "ENE two"]
