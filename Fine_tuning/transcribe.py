"""A model and recordings -> what is said in them, as text, JSON lines or subtitles.

    python Fine_tuning/transcribe.py MODEL FILE_OR_FOLDER... [--format text|jsonl|srt] [--output FOLDER]
                                     [--language-model DECODER.JSON] [--config FILE]

Reads any audio or video that libsndfile or ffmpeg reads, of any length: what is longer than 17 s is cut where it is
quiet. With --output each recording gets a file of its own, and the same command goes on with those that have none yet;
without, transcripts are printed. Notices and the progress bar go to stderr.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.errors import UserError, printable, run_script
from finetuning.files import ensure_writable_dir, exclusive_lock, sha256, sha256_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from finetuning.transcription.segmentation import Segment
    from finetuning.transcription.transcripts import Passage, Recording, TranscriptFolder

    Hear = tuple[Callable[[list[Segment]], list[Passage]], int]  # what is said in segments, and their sample rate in Hz

FORMATS = ("text", "jsonl", "srt")
BATCH = 16  # segments at a time
SHOWN = 5  # names of files that are left out


def main() -> None:
    """Transcribe what can be read, and end with an error when something could not."""
    arguments = command_line()
    from finetuning.language_model.kenlm import require_flashlight
    from finetuning.transcription.transcripts import TranscriptFolder, find_recordings

    if arguments.language_model:
        require_flashlight()
    given, left_out = find_recordings(arguments.recordings)
    if left_out:
        say(f"left out, for they do not look like sound: {listed(left_out)}; give a file by its name to have it tried")
    if arguments.format == "srt" and not arguments.output and len(given) > 1:
        raise UserError(f"subtitles of {len(given)} recordings cannot be printed as one; type --output FOLDER")
    readable = [recording for recording in given if is_readable(recording)]
    path = find_model(arguments.model, arguments.config)
    decoder = Path(arguments.language_model) if arguments.language_model else None
    if decoder:
        from finetuning.decoding import weight_search

        *_, tuned = weight_search.read_decoder(decoder)  # before a model is loaded for nothing
        if tuned.get("model") != sha256(path):
            say(f"{decoder} was tuned for another model than {path.name}: its weights may not suit this one")
    used = sha256_of([sha256(path), sha256(decoder)]) if decoder else sha256(path)
    folder = ensure_writable_dir(Path(arguments.output)) if arguments.output else None
    with exclusive_lock(folder) if folder else nullcontext():
        finished, left = None, readable
        if folder:
            finished = TranscriptFolder(folder, arguments.format, used)
            left = finished.start(readable)
            for changed in finished.changed:
                say(f"{changed} is of a damaged recording and was changed since it was written; it is left as it is")
        if len(left) < len(readable):
            say(f"{len(readable) - len(left):,} of {len(given):,} recordings are transcribed already in {folder}")
        done = 0
        if left:
            hear = restore(path, decoder)
            done = transcribe(hear, left, finished, arguments.format, named=len(given) > 1)
    if bad := len(given) - (len(readable) - len(left)) - done:
        raise UserError(
            f"{bad:,} of {len(given):,} recordings are not transcribed, or not wholly, for the reasons above"
        )


def command_line() -> argparse.Namespace:
    """What was typed."""
    from finetuning.config.loading import ArgumentParser

    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a .nemo file, or a name of model.registry in the configuration")
    parser.add_argument("recordings", metavar="FILE_OR_FOLDER", nargs="+", help="of a folder, all audio files below it")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: %(default)s")
    parser.add_argument(
        "--language-model", metavar="DECODER.JSON", help="as evaluate.py evaluation.decoder=lm leaves it for a model"
    )
    parser.add_argument("--config", default="configs/italian.yaml", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--output", metavar="FOLDER", help="for one file a recording")
    return parser.parse_args()


def find_model(name_or_path: str, config: str) -> Path:
    """Return the model's file; a path needs no configuration, and is not kept from being used by one that is broken."""
    from finetuning.config import schema as experiment
    from finetuning.config.loading import load_config
    from finetuning.model.pretrained import locate_model

    try:
        models = load_config(config, []).model
    except UserError:
        if not name_or_path.endswith(".nemo"):
            raise
        models = experiment.Model()
    return locate_model(name_or_path, models)


