import pytest

from mmjax.build import build, resolve
from mmjax.nn.norm import Norm

NORM = dict(type="nn.norm.Norm", kind="rms", eps=1e-6, param_dtype="float32")


def test_a_type_is_found_in_mmjax_first_and_then_anywhere():
    assert resolve("nn.norm.Norm") is resolve("mmjax.nn.norm.Norm") is Norm
    assert resolve("fractions.Fraction")(1, 2) == 0.5


def test_a_class_outside_mmjax_is_built(tmp_path, monkeypatch):
    source = "class Mine:\n    def __init__(self, width):\n        self.width = width\n"
    (tmp_path / "my_parts.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert build(dict(type="my_parts.Mine"), "model.projectors.image", width=8, depth=3).width == 8


def test_a_spec_overrides_its_variant_and_a_variant_what_is_given():
    spec = dict(type="backbones.decoder.Decoder", variant="llama-7b", width=64, xattn=None)
    given = dict(vocab=7, remat=True, scan=True, dtype="bfloat16", param_dtype="float32", unasked=1)
    decoder = build(spec, "model.backbone", **given)
    assert (decoder.width, decoder.depth, decoder.vocab, decoder.remat) == (64, 32, 32_000, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(epps=1), "model.norm: Norm has no key 'epps'; did you mean 'eps'?"),
        (dict(wwwwww=1), "model.norm: Norm has no key 'wwwwww'; known: eps, kind, param_dtype."),
        (dict(parent=None), "model.norm: Norm has no key 'parent'"),
        (dict(eps=None), "model.norm: Norm requires eps."),
        (dict(type=None), "model.norm: no 'type' among its keys ['eps', 'kind', 'param_dtype']."),
        (dict(type="Norm"), "model.norm.type: 'Norm' is not a dotted name such as 'projectors.mlp.MLP'."),
        (dict(type="nn.norm.Nrm"), "model.norm.type: no 'Nrm' in mmjax.nn.norm; did you mean 'Norm'?"),
        (dict(type="nn.nrm.Norm"), "model.norm.type: no module 'nn.nrm', neither in mmjax nor on the"),
        (dict(type="no_such.Norm"), "model.norm.type: no module 'no_such', neither in mmjax nor"),
        (dict(variant="big"), "model.norm.variant: Norm has no variant 'big'"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    """None in `change` takes a key away."""
    spec = {key: value for key, value in (NORM | change).items() if value is not None or key == "parent"}
    with pytest.raises(ValueError) as error:
        build(spec, "model.norm")
    assert message in str(error.value)


def test_a_mistyped_variant_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'llama-7b'"):
        build(dict(type="backbones.decoder.Decoder", variant="llama-7B"), "model.backbone")


def test_a_module_that_fails_on_import_says_why(tmp_path, monkeypatch):
    """The module is there; what it imports is not. `no module 'broken_parts'` would send one looking for it."""
    (tmp_path / "broken_parts.py").write_text("import a_dependency_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_missing"):
        resolve("broken_parts.Mine")
