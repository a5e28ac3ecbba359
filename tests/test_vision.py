"""Models whose outputs are pixels or boxes: U-Nets, detectors in one stage and in two."""

import numpy as np
import pytest
from vision.cases import FOLDER, NAMES, case, check, converted, nodes_of, result_of

import onnxplain as ox
from onnxplain.errors import ModelError

UNETS = ["unet_resize", "unet_transposed"]
DOUBLE = {"dtype": "double", "ignore_last_act": False}


def disc(shape):
    """Return a mask of pixels around the middle, of the last class."""
    y, x = np.ogrid[: shape[1], : shape[2]]
    mask = np.zeros(shape, bool)
    mask[-1] = (y - 8) ** 2 + (x - 8) ** 2 < 4
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_model_keeps_what_torch_computed(name):
    check(converted(name), *case(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_node_has_a_rule_and_steps_are_named(name):
    converter = converted(name)
    steps = {"ssd": {"TopK"}, "proposals": {"TopK", "RoiAlign"}}.get(name, set())
    for method in ("gradient", "lrp", "deeplift"):
        table = converter.coverage(method)
        assert (table.rule != "").all()
        named = set(table.op[~table.exact])
        assert named == steps if method == "deeplift" else named <= steps


@pytest.mark.parametrize("name", ["unet_resize", "yolo", "ssd", "proposals"])
@pytest.mark.parametrize("method", [ox.Gradient, ox.LRP, ox.DeepLift])
def test_rows_do_not_depend_on_their_batch(name, method):
    converter, (x, _, gradients) = converted(name), case(name)
    options = {"output_idx": nodes_of(converter, list(gradients)[-1]), "dtype": "double"}
    together = result_of(method(converter, x, **options))
    for row in range(len(x)):
        alone = result_of(method(converter, x[row : row + 1], **options))
        scale = abs(together[row]).max()
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-10 * scale)


# -- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_pixels_are_chosen_by_place_slice_or_mask(name):
    converter, x = converted(name), case(name)[0]
    mask = disc(converter.output_dim[0])
    by_mask = ox.Gradient(converter, x, output_idx=mask, **DOUBLE).get_result()
    by_place = [tuple(map(int, place)) for place in np.argwhere(mask)]
    np.testing.assert_array_equal(
        ox.Gradient(converter, x, output_idx=by_place, **DOUBLE).get_result(), by_mask
    )
    line = (mask.shape[0] - 1, 8, slice(7, 10))
    on_line = np.flatnonzero(np.argwhere(mask)[:, 1] == 8)
    np.testing.assert_allclose(
        ox.Gradient(converter, x, output_idx=[line], **DOUBLE).get_result(),
        by_mask[..., on_line],
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("method", [ox.Gradient, ox.DeepLift])
def test_a_sum_over_a_region_is_explained_as_the_sum_of_its_pixels(name, method):
    converter, x = converted(name), case(name)[0]
    mask = disc(converter.output_dim[0])
    weights = mask * np.linspace(-1, 2, mask.size).reshape(mask.shape)
    pixels = method(converter, x, output_idx=mask, **DOUBLE).get_result()
    region = method(converter, x, output_weights={"region": weights}, **DOUBLE)
    assert region.get_result().shape == (*x.shape, 1)
    scale = abs(pixels).max()
    np.testing.assert_allclose(
        region.get_result()[..., 0], pixels @ weights[mask], rtol=0, atol=1e-12 * scale
    )


@pytest.mark.parametrize("name", UNETS)
def test_a_sum_over_a_region_adds_up(name):
    converter, x = converted(name), case(name)[0]
    mask = disc(converter.output_dim[0])
    found = ox.DeepLift(converter, x, output_weights=mask / mask.sum(), **DOUBLE)
    assert abs(found.decomp_goal[0]).max() > 1e-6
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], rtol=0, atol=1e-8)
    books = ox.LRP(converter, x, output_weights=mask / mask.sum(), **DOUBLE).ledger()
    assert books.gap.max() < 1e-12


# -- boxes ----------------------------------------------------------------------------------------


def test_what_suppression_keeps_is_skipped_and_boxes_and_scores_are_explained():
    converter = converted("yolo")
    assert converter.skipped_outputs == ["selected"]
    assert converter.graph.outputs == ("boxes", "scores")
    with pytest.raises(ModelError, match="selected"):
        ox.convert(FOLDER / "yolo.onnx", outputs=["selected"])


def test_boxes_and_scores_are_explained_together_or_the_top_score_alone():
    converter, x = converted("yolo"), case("yolo")[0]
    both = ox.Gradient(converter, x, output_idx=[[(0, 0)], [(0, 0), (39, 2)]], dtype="double")
    assert [parts[0].shape for parts in both.result] == [(*x.shape, 1), (*x.shape, 2)]
    best = ox.Gradient(converter, x, output_idx=[None, "top1"], **DOUBLE)
    scores = case("yolo")[1]["scores"]
    for row, flat in enumerate(scores.reshape(len(x), -1).argmax(1)):
        named = ox.Gradient(converter, x[row : row + 1], output_idx=[None, [int(flat)]], **DOUBLE)
        np.testing.assert_allclose(result_of(named)[0], result_of(best)[row], rtol=0, atol=1e-12)


def test_scores_of_the_best_follow_their_anchors():
    converter, (x, outputs, _) = converted("ssd"), case("ssd")
    place = outputs["scores"][..., 1:].max(-1).argmax(-1)
    best = ox.Gradient(converter, x, output_idx=[[0]], **DOUBLE).get_result()
    for row, anchor in enumerate(place):
        kind = 1 + int(outputs["scores"][row, anchor, 1:].argmax())
        found = ox.Gradient(converter, x, output_idx=[None, None, [(int(anchor), kind)]], **DOUBLE)
        np.testing.assert_allclose(result_of(found)[row], best[row], rtol=0, atol=1e-12)


def test_regions_that_follow_the_data_are_taken_as_they_are():
    converter, x = converted("proposals"), case("proposals")[0]
    table = converter.coverage("deeplift").set_index("op")
    assert table.remark["RoiAlign"] == "regions are taken as they are"
    assert "positions change in steps" in table.remark["TopK"]
    same = ox.DeepLift(converter, x[:1], x_ref=x[:1] * (1 - 1e-9), dtype="double")
    np.testing.assert_allclose(same.decomp_sum[0], same.decomp_goal[0], rtol=0, atol=1e-8)
