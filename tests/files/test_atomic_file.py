import pytest

from mqt_llava.files.atomic_file import write_atomically


def test_a_new_file_in_a_new_folder(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file", "«ç»\n")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "«ç»\n".encode()
    write_atomically(tmp_path / "a" / "b" / "file", "new")
    assert [path.read_text() for path in (tmp_path / "a" / "b").iterdir()] == ["new"]


@pytest.mark.parametrize("old", [{}, {"file": "old"}])
def test_a_writer_that_is_stopped_half_way_leaves_what_was_there(tmp_path, stopped_half_way, old):
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    stopped_half_way(lambda: write_atomically(tmp_path / "file", "new" * 1000))
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    partial = {name: left.pop(name) for name in list(left) if name.startswith(".file.partial-")}
    assert left == old
    assert [len(text) for text in partial.values()] == ([1000] if stopped_half_way.kind == "killed" else [])


def test_text_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\udcff")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}
