"""Clips whose wavs are the same to the last sample: of several sources, or named by several rows of one."""

from collections.abc import Hashable, Sequence

from finetuning.config.schema import Repeated
from finetuning.data.listing import RejectedRow
from finetuning.data.row_filters import Candidate, source_path


def drop_repeated_audio(
    candidates: Sequence[Candidate], repeated: Repeated, rejected: list[RejectedRow]
) -> list[Candidate]:
    """Return the candidates without those whose wav is, to the last sample, that of another.

    Of several sources, the first that has it keeps it. Within a source, unless `repeated` ones are kept, one of those
    with the same text stays; of those with different texts none does, for it cannot be told which text is said.
    """
    faults: dict[str, tuple[str, str]] = {}  # reason and detail
    for first, *others in _find_alike(candidates):
        own = [first, *(candidate for candidate in others if candidate.source == first.source)]
        for candidate in others:
            if candidate.source != first.source or repeated is Repeated.drop:
                faults[candidate.audio_filepath] = ("duplicate_clip", f"the same audio as {first.audio_filepath}")
        if repeated is Repeated.drop and len({candidate.text for candidate in own}) > 1:
            for candidate in own:
                other = next(other for other in own if other.text != candidate.text)
                detail = f"the same audio as {other.audio_filepath}, whose text is {other.text!r}"
                faults[candidate.audio_filepath] = ("audio_with_other_text", detail)
    for candidate in candidates:
        if fault := faults.get(candidate.audio_filepath):
            rejected.append(RejectedRow(source_path(candidate.source, candidate.clip.path), *fault))
    return [candidate for candidate in candidates if candidate.audio_filepath not in faults]


def _find_alike(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the candidates that share their audio with another, in groups, in their order."""
    seen, several = set[int](), set[int]()  # hashes, for the groups of all candidates would fill the memory
    for candidate in candidates:
        audio = hash(_audio(candidate))
        (several if audio in seen else seen).add(audio)
    groups: dict[Hashable, list[Candidate]] = {}
    for candidate in candidates:
        audio = _audio(candidate)
        if hash(audio) in several:
            groups.setdefault(audio, []).append(candidate)
    return [group for group in groups.values() if len(group) > 1]


def _audio(candidate: Candidate) -> Hashable:
    """Return what two wavs have in common only if they are the same.

    The level is that of the recording: a checksum of 32 bits alone is the same for some pairs of a million clips. A wav
    that was converted before checksums were kept is like no other.
    """
    wav = candidate.converted
    return (
        (wav.wav_crc32, wav.duration_s, wav.sound and wav.sound.level_dbfs)
        if wav.wav_crc32
        else candidate.audio_filepath
    )
