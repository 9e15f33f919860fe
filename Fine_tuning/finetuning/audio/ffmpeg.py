"""Read audio with ffmpeg, in a process of its own: one track, placed at the timestamps of its file."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.audio.stream import BLOCK, TOLERATED_S, AudioError, AudioStream, checked_blocks, missing_audio

if TYPE_CHECKING:
    import numpy as np

MAX_GAP_S = 3600  # between timestamps; a larger one, or a step backwards, is a clock that was reset
MAX_SILENT_END_S = 5.0  # by which a file may outlast its audio without a note
MAX_LOST_PACKETS = 2  # of a broadcast: the first and the last are incomplete where it was cut
CONTAINERS = (  # ffmpeg's audio and video formats, without those that refer to other files, texts and images
    "aa,aac,aax,ac3,ac4,adp,aea,aiff,amr,amrnb,amrwb,ape,apc,apm,aptx,aptx_hd,asf,ast,au,avi,caf,codec2,daud,dfpwm,dsf,"
    "dss,dts,dtshd,dv,eac3,flac,flv,g722,g726,g729,gsm,gxf,iff,ilbc,ircam,lc3,live_flv,loas,matroska,mca,mlp,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,mpegtsraw,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,osq,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,sln,sol,"
    "sox,spdif,swf,tak,truehd,tta,voc,vqf,w64,wav,wsaud,wtv,wv,xa,xwma"
)
BROADCAST = ("mpegts", "mpeg")  # containers that may be cut anywhere
GUARD = (
    "-nostdin",
    "-protocol_whitelist",
    "file",
    "-format_whitelist",
    CONTAINERS,
)  # so that no file can open another one
JOINT = "failed to create or replace stream"  # logged where recordings were joined; all of them are read
# channels of layouts whose names hold no number; the others of these are of two
LAYOUTS = {"mono": 1, "quad": 4, "hexagonal": 6, "octagonal": 8, "cube": 8, "hexadecagonal": 16}
TRACK = re.compile(r"^ +Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: Audio: (.+)$", re.MULTILINE)
CLOCK = (  # filter that continues timestamps which start over; the next filter would drop that audio
    f"asetpts='st(1,if(between(PTS+ld(1),ld(0)-0.1/TB,ld(0)+{MAX_GAP_S}/TB),ld(1),ld(0)-PTS))*0"
    "+st(2,PTS+ld(1))*0+st(0,ld(2)+NB_SAMPLES/SR/TB)*0+ld(2)'"
)


def find_ffmpeg() -> str | None:
    """Return the path of a working ffmpeg: on PATH, else in the package imageio-ffmpeg, else None."""
    program = shutil.which("ffmpeg")
    if program and _runs(program):
        return program
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
    return program if _runs(program) else None


@lru_cache
def _runs(program: str) -> bool:
    """Return whether the program starts: it may lack a library or be built for another machine."""
    try:
        return subprocess.run([program, "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@dataclass(frozen=True)
class _Track:
    """The audio track of a file that is read, as ffmpeg describes it."""

    number: str  # of the stream
    container: str
    codec: str  # its names
    rate: int  # Hz
    channels: int  # of the file
    read_channels: int  # fewer, where ffmpeg mixes them down
    duration_s: float  # of the file; 0: unknown
    is_alone: bool  # the file contains nothing else and states its duration
    notes: list[str]  # for the user


def open_sound(
    source: bytes | Path, libsndfile_error: str, counted_s: float | None = None, all_channels: bool = False
) -> AudioStream:
    """Open the audio of a clip's bytes or of a file; raise AudioError when it cannot be read.

    `libsndfile_error` is why libsndfile did not read it, `counted_s` its duration where the frames were counted. More
    than two channels are mixed down to two, as players do, unless `all_channels` are to be kept.
    """
    program = find_ffmpeg()
    if program is None:
        detail = f"libsndfile: {libsndfile_error} There is no ffmpeg to try (pip install imageio-ffmpeg)"
        raise AudioError("clip_undecodable", detail, passing=True)
    temporary = None
    if isinstance(source, bytes):  # into a file: some formats need seeking, which a pipe does not allow
        temporary = tempfile.NamedTemporaryFile()  # noqa: SIM115  deleted when its blocks have been read
        temporary.write(source)
        temporary.flush()
        source = Path(temporary.name)
    command = [program, *GUARD, "-hide_banner", "-i", f"file:{source.absolute()}"]
    log = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    track = _choose_track(log, libsndfile_error, all_channels)
    blocks = _blocks(command, track, counted_s, temporary)
    duration_s, codec = counted_s or track.duration_s, track.codec.split()[0]
    return AudioStream(track.rate, track.channels, codec, duration_s, checked_blocks(blocks), track.notes)


def _choose_track(log: str, libsndfile_error: str, all_channels: bool) -> _Track:
    """Return the track that players choose, by ffmpeg's `log` about the file; raise AudioError when it has none."""
    tracks = sorted(TRACK.findall(log), key=lambda track: int(track[0]))
    if not tracks:
        fault = "ffmpeg finds no sound in it" if "\n  Stream #0:" in log else "ffmpeg cannot read it either"
        raise AudioError("clip_undecodable", f"libsndfile: {libsndfile_error} {fault}")
    index = next((index for index, track in enumerate(tracks) if "(default)" in track[2]), 0)
    number, _, description = tracks[index]
    layout = re.search(r"(\d+) Hz, ([^,\n]+)", description)
    duration = re.search(r"Duration: (\d+):(\d+):([\d.]+)", log)
    channels = _count_channels(layout[2]) if layout else 2
    notes = []
    if len(tracks) > 1:
        languages = ", ".join(language or "no language stated" for _, language, _ in tracks)
        notes.append(
            f"has {len(tracks)} audio tracks ({languages}), of which number {index + 1} is read; to read another: "
            f"ffmpeg -i FILE -map 0:a:{int(not index)} -c copy OTHER.mka"
        )
    return _Track(
        number,
        container=re.search(r"^Input #0, (\S+), from ", log, re.MULTILINE)[1],
        codec=description.split(",")[0],
        rate=int(layout[1]) if layout and int(layout[1]) else 48000,
        channels=channels,
        read_channels=channels if all_channels else min(channels, 2),
        duration_s=float(duration[1]) * 3600 + float(duration[2]) * 60 + float(duration[3]) if duration else 0.0,
        is_alone=log.count("\n  Stream #0:") == 1 and "Estimating duration" not in log,
        notes=notes,
    )


