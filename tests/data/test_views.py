"""Pictures in tiles, from their headers to packed rows; that pixels and tokens are those of the published
processors is tested beside the families, in tests/hub."""

import io
import json

import numpy as np
import pytest
from materials import Words, noise, spec_of, truncated
from PIL import Image

from mmjax.data.chat import Chat
from mmjax.data.image import ImageError, ImageOptions, decode, upright_size
from mmjax.data.marks import MARK
from mmjax.data.pipeline import make_dataset
from mmjax.data.quarantine import BadRecord
from mmjax.data.views import AnyRes, Dynamic, Split, Token, Whole, layouts
from mmjax.types import Sample, Turn

TILE, SPAN = 8, 4
OPTIONS = ImageOptions(TILE, "stretch", 10_000)
DYNAMIC = dict(type="data.views.Dynamic", fewest=1, most=4)


def encoded(size, kind="PNG", **save):
    file = io.BytesIO()
    noise(size).save(file, kind, **save)
    return file.getvalue()


def words():
    tokenizer = Words()
    tokenizer.words += ["<img>", "</img>"]
    return tokenizer


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8])
def test_the_size_of_a_header_is_that_of_the_upright_picture(kind, orientation, tmp_path):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    data = encoded((40, 30), kind, exif=exif)
    (tmp_path / "a").write_bytes(data)
    expected = (30, 40) if orientation > 4 else (40, 30)
    assert upright_size(data, OPTIONS) == upright_size(tmp_path / "a", OPTIONS) == expected
    assert decode(data, OPTIONS).size == expected


def test_a_header_is_enough_and_limits_hold():
    for kind in ("PNG", "JPEG"):
        assert upright_size(truncated(encoded((40, 30), kind)), OPTIONS) == (40, 30)
    with pytest.raises(ImageError, match="over the limit of 10000 pixels"):
        upright_size(encoded((200, 51)), OPTIONS)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        upright_size("nowhere.png", OPTIONS)
    with pytest.raises(ImageError, match="no picture of a known format"):
        upright_size(b"GIF", OPTIONS)


def test_whole_pictures_need_no_size():
    assert layouts(Whole(OPTIONS), ["nowhere.png"], SPAN) == ()
    assert len(layouts(Dynamic(OPTIONS, 1, 4), [encoded((40, 10))], SPAN)) == 1


def test_anyres_puts_the_tiles_together_again():
    """Where a picture is its canvas, the tokens are its patches in raster order, a newline after each row."""
    views = AnyRes(OPTIONS, [(TILE, 2 * TILE), (2 * TILE, 2 * TILE)])
    picture = noise((16, 16))
    tiles, layout = views.cut(picture), views.layout((16, 16), SPAN + 1)
    assert tiles.shape == (5, TILE, TILE, 3) and layout.tiles == 5
    tokens = np.concatenate([_patches(tiles), np.full((5, 1, 3), -1.0)], axis=1).reshape(-1, 3)
    (pieces,) = layout.pieces
    whole, rows = tokens[pieces[:SPAN]], tokens[pieces[SPAN:]].reshape(4, 5, 3)
    np.testing.assert_array_equal(whole, _patches(tiles[:1])[0])
    assert (rows[:, -1] == -1).all()
    np.testing.assert_array_equal(rows[:, :-1].reshape(-1, 3), _patches(np.asarray(picture)[None])[0])


def test_anyres_leaves_out_padding():
    views = AnyRes(ImageOptions(4 * TILE, "stretch", 10_000), [(4 * TILE, 8 * TILE)])
    layout = views.layout((80, 20), 64 + 1)  # 4 : 1 on a canvas of 2 : 1 is half of its rows
    assert len(layout.pieces[0]) == 64 + 4 * (16 + 1) and layout.tiles == 3
    tall = views.layout((20, 80), 64 + 1)  # as high as the canvas, an eighth of its width
    assert len(tall.pieces[0]) == 64 + 8 * (2 + 1)


