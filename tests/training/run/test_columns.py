"""Reports as the lines of a table."""

from __future__ import annotations

from fasttrain.training.run.columns import AGAIN, Columns

LOSSES = {"loss/generator": 0.70511, "loss/discriminator": 1.25, "logits/real": -12.5}


def test_a_report_is_a_line_under_its_headings() -> None:
    assert Columns(80).lines(6400, 48.7, LOSSES) == [
        "                            loss       loss     logits",
        "    images    seconds  discrimi.  generator       real",
        "     6,400         49       1.25     0.7051      -12.5",
    ]


def test_losses_come_first_where_not_all_fit() -> None:
    many = {f"gradient/{n}": 1.0 for n in range(9)} | {"data/waiting": 0.1} | LOSSES
    for width in (40, 80, 132):
        lines = Columns(width).lines(1_000_000, 86_400, many)
        assert all(len(line) <= width for line in lines)
        assert "loss" in lines[0]
        assert "data" not in lines[0]


def test_the_heading_comes_again_when_it_is_far_up_or_wrong() -> None:
    columns = Columns(80)
    counts = [len(columns.lines(n, n, LOSSES)) for n in range(2 * AGAIN)]
    assert counts == [3] + [1] * (AGAIN - 1) + [3] + [1] * (AGAIN - 1)
    assert len(columns.lines(1, 1, LOSSES)) == 3
    assert len(columns.lines(2, 2, LOSSES | {"gradient/r1": 2.0})) == 3
    assert columns.lines(3, 3, LOSSES) == ["         3          3       1.25     0.7051      -12.5"]


def test_what_is_rare_has_a_line_of_its_own() -> None:
    lines = Columns(80).lines(2, 2, LOSSES | {"fd": 279.52, "kd": 1.6, "skipped/generator": 1.0})
    assert lines[3] == "            fd 279.5  kd 1.6  skipped/generator 1"
    assert len(lines) == 4
