"""Progress where there is no terminal."""

from shared_context.progress import progress, with_progress


def test_lines_say_how_far_it_is_where_there_is_no_terminal(capsys):
    assert list(with_progress("abc", "answers", every=0)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["answers: 1 of 3", "answers: 2 of 3", "answers: 3 of 3"]
    assert lines[-1].endswith("about 0 s left")


def test_what_is_done_at_once_says_nothing(capsys):
    with progress() as advance:
        advance(1, 2, "tokens")
    assert capsys.readouterr().err == ""
