import numpy as np
from matplotlib.figure import Figure

from finetuning.data import dataset_figure


def test_durations_start_at_the_shortest_clip_and_hold_every_clip() -> None:
    axes = Figure().subplots()
    seconds = {"train": [0.35, 0.4, 0.5], "validation": [0.6], "test": [0.8]}
    dataset_figure._draw_durations(axes, seconds)
    assert np.allclose(axes.get_xlim(), (0.35, 0.85))
    assert sum(bar.get_height() for group in axes.containers for bar in group) == 5


def test_every_row_of_the_rejections_holds_a_reason() -> None:
    for reasons in ({"too_long": 3}, {"too_long": 3, "empty_sentence": 1}):
        axes = Figure().subplots()
        dataset_figure._draw_rejections(axes, {"rejected": 4, "rows": 9, "rejected_by_reason": reasons})
        bottom, top = axes.get_ylim()
        assert bottom - top == len(reasons)
        assert [bar.get_width() for bar in axes.patches] == list(reasons.values())
