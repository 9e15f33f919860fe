"""Signs in the metrics of a training run that it goes wrong: each function returns one sentence, or None."""

from collections.abc import Iterable, Sequence

MAX_BLANK_SHARE = 0.95  # share of frames; speech of ten characters a second at 50 frames a second leaves 80 %
PATIENCE = 3  # in a row before a curve counts as flat or rising


def unseen_characters(train: Iterable[str], validation: Iterable[str]) -> str | None:
    """Name the characters of validation texts that no training text contains: they cannot be learnt."""
    validation = list(validation)
    characters = sorted(set().union(*validation) - set().union(*train))
    if not characters:
        return None
    count = sum(not set(characters).isdisjoint(text) for text in validation)
    return (
        f"no training text contains {' '.join(characters)}, but {count:,} of {len(validation):,} validation texts do: "
        "the model cannot learn to write what it never sees; use more data, or leave them out of text.alphabet"
    )


def diverging(losses: Sequence[float], learning_rate: float) -> str | None:
    """Warn when the training loss rises: `losses` in nats per character, each the mean of a window of steps."""
    if len(losses) < 2 or losses[-1] < 1.5 * min(losses) + 0.5:
        return None
    return (
        f"the training loss rises: {min(losses):.2f} nats per character at its best, {losses[-1]:.2f} now, with a "
        f"learning rate of {learning_rate:.1e}, which may be too high; lower training.optimizer.lr or set "
        "training.gradient_clip"
    )


def mostly_blanks(share: float) -> str | None:
    """Warn when the blank is the most likely output at too large a `share` of the validation frames."""
    if share <= MAX_BLANK_SHARE:
        return None
    return (
        f"the model outputs the blank at {share:.1%} of the validation frames, so hardly any text. This may pass "
        "after some epochs; if it does not, training.decoder_init=warm, another training.optimizer.lr or fewer "
        "frozen_epochs help"
    )


def flat(train_losses: Sequence[float], wer: float) -> str | None:
    """Warn when the training losses of the last epochs do not fall, unless the validation `wer` is good by now."""
    if len(train_losses) <= PATIENCE or wer < 0.5 or train_losses[-1] < 0.99 * train_losses[-1 - PATIENCE]:
        return None
    return (
        f"the training loss has not fallen for {PATIENCE} epochs ({train_losses[-1 - PATIENCE]:.2f}, now "
        f"{train_losses[-1]:.2f}) at a validation WER of {wer:.2f}: try another training.optimizer.lr, "
        "training.decoder_init=warm or training.batch_norm=train"
    )


def rising(train_losses: Sequence[float], val_losses: Sequence[float]) -> str | None:
    """Warn when the validation loss has been more than 10 % above its best for some epochs in a row."""
    best = min(val_losses)
    if not all(loss > 1.1 * best for loss in val_losses[-PATIENCE:]):
        return None
    epoch = val_losses.index(best) + 1
    where = f"the validation loss was best in epoch {epoch} ({best:.2f}) and is {val_losses[-1]:.2f} now"
    if train_losses[-1] < train_losses[epoch - 1]:
        return (
            f"{where}, while the training loss falls: the model overfits; more training data, "
            "training.speed_perturbation or fewer epochs help. The best epochs are kept in checkpoints/"
        )
    return f"{where}, and the training loss rises too: lower training.optimizer.lr or set training.gradient_clip"
