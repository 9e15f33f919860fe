"""Sound that ffmpeg reads, in a process of its own: one track, at the times that its file states."""

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

GAP_S = 3600  # in the clock of a file; what goes further, or backwards, is a clock that was set anew
GOES_ON_S = 5.0  # that a file may last longer than its sound without a word
LOST = 2  # packets of sound that a broadcast may lack: where it was cut, the first and the last are not whole
CONTAINERS = (  # those of ffmpeg's that hold sound; none that names other files, is a list, a text or a picture
    "aa,aac,aax,ac3,ac4,adp,aea,aiff,amr,amrnb,amrwb,ape,apc,apm,aptx,aptx_hd,asf,ast,au,avi,caf,codec2,daud,dfpwm,dsf,"
    "dss,dts,dtshd,dv,eac3,flac,flv,g722,g726,g729,gsm,gxf,iff,ilbc,ircam,lc3,live_flv,loas,matroska,mca,mlp,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,mpegtsraw,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,osq,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,sln,sol,"
    "sox,spdif,swf,tak,truehd,tta,voc,vqf,w64,wav,wsaud,wtv,wv,xa,xwma"
)
BROADCAST = ("mpegts", "mpeg")  # containers that may be cut anywhere
GUARD = ("-nostdin", "-protocol_whitelist", "file", "-format_whitelist", CONTAINERS)  # no foreign file opens another
JOINT = "failed to create or replace stream"  # where recordings were joined; all of them are read
TRACK = re.compile(r"^ +Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: Audio: (.+)$", re.MULTILINE)
CLOCK = (  # ffmpeg's filter for timestamps that begin again, which the next one would take for sound to be left out
    f"asetpts='st(1,if(between(PTS+ld(1),ld(0)-0.1/TB,ld(0)+{GAP_S}/TB),ld(1),ld(0)-PTS))*0"
    "+st(2,PTS+ld(1))*0+st(0,ld(2)+NB_SAMPLES/SR/TB)*0+ld(2)'"
)


def find_ffmpeg() -> str | None:
    """Path of the ffmpeg on PATH, else of the one in the package imageio-ffmpeg, else None; one that runs."""
    found = shutil.which("ffmpeg")
    if found and _runs(found):
        return found
    try:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
    return found if _runs(found) else None


