import pytest
from atomic_folder import atomic_folder
from conversion_error import ConversionError


def content(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "target"
    with atomic_folder(target) as folder:
        (folder / "file").write_text("new")
        assert not target.exists()
    assert content(target) == {"file": "new"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with atomic_folder(target) as folder:
        (folder / "file").write_text("new")
    assert content(target) == {"file": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_refuses_a_folder_with_something_in_it(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(ConversionError, match="not empty. Pass --overwrite"), atomic_folder(target):
        pytest.fail("must not get here")
    assert content(target) == {"file": "old"}


def test_refuses_a_file(tmp_path):
    (tmp_path / "target").write_text("old")
    with pytest.raises(ConversionError, match="is a file"), atomic_folder(tmp_path / "target", overwrite=True):
        pytest.fail("must not get here")


def test_overwrite_replaces_as_a_whole(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert content(target) == {"old": "old"}
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert content(target) == {"old": "old"}
    assert content(target) == {"new": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    target = tmp_path / "target"
    for name in (".target.partial-1", ".target.partial-2", ".other.partial-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    with atomic_folder(target):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"target", ".other.partial-1"}


def test_an_old_folder_whose_new_one_did_not_come_is_put_back(tmp_path):
    target = tmp_path / "target"
    (tmp_path / ".target.old-1").mkdir()
    (tmp_path / ".target.old-1" / "file").write_text("old")
    with pytest.raises(ConversionError, match="not empty"), atomic_folder(target):
        pytest.fail("must not get here")
    assert content(target) == {"file": "old"}