def _count_channels(layout: str) -> int:
    """Return the number of channels of a layout as ffmpeg names it, such as mono, 5.1(side) and 6 channels."""
    numbers = re.findall(r"\d+", layout.partition("(")[0])
    return sum(map(int, numbers)) or LAYOUTS.get(layout, 2)


def _blocks(
    command: list[str], track: _Track, counted_s: float | None, temporary: "tempfile._TemporaryFileWrapper | None"
) -> Iterator["np.ndarray"]:
    """Yield the blocks of a track at the timestamps of its file, with silence in gaps.

    The generator holds the `temporary` file that ffmpeg reads. Raises AudioError at the end of damaged audio.
    """
    import numpy as np

    options = ["-v", "error", "-map", f"0:{track.number}"]
    filters = f"{CLOCK},aresample={track.rate}:async=1:first_pts=0"
    if (count := track.read_channels) > 2:  # each as it is: with -ac, ffmpeg would mix one layout into another
        filters += f",pan={count}c|" + "|".join(f"c{number}=c{number}" for number in range(count))
    mixed = ["-ac", str(count)] if count <= 2 else []
    options += ["-af", filters, *mixed, "-ar", str(track.rate), "-f", "f32le", "-"]
    if track.container in BROADCAST:  # whose clock starts with the audio unless the video is read, too
        options += ["-map", "0:v?", "-c:v", "copy", "-f", "null", os.devnull]
    frame, done = 4 * count, 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log)
        try:
            while data := process.stdout.read(frame * BLOCK):
                samples = np.frombuffer(data, "<f4", len(data) // frame * count)
                done += len(data) // frame
                yield samples.reshape(-1, count)
            process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        log.seek(0)
        messages = log.read(1 << 20).decode(errors="replace").replace(command[-1].removeprefix("file:"), "it")
        complaint = _audio_complaint(messages, track)
    _check_result(track, done / track.rate, counted_s, process.returncode, complaint)


def _check_result(track: _Track, done_s: float, counted_s: float | None, status: int, complaint: str) -> None:
    """Raise AudioError when the audio that was read is damaged or ends too early; add a note when it may."""
    if status < 0:
        raise AudioError("clip_undecodable", f"ffmpeg was ended by signal {-status}", passing=True)
    if not complaint and status:
        complaint = f"ffmpeg ended with status {status}"
    if counted_s and counted_s - done_s <= TOLERATED_S:
        complaint = ""  # about tags between recordings that were joined
    if not track.is_alone and track.duration_s - done_s > max(MAX_SILENT_END_S, 0.1 * track.duration_s):
        track.notes.append(f"has no audio after {done_s:.1f} s of {track.duration_s:.1f} s")
    promised_s = counted_s or (track.duration_s if track.is_alone else 0.0)
    if not complaint and promised_s - done_s > max(TOLERATED_S, 0.01 * promised_s):
        raise AudioError("clip_truncated", missing_audio(done_s, promised_s))
    if complaint:
        raise AudioError("clip_damaged", complaint)


def _audio_complaint(log: str, track: _Track) -> str:
    """Return ffmpeg's first message about the track, "" when there is none; those about other tracks are ignored."""
    names = {track.container, "out#0", *re.findall(r"\w+", track.codec)}
    lost = len(re.findall(r"Error submitting packet to decoder|Error while decoding stream|Decoding error", log))
    tolerated = track.container in BROADCAST and lost <= MAX_LOST_PACKETS
    packet_error = re.compile(rf"\[({re.escape(track.codec.split()[0])}|aist#)")
    for line in log.splitlines():
        sources = re.findall(r"\[([^]]*?) @ \w+\]", line)
        stream = re.search(r"(?:[Ss]tream #?(?:0:)?|#0:)(\d+)", line)
        message = re.sub(r"\[[^]]*\] ?", "", line).strip()
        if (stream and stream[1] != track.number) or message.startswith(("Last message repeated", JOINT)):
            continue
        if tolerated and packet_error.search(line):
            continue
        if not sources or any(name in names or re.match(r"aist|in#|dec:", name) for name in sources):
            return message
    return ""