@lru_cache
def _runs(program: str) -> bool:
    """Whether it does: a library that it needs may be missing, or it may be another machine's."""
    try:
        return subprocess.run([program, "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@dataclass(frozen=True)
class _Track:
    """The sound that is taken of a file, as ffmpeg describes it."""

    number: str  # of the stream
    container: str
    codec: str  # its names
    rate: int  # Hz
    channels: int  # 1, or 2 for any more: ffmpeg mixes them
    duration_s: float  # of the file; 0: nobody says
    alone: bool  # the file holds nothing else, and states its duration
    notes: list[str]


def open_sound(source: bytes | Path, refused: str, counted_s: float | None = None) -> AudioStream:
    """The sound of a clip's bytes or of a file; BadClip when it cannot be read.

    `refused` is what libsndfile said of it, `counted_s` how long it is where its frames were counted.
    """
    found = find_ffmpeg()
    if found is None:
        detail = f"libsndfile: {refused} There is no ffmpeg to ask (pip install imageio-ffmpeg)"
        raise AudioError("clip_undecodable", detail, passing=True)
    held = None
    if isinstance(source, bytes):  # in a file: a pipe cannot be read backwards, as some formats need it
        held = tempfile.NamedTemporaryFile()  # noqa: SIM115  it lives until its blocks are read
        held.write(source)
        held.flush()
        source = Path(held.name)
    asked = [found, *GUARD, "-hide_banner", "-i", f"file:{source.absolute()}"]
    track = _track(subprocess.run(asked, capture_output=True, check=False).stderr.decode(errors="replace"), refused)
    blocks = _blocks(asked, track, counted_s, held)
    return AudioStream(track.rate, counted_s or track.duration_s, checked_blocks(blocks), track.notes)


def _track(said: str, refused: str) -> _Track:
    """The track that players take, of a file that ffmpeg has `said` this about; BadClip where it holds no sound."""
    tracks = sorted(TRACK.findall(said), key=lambda track: int(track[0]))
    if not tracks:
        fault = "ffmpeg finds no sound in it" if "\n  Stream #0:" in said else "ffmpeg cannot read it either"
        raise AudioError("clip_undecodable", f"libsndfile: {refused} {fault}")
    place = next((place for place, track in enumerate(tracks) if "(default)" in track[2]), 0)
    number, _, about = tracks[place]
    stated = re.search(r"(\d+) Hz, ([^,\n]+)", about)
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said)
    notes = []
    if len(tracks) > 1:
        languages = ", ".join(language or "no language stated" for _, language, _ in tracks)
        notes.append(
            f"has {len(tracks)} sound tracks ({languages}), of which number {place + 1} is taken; for another: ffmpeg "
            f"-i FILE -map 0:a:{int(not place)} -c copy OTHER.mka"
        )
    return _Track(
        number,
        container=re.search(r"^Input #0, (\S+), from ", said, re.MULTILINE)[1],
        codec=about.split(",")[0],
        rate=int(stated[1]) if stated and int(stated[1]) else 48000,
        channels=1 if stated and stated[2] in ("mono", "1 channels") else 2,
        duration_s=float(length[1]) * 3600 + float(length[2]) * 60 + float(length[3]) if length else 0.0,
        alone=said.count("\n  Stream #0:") == 1 and "Estimating duration" not in said,
        notes=notes,
    )


def _blocks(
    asked: list[str], track: _Track, counted_s: float | None, held: "tempfile._TemporaryFileWrapper | None"
) -> Iterator["np.ndarray"]:
    """The blocks of a track, at the times that its file states: silence where nothing is. `held` is kept till then."""
    import numpy as np

    options = ["-v", "error", "-map", f"0:{track.number}"]
    options += ["-af", f"{CLOCK},aresample={track.rate}:async=1:first_pts=0"]
    options += ["-ac", str(track.channels), "-ar", str(track.rate), "-f", "f32le", "-"]
    if track.container in BROADCAST:  # whose clock begins with the sound unless the picture is read too
        options += ["-map", "0:v?", "-c:v", "copy", "-f", "null", os.devnull]
    frame, done = 4 * track.channels, 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*asked, *options], stdout=subprocess.PIPE, stderr=said)
        try:
            while data := process.stdout.read(frame * BLOCK):
                samples = np.frombuffer(data, "<f4", len(data) // frame * track.channels)
                done += len(data) // frame
                yield samples.reshape(-1, track.channels)
            process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        said.seek(0)
        words = said.read(1 << 20).decode(errors="replace").replace(asked[-1].removeprefix("file:"), "it")
        complaint = _complaint(words, track)
    _judge(track, done / track.rate, counted_s, process.returncode, complaint)


def _judge(track: _Track, done_s: float, counted_s: float | None, status: int, complaint: str) -> None:
    """BadClip where the sound that was read is damaged or ends too early; what may be so is among the track's notes."""
    if status < 0:
        raise AudioError("clip_undecodable", f"ffmpeg was ended by signal {-status}", passing=True)
    if not complaint and status:
        complaint = f"ffmpeg ended with status {status}"
    if counted_s and counted_s - done_s <= TOLERATED_S:
        complaint = ""  # of tags between recordings that were joined
    if not track.alone and track.duration_s - done_s > max(GOES_ON_S, 0.1 * track.duration_s):
        track.notes.append(f"goes on after its sound ends, at {done_s:.1f} s of {track.duration_s:.1f} s")
    promised_s = counted_s or (track.duration_s if track.alone else 0.0)
    if not complaint and promised_s - done_s > max(TOLERATED_S, 0.01 * promised_s):
        raise AudioError("clip_truncated", missing_audio(done_s, promised_s))
    if complaint:
        raise AudioError("clip_damaged", complaint)


def _complaint(said: str, track: _Track) -> str:
    """The first line about the sound; what is wrong with a picture, or another track, is no concern."""
    names = {track.container, "out#0", *re.findall(r"\w+", track.codec)}
    lost = len(re.findall(r"Error submitting packet to decoder|Error while decoding stream|Decoding error", said))
    may_lose = track.container in BROADCAST and lost <= LOST
    of_packets = re.compile(rf"\[({re.escape(track.codec.split()[0])}|aist#)")
    for line in said.splitlines():
        speakers = re.findall(r"\[([^]]*?) @ \w+\]", line)
        stream = re.search(r"(?:[Ss]tream #?(?:0:)?|#0:)(\d+)", line)
        words = re.sub(r"\[[^]]*\] ?", "", line).strip()
        if (stream and stream[1] != track.number) or words.startswith(("Last message repeated", JOINT)):
            continue
        if may_lose and of_packets.search(line):
            continue
        if not speakers or any(name in names or re.match(r"aist|in#|dec:", name) for name in speakers):
            return words
    return ""
