"""A model and recordings -> what is said in them, as text, JSON lines, subtitles or words with their times.

    python Fine_tuning/transcribe.py MODEL FILE_OR_FOLDER... [--format text|jsonl|srt|vtt|ctm|labels] [--output FOLDER]
                                     [--channels mix|split] [--language-model DECODER.JSON] [--boost FILE]
                                     [--config FILE]

Reads any audio or video that libsndfile or ffmpeg reads, of any length: what is longer than 17 s is cut where nobody
speaks. --channels split takes the two channels of a call for two speakers; --boost names a file of words and phrases to
prefer, one a line, which are normalised by the rules of the configuration. With --output each recording gets a file of
its own, and a rerun resumes with those that have none yet; without, transcripts are printed. Notices and the progress
bar go to stderr. Started by torchrun or srun, several processes share the recordings, each on a GPU of its own where
there are GPUs.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning import distributed
from finetuning.errors import UserError, describe_failure, printable, run_script
from finetuning.files import ensure_writable_dir, exclusive_lock, sha256, sha256_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from finetuning.decoding.boosting import Phrase
    from finetuning.transcription.recordings import Recording
    from finetuning.transcription.segmentation import Segment
    from finetuning.transcription.transcripts import Passage, TranscriptFolder

    # what is said in segments, their sample rate in Hz, and whether confidences are calibrated
    Transcriber = tuple[Callable[[list[Segment]], list[Passage]], int, bool]

FORMATS = ("text", "jsonl", "srt", "vtt", "ctm", "labels")
OF_ONE = {"srt": "subtitles", "vtt": "subtitles", "labels": "labels"}  # formats that do not name the recording
CHANNELS = ("mix", "split")
BATCH = 16  # segments at a time
SHOWN = 5  # names of files that are left out


def main() -> None:
    """Transcribe; of several processes that torchrun or srun has started, each does its share of the recordings."""
    arguments = command_line()
    with distributed.connect() as rank:
        if rank == 0:
            transcribe_all(arguments)
        for job in distributed.jobs() if rank else ():
            transcribe_share(*job)


def transcribe_all(arguments: argparse.Namespace) -> None:
    """Transcribe what can be read, and end with an error when something could not."""
    from finetuning.config.loading import load_config
    from finetuning.decoding.boosting import fingerprint, read_phrases
    from finetuning.language_model.kenlm import require_flashlight
    from finetuning.transcription.recordings import find_recordings
    from finetuning.transcription.transcripts import TranscriptFolder

    if arguments.language_model or arguments.boost:
        require_flashlight()
    phrases = read_phrases(Path(arguments.boost), load_config(arguments.config, []).text) if arguments.boost else []
    given, left_out = find_recordings(arguments.recordings)
    if left_out:
        notify(f"left out, for they do not look like sound: {file_names(left_out)}; name a file to have it tried")
    if arguments.format in OF_ONE and not arguments.output and len(given) > 1:
        what = OF_ONE[arguments.format]
        raise UserError(f"{what} of {len(given)} recordings cannot be printed as one; type --output FOLDER")
    if not arguments.output and distributed.size() > 1:
        raise UserError(f"{distributed.size()} processes cannot print their transcripts in order; type --output FOLDER")
    readable = [recording for recording in given if is_readable(recording)]
    path = find_model(arguments.model, arguments.config)
    decoder = Path(arguments.language_model) if arguments.language_model else None
    if decoder:
        from finetuning.decoding import weight_search

        *_, tuned = weight_search.read_decoder(decoder)  # before a model is loaded for nothing
        if tuned.get("model") != sha256(path):
            notify(f"{decoder} was tuned for another model than {path.name}: its weights may not suit this one")
    used = sha256_of([sha256(path), sha256(decoder)]) if decoder else sha256(path)
    used = sha256_of([used, arguments.channels]) if arguments.channels != "mix" else used
    used = sha256_of([used, fingerprint(phrases)]) if phrases else used
    folder = ensure_writable_dir(Path(arguments.output)) if arguments.output else None
    with exclusive_lock(folder) if folder else nullcontext():
        transcripts, left = None, readable
        if folder:
            transcripts = TranscriptFolder(folder, arguments.format, used)
            left = transcripts.start(readable)
            for changed in transcripts.changed:
                notify(f"{changed} is of a damaged recording and was changed since it was written; it is left as it is")
        if len(left) < len(readable):
            notify(f"{len(readable) - len(left):,} of {len(given):,} recordings are transcribed already in {folder}")
        done = 0
        if left:
            job = left, (path, decoder, phrases), (folder, arguments.format, used), arguments.channels, len(given) > 1
            done = transcribe_share(*distributed.broadcast(job), transcripts)
    if bad := len(given) - (len(readable) - len(left)) - done:
        raise UserError(
            f"{bad:,} of {len(given):,} recordings are not transcribed, or not wholly, for the reasons above"
        )


def command_line() -> argparse.Namespace:
    """What was typed."""
    from finetuning.config.loading import ArgumentParser

    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a .nemo file, or a name of model.registry in the configuration")
    what = "of a folder, all audio files below it; of a NeMo manifest (.json, .jsonl), those that it names"
    parser.add_argument("recordings", metavar="FILE_OR_FOLDER", nargs="+", help=what)
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: %(default)s")
    parser.add_argument(
        "--channels", choices=CHANNELS, default="mix", help="split: each of two is a speaker; default: %(default)s"
    )
    parser.add_argument(
        "--language-model", metavar="DECODER.JSON", help="as evaluate.py evaluation.decoder=lm leaves it for a model"
    )
    parser.add_argument(
        "--boost", metavar="FILE", help="words and phrases to prefer, one a line, maybe a tab and a weight"
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


def notify(sentence: object) -> None:
    """A notice, in one line, that neither mixes with the transcripts nor with the progress bar."""
    from tqdm import tqdm

    tqdm.write(printable(str(sentence)), file=sys.stderr)


def file_names(files: Sequence[Path]) -> str:
    """How many files they are, and a few of their names."""
    names = ", ".join(path.name for path in files[:SHOWN])
    return f"{len(files):,} file{'s' * (len(files) > 1)} ({names}{', …' * (len(files) > SHOWN)})"


def is_readable(recording: "Recording") -> bool:
    """Whether its file can be opened; says why not, before a model is loaded for nothing."""
    from finetuning.transcription.segmentation import check_readable

    try:
        check_readable(recording.audio)
    except UserError as error:
        notify(error)
        return False
    return True


def transcribe_share(
    recordings: list["Recording"],
    model: tuple[Path, Path | None, "list[Phrase]"],
    output: tuple[Path | None, str, str],
    channels: str,
    named: bool,
    transcripts: "TranscriptFolder | None" = None,
) -> int:
    """Transcribe this process's share of the recordings; return how many all processes have transcribed wholly.

    `output`: the folder, the format, and a hash of what transcribes. Raise UserError, in the first process, for what
    has failed in another one.
    """
    from finetuning.transcription.transcripts import TranscriptFolder

    rank, failure, whole = distributed.rank(), None, 0
    folder, style, used = output
    try:
        if rank > 0:
            transcripts = TranscriptFolder(folder, style, used, rank)
        if share := recordings[rank :: distributed.size()]:
            whole = transcribe(load_transcriber(*model), share, transcripts, style, channels, named)
    except Exception as error:  # which the others wait for
        failure = error
    shares = distributed.gather((describe_failure(failure) if failure else "", whole))
    if failure and rank == 0:
        raise failure
    for number, (reason, _) in enumerate(shares):
        if reason and rank == 0:
            raise UserError(f"process {number}: {reason}")
    return sum(count for _, count in shares)


def load_transcriber(path: Path, decoder: Path | None, phrases: "list[Phrase]") -> "Transcriber":
    """Return what transcribes segments with the model of `path`, greedily or by beam search.

    `decoder`: the decoder.json of a search with a language model; `phrases`: those that are preferred.
    """
    notify(f"loading {path.name} (NeMo takes a while)")
    from finetuning.model import ctc_model

    model = ctc_model.restore_model(path)  # keeps NeMo quiet while it is imported
    from finetuning.decoding import beam_search, confidence, inference, weight_search
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.transcription import recognizer

    inference.prepare_for_inference(model)
    beam, vocabulary = None, ctc_model.get_vocabulary(model)
    if decoder:
        beam = weight_search.restore_decoder(decoder, vocabulary, phrases)
    elif phrases:
        beam = beam_search.BeamSearch(None, {}, vocabulary, phrases), beam_search.WITHOUT_LM
    calibration = None if phrases else confidence.read_calibration(path, decoder)  # fitted without them
    by = {"beam": beam, "calibration": calibration}
    transcribe_segments = partial(recognizer.transcribe_segments, model, load_network(model, path), **by)
    return transcribe_segments, inference.sample_rate(model), calibration is not None


def transcribe(
    transcriber: "Transcriber",
    recordings: list["Recording"],
    transcripts: "TranscriptFolder | None",
    style: str,
    channels: str,
    named: bool,
) -> int:
    """Print each transcript, or write it to `transcripts`; return how many recordings were transcribed wholly."""
    from tqdm import tqdm

    from finetuning.transcription.segmentation import stated_duration_s
    from finetuning.transcription.transcripts import SPEAKERS, format_transcript

    whole, calibrated = 0, transcriber[2]
    speakers = SPEAKERS if channels == "split" else ("",)
    total_s = len(speakers) * sum(each.duration_s or stated_duration_s(each.audio) for each in recordings)
    with tqdm(total=total_s, unit="s", unit_scale=True, disable=distributed.rank() > 0) as bar:
        for recording, passages, failure in transcribe_recordings(transcriber, recordings, speakers, bar):
            try:
                if failure and not passages:
                    raise failure
                if failure:
                    notify(failure)
                elif not passages:
                    notify(f"nothing is said in {recording.audio}, as this model has it: its transcript is empty")
                transcript = format_transcript(style, recording.shown, passages, named and not transcripts, calibrated)
                if transcripts:
                    transcripts.write(recording, transcript, whole=not failure)
                else:
                    tqdm.write(transcript, file=sys.stdout, end="")
                    sys.stdout.flush()
                whole += not failure
            except UserError as error:
                notify(error)
    return whole


def transcribe_recordings(
    transcriber: "Transcriber", recordings: list["Recording"], speakers: Sequence[str], bar: "tqdm"
) -> Iterator[tuple["Recording", list["Passage"], UserError | None]]:
    """Yield each recording with what is said in it, and what is wrong with it; advance `bar` by the seconds."""
    from finetuning.transcription.recordings import parts_of
    from finetuning.transcription.segmentation import Segment
    from finetuning.transcription.voice_activity import make_listener

    transcribe_segments, rate, _ = transcriber
    parts = parts_of(recordings, rate, speakers, make_listener, notify)
    passages: list[Passage] = []
    while batch := list(islice(parts, BATCH)):
        transcribed = iter(transcribe_segments([part for _, part in batch if isinstance(part, Segment)]))
        for recording, part in batch:
            if isinstance(part, Segment):
                before_s = (
                    passages[-1].end_s if passages and passages[-1].speaker == part.speaker else recording.offset_s
                )
                passages.append(next(transcribed))
                bar.update(passages[-1].end_s - before_s)  # with the pause before it
            else:
                spoken = [passage for passage in passages if passage.text.strip()]
                yield recording, sorted(spoken, key=lambda passage: passage.said_s), part
                passages = []


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # what is printed into a file may be read by others
    run_script(main)
