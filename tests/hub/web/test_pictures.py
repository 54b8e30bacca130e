from adapterhub.hub.web.pictures import CIVIDIS, heatmap, lineage


def test_a_heatmap_orders_layers_as_numbers_and_puts_the_rest_last() -> None:
    sites = [{"layer": layer, "module": "q_proj", "norm": 1.0} for layer in ("10", "-", "2")]
    picture = heatmap(sites, "norm")
    assert picture is not None
    assert picture.columns == ("2", "10", "-")


def test_the_largest_value_is_darkest_and_zero_is_lightest() -> None:
    picture = heatmap([{"layer": "0", "module": "a", "norm": 4.0}, {"layer": "1", "module": "a", "norm": 0.0}], "norm")
    assert picture is not None
    assert [cell.colour for cell in picture.cells] == [CIVIDIS[-1], CIVIDIS[0]]


def test_weight_and_bias_of_one_module_share_a_cell_by_their_joint_norm() -> None:
    picture = heatmap([{"layer": "0", "module": "a", "norm": 3.0}, {"layer": "0", "module": "a", "norm": 4.0}], "norm")
    assert picture is not None
    assert picture.table == (("a", "0", 5.0),)


def test_nothing_to_draw_gives_no_picture() -> None:
    assert heatmap([], "norm") is None
    assert lineage("a/b", [], []) is None


def test_a_lineage_draws_parents_left_and_children_right_without_overlap() -> None:
    edge = {"name": "x/y", "relation": "merge", "commit": "0" * 40, "repository": "1", "weight": 0.5}
    picture = lineage("a/b", [edge, edge], [edge] * 9)
    assert picture is not None
    assert picture.hidden == 1
    places = {(box.x, box.y) for box in picture.boxes}
    assert len(places) == 1 + 2 + 8
    assert picture.arrows[0].label == "merge × 0.5"