def say(sentence: object) -> None:
    """A notice, in one line, that neither mixes with the transcripts nor with the progress bar."""
    from tqdm import tqdm

    tqdm.write(printable(str(sentence)), file=sys.stderr)


def listed(files: Sequence[Path]) -> str:
    """How many files they are, and a few of their names."""
    names = ", ".join(path.name for path in files[:SHOWN])
    return f"{len(files):,} file{'s' * (len(files) > 1)} ({names}{', …' * (len(files) > SHOWN)})"


def is_readable(recording: "Recording") -> bool:
    """Whether its file can be opened; says why not, before a model is loaded for nothing."""
    from finetuning.transcription.segmentation import check_readable

    try:
        check_readable(recording.audio)
    except UserError as error:
        say(error)
        return False
    return True


def restore(path: Path, decoder: Path | None) -> "Hear":
    """Tells of segments what is said in them: the model of `path`, by its best path or a decoder.json's beam search."""
    say(f"loading {path.name} (NeMo takes a while)")
    from finetuning.model import ctc_model

    model = ctc_model.restore_model(path)  # keeps NeMo quiet while it is imported
    from finetuning.decoding import inference, weight_search
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.transcription import recognizer

    inference.prepare_for_inference(model)
    beam = weight_search.restore_decoder(decoder, ctc_model.get_vocabulary(model)) if decoder else None
    return partial(recognizer.transcribe_segments, model, load_network(model, path), beam=beam), inference.sample_rate(
        model
    )


def transcribe(
    hear: "Hear",
    recordings: list["Recording"],
    finished: "TranscriptFolder | None",
    style: str,
    named: bool,
) -> int:
    """Print each transcript, or write it among those `finished`; how many recordings were transcribed wholly."""
    from tqdm import tqdm

    from finetuning.transcription.segmentation import stated_duration_s
    from finetuning.transcription.transcripts import format_transcript

    whole = 0
    with tqdm(total=sum(stated_duration_s(r.audio) for r in recordings), unit="s", unit_scale=True) as bar:
        for recording, passages, failure in heard(hear, recordings, bar):
            try:
                if failure and not passages:
                    raise failure
                if failure:
                    say(failure)
                elif not passages:
                    say(f"nothing is said in {recording.audio}, as far as this model hears: its transcript is empty")
                if finished:
                    finished.write(recording, format_transcript(style, recording.audio, passages), whole=not failure)
                else:
                    tqdm.write(format_transcript(style, recording.audio, passages, named), file=sys.stdout, end="")
                    sys.stdout.flush()
                whole += not failure
            except UserError as error:
                say(error)
    return whole


def heard(
    hear: "Hear", recordings: list["Recording"], bar: "tqdm"
) -> Iterator[tuple["Recording", list["Passage"], UserError | None]]:
    """Each recording with what is said in it, and what is wrong with it; in `bar` the seconds heard."""
    from finetuning.transcription.segmentation import Segment

    passages_of, rate = hear
    parts = parts_of(recordings, rate)
    passages: list[Passage] = []
    while batch := list(islice(parts, BATCH)):
        told = iter(passages_of([part for _, part in batch if isinstance(part, Segment)]))
        for recording, part in batch:
            if isinstance(part, Segment):
                passages.append(next(told))
                bar.update(passages[-1].duration_s)
            else:
                yield recording, [passage for passage in passages if passage.text.strip()], part
                passages = []


def parts_of(recordings: list["Recording"], rate: int) -> Iterator[tuple["Recording", "Segment | UserError | None"]]:
    """The segments of each recording and then, for its end, None or what is wrong with it."""
    from finetuning.transcription.segmentation import iter_segments, read_blocks

    for recording in recordings:
        failure, notes = None, set()
        try:
            for segment in iter_segments(read_blocks(recording.audio, rate, notes), rate):
                yield recording, segment
        except UserError as error:
            failure = error
        for note in sorted(notes):
            say(f"{recording.audio} {note}")
        yield recording, failure


if __name__ == "__main__":
    run_script(main)
