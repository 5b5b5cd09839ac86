import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmoco.errors import UsageError
from fastmoco.evaluate.labels import (
    Classes,
    check_labels,
    hold_out,
    noisy_labels,
    stratified_part,
    symmetric_noise,
)

LABELS = np.repeat(np.arange(4), [1000, 500, 40, 1])


def labeled(labels, classes, names=()):
    class Set:
        def __len__(self):
            return len(labels)

        def name(self, sample_id):
            return names[sample_id] if names else f"{sample_id}.jpg"

    one = Set()
    one.labels, one.classes = np.array(labels), classes
    return one


def test_sets_that_cannot_serve_are_refused():
    train = labeled([0, 1, 1], ["cat", "dog"])
    with pytest.raises(UsageError, match=r"data\.test has images .* \(1 of 2, first 1\.jpg\)"):
        check_labels(train, labeled([0, -1], []))
    with pytest.raises(UsageError, match=r"data\.train has images without a label"):
        check_labels(labeled([-1, -1], []), train)
    with pytest.raises(UsageError, match=r"class 2 of data\.test has no image in data\.train"):
        check_labels(train, labeled([0, 2], []))
    with pytest.raises(UsageError, match=r"class dog of data\.test has no image in data\.train"):
        check_labels(labeled([0, 0], ["cat", "dog"]), train)
    with pytest.raises(UsageError, match=r"class cow of data\.test has no image in data\.train"):
        check_labels(train, labeled([0, 1], ["cat", "cow"]))
    with pytest.raises(UsageError, match=r"different classes \(such as cow\)"):
        check_labels(train, labeled([0, 1], ["cow", "eel"]))
    with pytest.raises(UsageError, match=r"different classes \(such as x\)"):
        check_labels(labeled([0, 1], ["crane", "crane"]), labeled([0], ["x", "crane"]))
    with pytest.raises(UsageError, match=r"class eel of data\.test has no image in data\.train"):
        check_labels(train, labeled([0, 2], ["cat", "dog", "eel"]))
    assert check_labels(labeled([0, 2], []), labeled([0, 2], [])) == Classes(3, ["0", "1", "2"])


def test_a_class_without_a_test_image_is_said():
    train = labeled([0, 1, 2], ["0", "1", "2"])
    with pytest.warns(UserWarning, match=r"no image of 1 of 3 classes \(2\); the accuracy is over"):
        assert check_labels(train, labeled([0, 1], ["0", "1"])).count == 3
    train = labeled(range(9), list("abcdefghi"))
    with pytest.warns(UserWarning, match=r"of 8 of 9 classes \(a, b, c, d, e, \.\.\.\)"):
        check_labels(train, labeled([8], list("abcdefghi")))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_classes_agree_by_name_whatever_their_order(data):
    names = data.draw(st.lists(st.text("0189ab", min_size=1), min_size=2, max_size=8, unique=True))
    learned = data.draw(st.permutations(names))
    there = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    true = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=9))
    test = labeled([there.index(name) for name in true], there)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classes = check_labels(labeled(range(len(learned)), learned), test)
    assert [classes.names[label] for label in test.labels] == true
    assert bool(caught) == (set(true) != set(names))


def test_a_part_has_its_share_of_every_class_and_holds_the_smaller_ones():
    parts = [stratified_part(LABELS, share, seed=3) for share in (0.01, 0.1, 1.0)]
    counts = [np.bincount(LABELS[part], minlength=4).tolist() for part in parts]
    assert counts == [[10, 5, 1, 1], [100, 50, 4, 1], [1000, 500, 40, 1]]
    assert set(parts[0]) < set(parts[1])
    assert (np.diff(parts[1]) > 0).all()
    other = stratified_part(LABELS, 0.1, seed=4)
    assert 0 < len(set(other) & set(parts[1])) < 50
    assert parts[1].max() > 1400  # not merely the first of each class
    assert not set(range(100)) <= set(parts[1])


def test_what_is_held_out_leaves_one_of_every_class():
    held = hold_out(LABELS, 0.1, seed=0)
    assert np.bincount(LABELS[held], minlength=4).tolist() == [100, 50, 4, 0]
    part = np.isin(np.arange(len(LABELS)), stratified_part(LABELS, 0.1, seed=0))
    assert (held & part).sum() < 40  # another draw


def test_noise_has_its_rate_spares_no_class_and_is_nested():
    labels = np.arange(20_000) % 10
    noisy = symmetric_noise(labels, 0.3, 10, seed=1)
    wrong = noisy != labels
    assert abs(wrong.mean() - 0.3) < 0.015  # 4.6 standard deviations
    counts = np.bincount((noisy[wrong] - labels[wrong]) % 10, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 0.85 * wrong.sum() / 9
    more = symmetric_noise(labels, 0.5, 10, seed=1)
    assert (more[wrong] == noisy[wrong]).all()
    assert (symmetric_noise(labels, 0.0, 10, seed=1) == labels).all()
    assert (symmetric_noise(labels, 1.0, 10, seed=1) != labels).all()
    assert (symmetric_noise(labels, 0.3, 10, seed=2) != noisy).any()


def test_noise_of_a_table(tmp_path):
    table = tmp_path / "noisy.csv"
    table.write_text(
        "path,noisy_50,number\ntrain/cat/1.jpg,dog,1\ndog/2.jpg,dog,x\nval/a.jpg,q,2\n"
    )
    classes = Classes(2, ["cat", "dog"])
    dataset = labeled([0, 1], classes.names, ["cat/1.jpg", "dog/2.jpg"])
    assert noisy_labels(dataset, f"{table}:noisy_50", classes, 0).tolist() == [1, 1]
    assert noisy_labels(dataset, "", classes, 0).tolist() == [0, 1]
    assert noisy_labels(dataset, "1.0", classes, 0).tolist() == [1, 0]
    with pytest.raises(UsageError, match=r"has the class '1', which data\.train has not"):
        noisy_labels(dataset, f"{table}:number", classes, 0)
    with pytest.raises(ValueError, match=r"noisy\.csv.*nothing"):
        noisy_labels(dataset, f"{table}:nothing", classes, 0)
    other = labeled([0], classes.names, ["cat/9.jpg"])
    with pytest.raises(UsageError, match=r"no row for train/cat/9\.jpg or for cat/9\.jpg"):
        noisy_labels(other, f"{table}:noisy_50", classes, 0)
    with pytest.raises(FileNotFoundError):
        noisy_labels(dataset, f"{tmp_path}/none.csv:x", classes, 0)
    for wrong in ("1.5", "-0.1", "many", "nan"):
        with pytest.raises(UsageError, match=r"label_noise must be .*set it to 0\.25"):
            noisy_labels(dataset, wrong, classes, 0)
