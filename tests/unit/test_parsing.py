"""JSON and YAML that is damaged or hostile is refused, in one line, before it is built."""

import json

import pytest

from fastmoco.errors import UsageError
from fastmoco.parsing import MAX_YAML_NODES, parse_json, read_yaml
from fastmoco.pipelines.policies import POLICIES
from fastmoco.preset_files import read_preset
from fastmoco.runs.run_folder import read_config
from tests.faults import zoo_yaml

HOSTILE = list(zoo_yaml.cases())


@pytest.mark.parametrize(
    ("data", "word"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_hostile_yaml_is_refused_by_every_reader(tmp_path, data, word):
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    for read in (lambda: read_preset("policy", path, POLICIES), lambda: read_config(path)):
        with pytest.raises(UsageError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_zoo_has_what_is_promised():
    assert len({name for name, *_ in HOSTILE}) >= 30


def test_aliases_and_values_up_to_the_limit_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}}\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 1}}
    path.write_text("[" + "1," * (MAX_YAML_NODES - 2) + "1]")
    assert len(read_yaml(path)) == MAX_YAML_NODES - 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 10_000, "digits"),
        (b"\xff", "decode"),
        ("", "Expecting value"),
    ],
)
def test_hostile_json_is_refused(text, word):
    with pytest.raises(ValueError, match=word):
        parse_json(text)
    assert parse_json(json.dumps({"a": [1]})) == {"a": [1]}
