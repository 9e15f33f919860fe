"""Signs in the figures of a training run that it goes wrong: each function gives one sentence, or None."""

from collections.abc import Iterable, Sequence

MAX_BLANK_SHARE = 0.95  # share of frames; speech at ten letters a second and 50 frames a second leaves 80 %
PATIENCE = 3  # in a row before a curve counts as flat or rising


def unseen_characters(train: Iterable[str], validation: Iterable[str]) -> str | None:
    """Letters of validation texts that no training text holds: they cannot be learnt."""
    validation = list(validation)
    letters = sorted(set().union(*validation) - set().union(*train))
    if not letters:
        return None
    count = sum(not set(letters).isdisjoint(text) for text in validation)
    return (
        f"no training text holds {' '.join(letters)}, but {count:,} of {len(validation):,} validation texts do: the "
        "model cannot learn to write what it never sees; take more data, or leave them out of text.alphabet"
    )


def diverging(losses: Sequence[float], rate: float) -> str | None:
    """Mean training losses in nats a letter, one for each stretch of steps; `rate` of learning in the last."""
    if len(losses) < 2 or losses[-1] < 1.5 * min(losses) + 0.5:
        return None
    return (
        f"the training loss rises: {min(losses):.2f} nats a letter at its best, {losses[-1]:.2f} now, with a learning "
        f"rate of {rate:.1e}, which may be too high; lower training.optimizer.lr or set training.gradient_clip"
    )


def mostly_blanks(share: float) -> str | None:
    """Share of validation frames, after the warm-up of the learning rate, at which the blank is the best guess."""
    if share <= MAX_BLANK_SHARE:
        return None
    return (
        f"the model writes the blank at {share:.1%} of the validation frames, so next to no letters. This may pass "
        "after some epochs; if it does not, training.decoder_init=warm, another training.optimizer.lr or fewer "
        "frozen_epochs help"
    )


def flat(train_losses: Sequence[float], wer: float) -> str | None:
    """Training losses of all epochs; `wer` on the validation set now. A loss that is flat at a good WER has arrived."""
    if len(train_losses) <= PATIENCE or wer < 0.5 or train_losses[-1] < 0.99 * train_losses[-1 - PATIENCE]:
        return None
    return (
        f"the training loss has not fallen for {PATIENCE} epochs ({train_losses[-1 - PATIENCE]:.2f}, now "
        f"{train_losses[-1]:.2f}) at a validation WER of {wer:.2f}: try another training.optimizer.lr, "
        "training.decoder_init=warm or training.batch_norm=train"
    )


def rising(train_losses: Sequence[float], val_losses: Sequence[float]) -> str | None:
    """Losses of all epochs: validation more than 10 % above its best for some epochs in a row."""
    best = min(val_losses)
    if not all(loss > 1.1 * best for loss in val_losses[-PATIENCE:]):
        return None
    epoch = val_losses.index(best) + 1
    where = f"the validation loss was best in epoch {epoch} ({best:.2f}) and is {val_losses[-1]:.2f} now"
    if train_losses[-1] < train_losses[epoch - 1]:
        return (
            f"{where}, while the training loss falls: the model learns its training utterances by heart; more of them, "
            "training.speed_perturbation or fewer epochs help. The best epochs are kept in checkpoints/"
        )
    return f"{where}, and the training loss rises too: lower training.optimizer.lr or set training.gradient_clip"
