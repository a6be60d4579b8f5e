import pytest

from mqt_llava.files.atomic_folder import atomic_folder, clean_up


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


def test_what_came_into_the_folder_in_the_meantime_stays(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(OSError), atomic_folder(target) as folder:
        (folder / "file").write_text("new")
        target.mkdir()
        (target / "file").write_text("another's")
    assert content(target) == {"file": "another's"}
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_folder_is_back_at_once_if_the_new_one_cannot_have_its_name(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("old")
    rename = type(target).rename

    def rename_only_the_old(self, other):
        if ".partial-" in self.name:
            raise OSError("in use")
        rename(self, other)

    monkeypatch.setattr(type(target), "rename", rename_only_the_old)
    with pytest.raises(OSError, match="in use"), atomic_folder(target, overwrite=True):
        pass
    assert content(target) == {"file": "old"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["file/target", "n" * 250, "n" * 300])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(OSError, match="The output folder .* cannot be made: "),
        atomic_folder(tmp_path / "new" / ".." / name),
    ):
        pytest.fail("must not get here")
    assert content(tmp_path) == {"file": "old"}


def test_an_exception_leaves_no_folders_on_the_way(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "kept" / "a" / "b" / "target"):
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


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
    for name in (".target.partial-1", ".target.partial-2", ".other.partial-1", ".target.partial-thoughts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / ".target.partial-3").write_text("no folder")
    clean_up(target)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".other.partial-1", ".target.partial-thoughts", ".target.partial-3",
    }  # fmt: skip


def test_an_old_folder_whose_new_one_did_not_come_is_put_back(tmp_path):
    target = tmp_path / "target"
    (tmp_path / ".target.old-1").mkdir()
    (tmp_path / ".target.old-1" / "file").write_text("old")
    clean_up(target)
    assert content(target) == {"file": "old"}
