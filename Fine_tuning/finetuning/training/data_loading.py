"""Utterances of a manifest -> batches for training and validation, the same in every resumed run."""

import random
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import soundfile
import torch
from nemo.collections.asr.data.audio_to_text import AudioToBPEDataset, AudioToCharDataset
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.collections.asr.parts.preprocessing.features import WaveformFeaturizer
from soundfile import LibsndfileError
from torch.utils.data import DataLoader

from finetuning.audio.decoding import SAMPLE_RATE, check_not_truncated
from finetuning.config import schema as experiment
from finetuning.data.manifest import manifest_path, parse_line
from finetuning.data.row_filters import min_ctc_frames
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.errors import UserError
from finetuning.model.ctc_model import frame_duration_s, get_vocabulary
from finetuning.processes import sigint_blocked
from finetuning.training.augmentation import build_augmentor
from finetuning.training.batch_sampler import EpochBatchSampler


class WavFeaturizer(WaveformFeaturizer):
    """NeMo's featurizer, for a wav that is a file of its own or lies in a shard."""

    def process(self, file_path: str | ShardMember, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the samples, shape (time,)."""
        return super().process(open_wav(file_path), *args, **kwargs)


def _parse_item(line: str, manifest: str) -> dict[str, Any]:
    """Parse a line of a manifest for NeMo, whose own parser would look for each wav, also in a shard, as a file."""
    utterance = parse_line(line, manifest)
    wav = utterance.wav(Path(manifest).parent)
    unused = dict.fromkeys(("offset", "speaker", "orig_sr", "token_labels"))
    audio_file = str(wav) if isinstance(wav, Path) else wav
    about = {"duration": utterance.duration, "text": utterance.text, "lang": utterance.source}  # kept with the item
    return {"audio_file": audio_file, **about, **unused}


class SeededDataset:
    """NeMo's dataset, indexed by (epoch, index): an utterance's perturbation depends on these and the seed alone."""

    def __init__(self, dataset: AudioToCharDataset | AudioToBPEDataset, seed: int) -> None:
        """Take the `seed` of the run."""
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        """Return NeMo's item; raise UserError for a wav that cannot be read, or is shorter than its manifest says."""
        index = key[1]
        random.seed(" ".join(map(str, (self.seed, *key))))
        utterance = self.dataset.manifest_processor.collection[index]
        try:
            if not isinstance(utterance.audio_file, ShardMember):  # open_wav checks that one
                info = soundfile.info(utterance.audio_file)
                check_not_truncated(info.duration, utterance.duration)
                if (info.samplerate, info.channels) != (SAMPLE_RATE, 1):  # NeMo would take it, step 3 would not
                    raise OSError(
                        f"it has {info.samplerate} Hz and {info.channels} channel(s), not {SAMPLE_RATE} Hz and 1"
                    )
            return self.dataset[index]
        except (OSError, LibsndfileError) as error:
            raise UserError(
                f"cannot read {utterance.audio_file} ({error}); run step 1 again, which makes only what is missing"
            ) from error


class InterruptSafeDataLoader(DataLoader):
    """Leaves Ctrl-C and SIGTERM to the process that trains, which then ends the workers.

    When a worker has been killed, the next batch says so, within torch's 5 s. The handler of SIGCHLD that torch
    installs would raise it at once, at whatever the process is doing: where that holds a lock of the queue to the
    worker, the lock stays held, and the end of the iterator waits for it for ever.
    """

    def __iter__(self) -> Any:
        """Return torch's iterator; workers that it starts never get Ctrl-C."""
        handler = signal.getsignal(signal.SIGCHLD)
        with sigint_blocked():
            iterator = super().__iter__()
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)  # None: not one of Python
        return iterator


def setup_data(
    model: EncDecCTCModel, config: experiment.Config, trainer: pl.Trainer
) -> tuple[EpochBatchSampler, EpochBatchSampler]:
    """Give the model its training and validation data, and return the batch samplers of both.

    Texts are used as they stand: step 1 has normalised them.
    """
    model._train_dl, train = build_dataloader(model, config, trainer, "train", augment=True)
    model._validation_dl, validation = build_dataloader(model, config, trainer, "validation")
    return train, validation


def build_dataloader(
    model: EncDecCTCModel,
    config: experiment.Config,
    trainer: pl.Trainer,
    split: str,
    augment: bool = False,
    count: int | None = None,
) -> tuple[DataLoader, EpochBatchSampler]:
    """Return the first `count` utterances of a manifest, or all, in batches for this rank.

    With `augment` their sound is changed as configured. Those that are too short for CTC are left out.
    """
    training = config.training
    about = {
        "manifest_filepath": str(manifest_path(experiment.manifest_folder(config), split)),
        "manifest_parse_func": _parse_item,
        "sample_rate": model.cfg.preprocessor.sample_rate,
    }
    if isinstance(model, EncDecCTCModelBPE):
        dataset = AudioToBPEDataset(tokenizer=model.tokenizer, use_start_end_token=False, **about)
    else:  # not normalised by NeMo, whose cleaner is English
        dataset = AudioToCharDataset(labels=list(get_vocabulary(model)), normalize=False, parser="base", **about)
    augmentor = build_augmentor(training, model.cfg.preprocessor.sample_rate) if augment else None
    speed_share = training.speed_perturbation if augment else 0.0
    dataset.featurizer = WavFeaturizer(model.cfg.preprocessor.sample_rate, augmentor=augmentor)
    utterances = dataset.manifest_processor.collection
    utterances.data = utterances.data[:count]
    utterances.data = _drop_too_short(utterances.data, model, speed_share, split, trainer.is_global_zero)
    added_s = 2 * training.silence_s if augment else 0.0  # at most
    durations_s = [utterance.duration + added_s for utterance in utterances]
    weight_of = {source.name: source.weight for source in config.dataset.sources} if split == "train" else {}
    batches = EpochBatchSampler(
        durations_s, training.batch_size, training.batch_duration_s, training.seed,
        trainer.global_rank, trainer.world_size, shuffle=split == "train",
        weights=[weight_of.get(utterance.lang, 1.0) for utterance in utterances],
    )  # fmt: skip
    loader = InterruptSafeDataLoader(
        SeededDataset(dataset, training.seed), batch_sampler=batches, collate_fn=dataset.collate_fn,
        num_workers=training.workers, worker_init_fn=_outlive_sigterm, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return loader, batches


def _outlive_sigterm(worker: int) -> None:
    """Let a worker go on for half a minute after SIGTERM: a scheduler sends it to all processes of a job.

    The process that trains saves before the next batch, which it could not get from a worker that has ended.
    """

    def end_later(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(30)  # ends it

    signal.signal(signal.SIGTERM, end_later)


def _drop_too_short(
    utterances: list[Any], model: EncDecCTCModel, speed_share: float, split: str, is_main_process: bool
) -> list[Any]:
    """Return the utterances whose texts CTC can align, shortened by `speed_share`: the others have no loss.

    Raise UserError when there are none.
    """
    frame_s = frame_duration_s(model)
    alignable = [
        u for u in utterances if min_ctc_frames(u.text_tokens) <= u.duration * (1 - speed_share) / frame_s + 1e-6
    ]
    if not alignable:
        raise UserError(f"every utterance of the {split} manifest is too short for its text; run step 1 again")
    if is_main_process and len(alignable) < len(utterances):
        print(
            f"{split}: {len(utterances) - len(alignable):,} of {len(utterances):,} utterances are left out, too short "
            "for their texts: CTC needs a frame for each token and one more between equal tokens"
        )
    return alignable
