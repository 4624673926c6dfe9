"""The decode cache: views that edit the memory, split rows, commit and crop."""

from typing import Any

import pytest
import torch

from phasegpt.attention._cache import Cache, LayerCache
from phasegpt.core.errors import ConfigError


def pair(rows: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, time, 4), torch.randn(rows, 2, time, 4)


def test_growing_buffers_hold_what_concatenation_holds() -> None:
    layer, pairs = LayerCache(), [pair(3, t) for t in (5, 1, 1, 200, 1, 90)]
    for k, v in pairs:
        keys, values = layer.update(k, v)
    for found, part in ((keys, 0), (values, 1), (layer.keys, 0), (layer.values, 1)):
        assert torch.equal(found, torch.cat([p[part] for p in pairs], dim=2))
    assert layer.length == 298


def test_room_is_made_seldom() -> None:
    layer, places = LayerCache(), set()
    for _ in range(1000):
        layer.update(*pair(1, 1))
        places.add(layer.values.data_ptr())
    assert len(places) <= 6


def test_values_are_a_view_that_edits_the_memory() -> None:
    layer = LayerCache()
    layer.update(*pair(1, 3))
    layer.values[:, :, 1] = 7
    _, values = layer.update(*pair(1, 1))
    assert (values[:, :, 1] == 7).all()
    assert not (values[:, :, 0] == 7).any()


def test_copies_are_edited_alone_and_commit_makes_them_clean_again() -> None:
    cache = Cache.holding([pair(2, 6), pair(2, 6), pair(2, 6)])
    before = [layer.values.clone() for layer in cache.layers]
    cache.split(1)
    assert [len(layer.values) for layer in cache.layers] == [2, 4, 4]
    x = torch.randn(2, 1, 3)
    assert torch.equal(cache.expand(1, x), torch.cat((x, x)))
    assert cache.expand(0, x) is x
    assert cache.expand(2, x) is x

    def edit(layer: LayerCache) -> None:
        layer.values[2:, :, -4:] += 1

    cache.layers[2].edit = edit
    for i, layer in enumerate(cache.layers):
        layer.update(*pair(4 if i else 2, 1))
    edited = cache.layers[2].values
    assert torch.equal(edited[:2, :, :6], before[2])
    assert torch.equal(edited[2:, :, 3:6], before[2][:, :, 3:] + 1)
    cache.commit(4)
    for layer in cache.layers[1:]:
        assert torch.equal(layer.keys[2:], layer.keys[:2])
        assert torch.equal(layer.values[2:], layer.values[:2])


@pytest.mark.parametrize("mechanism", ["softmax", "kuramoto", "hybrid", "torus", "fsn"])
def test_a_cropped_cache_goes_on_as_if_it_had_not_seen_the_rest(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model, ids = roughen(make_model(mechanism, positions="rope")), text_ids(2, 12)
    with torch.no_grad():
        cache, short = model.new_cache(), model.new_cache()
        model(ids, cache=cache)
        cache.crop(7)
        model(ids[:, :7], cache=short)
        assert cache.length == 7
        a, b = model(ids[:, 3:5], cache=cache), model(ids[:, 3:5], cache=short)
    torch.testing.assert_close(a.logits, b.logits)


def test_running_sums_are_not_cropped(make_model: Any, text_ids: Any) -> None:
    model, cache = make_model("phase_sync"), None
    cache = model.new_cache()
    model(text_ids(1, 6), cache=cache)
    with pytest.raises(ConfigError, match="running sums"):
        cache.crop(3)


@pytest.mark.parametrize(
    "mechanism", ["softmax", "kuramoto", "phase_sync", "hybrid", "torus", "fsn", "token_shift"]
)
def test_split_rows_compute_what_the_rows_do(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model, ids = roughen(make_model(mechanism, n_layer=3)), text_ids(2, 9)
    with torch.no_grad():
        plain, cache = model.new_cache(), model.new_cache()
        for c in (plain, cache):
            model(ids[:, :7], cache=c)
        cache.split(1)
        for t in (7, 8):
            single = model(ids[:, t : t + 1], cache=plain).logits
            double = model(ids[:, t : t + 1], cache=cache).logits
            cache.commit()
            torch.testing.assert_close(double, torch.cat((single, single)), atol=1e-5, rtol=1e-5)
            # Several threads may round a row and its copy differently, in the last digit.
            torch.testing.assert_close(double[:2], double[2:], atol=2e-6, rtol=1e-5)