def _patches(tiles, side=4):
    """[n, N, 3], mean colours of patches of `side` pixels."""
    n, height, width, _ = tiles.shape
    grid = tiles.reshape(n, height // side, side, width // side, side, 3).astype(float)
    return grid.mean((2, 4)).reshape(n, -1, 3)


def test_views_that_cannot_be():
    with pytest.raises(ValueError, match=r"\[\(8, 12\)\] are no grids of tiles of 8 pixels"):
        AnyRes(OPTIONS, [(8, 12)])
    with pytest.raises(ValueError, match="a square of tokens and a newline for each tile, not 4"):
        AnyRes(OPTIONS, [(8, 16)]).layout((8, 8), 4)
    with pytest.raises(ValueError, match="wants resize='stretch', not 'pad'"):
        Split(ImageOptions(8, "pad", 100), 16)
    with pytest.raises(ValueError, match="5 tiles at least and 4 at most"):
        Dynamic(OPTIONS, 5, 4)


def test_a_picture_far_too_narrow_is_cut_all_the_same():
    for views in (Split(OPTIONS, 32), Dynamic(OPTIONS, 1, 4), AnyRes(OPTIONS, [(8, 16), (16, 8)])):
        for size in ((300, 1), (1, 300)):
            span = SPAN + isinstance(views, AnyRes)
            assert len(views.cut(noise(size))) == views.layout(size, span).tiles


def test_truncation_never_cuts_a_picture_in_tiles():
    turns = (Turn("user", "a<image>b<image>"), Turn("assistant", "x" * 3))
    sample = Sample("s", turns, (encoded((40, 10)), encoded((10, 10))))
    tokenizer = words()
    chat = Chat("plain", tokenizer, SPAN, True)
    found = layouts(Dynamic(OPTIONS, 1, 4), sample.images, SPAN)
    assert [layout.tiles for layout in found] == [5, 1]
    whole = chat.encode(sample, found)
    assert whole.media_count == 6 and whole.pictures.tolist() == [[1, 23, 5], [23, 29, 1]]
    assert whole.slot[whole.slot >= 0].tolist() == list(range(24))
    assert whole.visible[[0, 1, 22, 23, -1]].tolist() == [-1, 0, 0, 5, 5]
    assert [tokenizer.words[whole.tokens[k]] for k in (1, 2, 22, 23, 28)] == [
        "<img>", "<image>", "</img>", "<img>", "</img>"
    ]  # fmt: skip
    with pytest.raises(BadRecord, match="31 tokens and 6 media; a row takes 31 and 5"):
        chat.fit(sample, whole, 31, 5, truncate=False)
    answered = Sample("s", (Turn("user", "<image>"), Turn("assistant", "yes<image>")), sample.images)
    whole = chat.encode(answered, found)
    for length in range(1, len(whole)):
        try:
            cut = chat.fit(answered, whole, length, 6, truncate=True)
        except BadRecord:
            assert length < 24
        else:
            ends = cut.pictures[:, 1]
            assert len(cut) <= length and (ends <= len(cut)).all()
            assert (cut.slot >= 0).sum() == SPAN * cut.media_count


def test_bidirectional_blocks_end_at_special_tokens():
    sample = Sample("s", (Turn("user", "<image>"), Turn("assistant", "x")), (encoded((16, 8)),))
    tokenizer = Words()
    tokenizer.words += [Split.AROUND, Split.WHOLE, "<row_1_col_1>", "<row_1_col_2>"]
    chat = Chat("plain", tokenizer, 2, True, bidirectional_images=True)
    one = chat.encode(sample, layouts(Split(OPTIONS, 16), sample.images, 2))
    block = [1, 1, 1, 0]  # two special tokens, two projected ones
    assert one.causal.tolist() == [1, *block, *block, 1, 1, *block, 1, 1, 1]


def test_a_text_tokenizer_without_an_image_token_serves_text(hf):
    chat = Chat("bare", hf, SPAN, True, image_token="<picture>")
    chat.encode(Sample("s", (Turn("user", "hi"), Turn("assistant", "x"))))
    with pytest.raises(ValueError, match="'<picture>'"):
        chat.encode(Sample("s", (Turn("user", MARK), Turn("assistant", "x")), (b"",)))


def dataset(folder, **changes):
    media = dict(slots=6, size=TILE, resize="stretch", max_pixels=10_000, views=DYNAMIC, token="<|eot_id|>")
    spec = spec_of(str(folder / "data.jsonl"), **(dict(length=64, template="plain", media=media) | changes))
    settings = dict(span=SPAN, splice=True, rows=None, seed=0, data_dir="", quarantine=folder / "q.jsonl")
    return make_dataset(spec, words(), **settings)


def write(folder, sizes):
    lines = []
    for n, size in enumerate(sizes):
        (folder / f"{n}.png").write_bytes(encoded(size) if size else b"broken")
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"x{n}"}]
        lines.append(json.dumps(dict(id=f"r{n}", image=f"{n}.png", conversations=turns)))
    (folder / "data.jsonl").write_text("\n".join(lines))


