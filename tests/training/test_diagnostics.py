"""Warnings from the figures of a run."""

from finetuning.training import diagnostics


def test_letters_that_training_never_shows_are_named():
    assert diagnostics.unseen_characters(["ciao", "però"], ["cara"]) is None
    sentence = diagnostics.unseen_characters(["ciao"], ["perù", "più", "caia"])
    assert "contains e p r ù" in sentence
    assert "2 of 3" in sentence


def test_a_loss_that_rises_by_half_and_more_is_named():
    assert diagnostics.diverging([8.0], 0.1) is None
    assert diagnostics.diverging([8.0, 3.0, 3.2, 2.9], 0.1) is None
    assert diagnostics.diverging([0.10, 0.16], 0.1) is None  # chance, late in a run
    sentence = diagnostics.diverging([8.0, 3.0, 5.1], 0.1)
    assert "3.00" in sentence
    assert "5.10" in sentence
    assert "1.0e-01" in sentence


def test_a_model_that_writes_only_blanks_is_named():
    assert diagnostics.mostly_blanks(0.8) is None
    assert "99.5%" in diagnostics.mostly_blanks(0.995)


def test_a_flat_loss_is_named_unless_the_model_has_arrived():
    falling, still = [60.0, 50.0, 45.0, 42.0], [60.0, 45.0, 45.1, 44.9, 44.8]
    assert diagnostics.flat(falling, wer=0.9) is None
    assert diagnostics.flat(still[:4], wer=0.9) is None
    assert "45.00, now 44.80" in diagnostics.flat(still, wer=0.9)
    assert diagnostics.flat(still, wer=0.1) is None


def test_a_validation_loss_that_rises_is_named_with_its_best_epoch():
    train = [50.0, 30.0, 20.0, 10.0, 5.0]
    assert diagnostics.rising(train, [50.0, 30.0, 31.0, 32.0, 34.0]) is None
    overfit = diagnostics.rising(train, [50.0, 30.0, 34.0, 36.0, 40.0])
    assert "epoch 2 (30.00)" in overfit
    assert "the model overfits" in overfit
    both = diagnostics.rising([50.0, 30.0, 40.0, 50.0, 60.0], [50.0, 30.0, 34.0, 36.0, 40.0])
    assert "training loss rises too" in both
