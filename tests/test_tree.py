import numpy as np
import pytest

from mmjax import tree

PARAMS = {
    "backbone": {"head": {"bias": np.zeros(2), "kernel": np.zeros((3, 2))}, "scale": np.zeros(())},
    "projector": {"kernel": np.zeros((4, 3))},
}
PATHS = ["backbone/head/bias", "backbone/head/kernel", "backbone/scale", "projector/kernel"]


def test_paths_come_sorted_and_go_back():
    assert list(tree.flatten(PARAMS)) == PATHS
    back = tree.unflatten(tree.flatten(PARAMS))
    assert back == PARAMS
    assert back["backbone"]["scale"] is PARAMS["backbone"]["scale"]


def test_map_paths():
    shapes = tree.map_paths(lambda path, leaf: (path, leaf.shape), PARAMS)
    assert shapes["backbone"]["head"]["kernel"] == ("backbone/head/kernel", (3, 2))


def test_the_first_rule_that_is_found_decides():
    rules = [("bias$", "a"), ("^backbone/", "b"), (".*", "c"), ("kernel", "never")]
    assert tree.match(rules, PATHS, "rules") == dict(zip(PATHS, "abbc", strict=True))


def test_uncovered_paths_are_listed():
    with pytest.raises(ValueError, match="decay: no rule covers 2 parameters") as error:
        tree.match([("kernel$", 1)], PATHS, "decay")
    assert "  backbone/head/bias\n  backbone/scale\n" in str(error.value)
    assert "last rule ('.*', value)" in str(error.value)


def test_select_finds_anywhere_in_a_path():
    assert tree.select(["head/", "^projector"], PARAMS, "trainable") == dict(
        zip(PATHS, (True, True, False, True), strict=True)
    )
    assert not any(tree.select([], PARAMS, "trainable").values())


def test_a_pattern_that_finds_nothing_names_the_nearest_paths():
    with pytest.raises(ValueError, match=r"trainable: 'projectors/kernel' is found in no.*'projector/kernel'"):
        tree.select(["^backbone", "projectors/kernel"], PARAMS, "trainable")


def test_partition_and_merge_are_inverse():
    chosen, rest = tree.partition(PARAMS, tree.select(["kernel$"], PARAMS, "trainable"))
    assert list(tree.flatten(chosen)) == ["backbone/head/kernel", "projector/kernel"]
    assert list(tree.flatten(rest)) == ["backbone/head/bias", "backbone/scale"]
    assert tree.merge(rest, chosen) == PARAMS
    assert tree.merge(PARAMS, {"backbone": {"scale": 7}}) == PARAMS | {
        "backbone": PARAMS["backbone"] | {"scale": 7}
    }


def test_a_mismatch_is_explained_leaf_by_leaf():
    given = {"backbone": {"head": {"kernel": np.zeros((3, 5))}, "scale": np.zeros(())}, "extra": np.zeros(1)}
    given["projector"] = PARAMS["projector"]
    assert tree.explain_mismatch(PARAMS, given).splitlines() == [
        "  missing   backbone/head/bias (2,)",
        "  surplus   extra (1,)",
        "  shape     backbone/head/kernel is (3, 5), the model wants (3, 2)",
    ]
    assert tree.explain_mismatch(PARAMS, PARAMS) == ""


def test_a_long_explanation_is_cut():
    many = {f"layer_{i:02}": np.zeros(1) for i in range(50)}
    lines = tree.explain_mismatch(many, {}).splitlines()
    assert len(lines) == 41
    assert lines[-1] == "  ... and 10 more"


def test_count():
    assert tree.count(PARAMS) == 2 + 6 + 1 + 12