def test_rows_hold_tiles_in_slots_next_to_one_another(tmp_path):
    sizes = [(40, 10), (8, 8), (9, 20), (10, 10), (30, 15)]
    write(tmp_path, sizes)
    data = dataset(tmp_path)
    views = Dynamic(OPTIONS, 1, 4)
    crowded = 0
    for r in range(len(data)):
        image, media = data.row(r).media["image"], 0
        for _, index in data.plan.row(r):
            tiles = views.cut(noise(sizes[index]))
            np.testing.assert_array_equal(image.values[media : media + len(tiles)], tiles)
            media += len(tiles)
        assert image.valid.tolist() == [k < media for k in range(6)]
        slot = image.slot[image.slot >= 0]
        assert slot.tolist() == list(range(media * SPAN))
        assert (data.row(r).tokens[image.slot >= 0] == words().special("<|eot_id|>")).all()
        crowded += len(data.plan.row(r)) > 1
    assert crowded and data.fingerprint == dataset(tmp_path).fingerprint


def test_a_picture_without_a_size_is_in_quarantine_before_training(tmp_path):
    write(tmp_path, [(40, 10), None])
    data = dataset(tmp_path)
    assert data.quarantine.counts() == {"main": 1} and len(data) == 1
    (tmp_path / "0.png").write_bytes(truncated(encoded((40, 10))))  # its header is whole
    row = data.row(0)
    assert data.quarantine.counts() == {"main": 2}
    assert not row.loss_weight.any() and not row.media["image"].valid.any()


def test_specs_that_cannot_be(tmp_path):
    write(tmp_path, [(8, 8)])
    source = dict(path=str(tmp_path / "data.jsonl"), root="", weight=1.0)
    with pytest.raises(ValueError, match=r"sources.main.augment: pictures in tiles cannot be turned"):
        dataset(tmp_path, sources=dict(main=source | dict(augment="dihedral")))
    media = dict(slots=6, size=TILE, resize="stretch", max_pixels=10_000)
    with pytest.raises(ValueError, match=r"data.media.views: Dynamic has no key 'mots'.*'most'"):
        dataset(tmp_path, media=media | dict(views=DYNAMIC | dict(mots=3)))
    spec = spec_of(str(tmp_path / "data.jsonl"), media=media | dict(views=DYNAMIC))
    settings = dict(span=1, splice=False, rows=None, seed=0, data_dir="", quarantine=tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="wants a model with fusion='splice'"):
        make_dataset(spec, words(), **settings)


def test_a_token_is_not_text():
    assert Token("<img>") == "<img>" and not isinstance("<img>", Token)
