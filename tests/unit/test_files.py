"""A folder that is whole or not there."""

import pytest

from fastmoco.files import atomic_folder


def test_a_folder_appears_when_all_of_it_is_written(tmp_path):
    target = tmp_path / "a" / "folder"
    leftover = target.with_name(".folder.partial")
    leftover.mkdir(parents=True)
    (leftover / "old").write_text("of a kill")
    with atomic_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("new")
        assert not target.exists()
    assert [str(path.relative_to(target)) for path in target.rglob("*")] == ["inner", "inner/file"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_nothing(tmp_path, there):
    target = tmp_path / "folder"
    if there:
        target.mkdir()

    def write():
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(OSError, match="not empty"), atomic_folder(target) as temporary:
        (temporary / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "thesis.txt"]
