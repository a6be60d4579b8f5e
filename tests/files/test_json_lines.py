import pytest

from mqt_llava.files.json_lines import append_json_lines, read_json_lines


ROWS = [{"a": "«ç»\n"}, {"b": [1, None]}, {"c": "\udcff\u2028"}]


def test_rows_come_back(tmp_path):
    path = tmp_path / "a" / "b" / "log.jsonl"
    assert read_json_lines(path) == ([], b"")
    append_json_lines(path, [])
    assert path.read_bytes() == b""
    append_json_lines(path, ROWS[:1])
    append_json_lines(path, iter(ROWS[1:]))
    assert read_json_lines(path) == (ROWS, b"")
    assert len(path.read_text(encoding="ascii").splitlines()) == 3


def test_lines_of_other_writers_are_read_and_kept(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a":"\u2028ç"}\n', encoding="utf-8")
    append_json_lines(tmp_path / "log.jsonl", ROWS)
    assert read_json_lines(tmp_path / "log.jsonl") == ([{"a": "\u2028ç"}, *ROWS], b"")


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("torn", [b"{", b'{"a": "b', b'{"a": "b"}', b"\xc3", b"x" * 10_000])
def test_a_torn_line_is_not_read_and_gives_way_to_the_next(tmp_path, whole, torn):
    path = tmp_path / "log.jsonl"
    append_json_lines(path, ROWS[:whole])
    before = path.read_bytes()
    path.write_bytes(before + torn)
    assert read_json_lines(path) == (ROWS[:whole], torn) and path.read_bytes() == before + torn
    append_json_lines(path, ROWS[2:])
    assert read_json_lines(path) == (ROWS[:whole] + ROWS[2:], b"") and path.read_bytes().startswith(before)


def test_a_writer_that_is_stopped_half_way_tears_the_last_line_only(tmp_path, stopped_half_way):
    path = tmp_path / "log.jsonl"
    append_json_lines(path, ROWS)
    rows = [{"number": number} for number in range(100)]
    stopped_half_way(lambda: append_json_lines(path, rows))
    there, torn = read_json_lines(path)
    assert path.stat().st_size == 1000 and torn
    assert there == ROWS + rows[: len(there) - len(ROWS)] and len(ROWS) < len(there) < 100
    append_json_lines(path, ROWS[:1])
    assert read_json_lines(path) == (there + ROWS[:1], b"")
