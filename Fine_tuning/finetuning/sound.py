"""Sound in any format, of bytes or of a file, read block by block to its true end: by libsndfile, or else by ffmpeg."""

import io
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetuning.mpeg import is_frame, read_stream

if TYPE_CHECKING:
    import numpy as np
    import soundfile

BLOCK = 1 << 16  # frames read at a time
UNKNOWN = 1 << 62  # frames, says libsndfile of what was written into a pipe
TOLERATED_S = 0.5  # of sound that may be missing: durations are rounded, and encoders pad
LOUDEST = 64  # times full scale; floating-point samples beyond it are integers that nobody has divided
GOES_ON_S = 5.0  # a picture, after its sound ends, without a word
LOST = 2  # packets of sound, where a broadcast was cut: its first and its last are not whole
CANCELLED = 0.01  # of the power of the channels: where their mean has less, one is another turned over
GAP_S = 3600  # in the clock of a file; what goes further, or backwards, is a clock that was set anew
NOT_STATED = (1 << 31, 1 << 32, 1 << 63, 1 << 64)  # bytes; what is within 64 KiB of it stands for "unknown"
CONTAINERS = (  # those of ffmpeg's that hold sound; none that names other files, is a list, a text or a picture
    "aa,aac,aax,ac3,ac4,adp,aea,aiff,amr,amrnb,amrwb,ape,apc,apm,aptx,aptx_hd,asf,ast,au,avi,caf,codec2,daud,dfpwm,dsf,"
    "dss,dts,dtshd,dv,eac3,flac,flv,g722,g726,g729,gsm,gxf,iff,ilbc,ircam,lc3,live_flv,loas,matroska,mca,mlp,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,mpegtsraw,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,osq,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,sln,sol,"
    "sox,spdif,swf,tak,truehd,tta,voc,vqf,w64,wav,wsaud,wtv,wv,xa,xwma"
)
BROADCAST = ("mpegts", "mpeg")  # containers that may be cut anywhere
GUARD = ("-nostdin", "-protocol_whitelist", "file", "-format_whitelist", CONTAINERS)  # no foreign file opens another
MAGIC = re.compile(  # the first bytes of files with sound
    rb"RIFF....(WAVE|AVI )|RIFX....WAVE|RF64....WAVE|riff\x2e\x91|FORM....(AIFF|AIFC|8SVX|16SV)|\.snd|dns\.|caff|fLaC|OggS|ID3"
    rb"|wvpk|MAC |TTA1|MPCK|MP\+|tBaK|#!AMR|ADIF|qoaf|DSD |FRM8|NIST_1A|Creative Voice|\x0b\x77|\x7f\xfe\x80\x01"
    rb"|\x1a\x45\xdf\xa3|FLV\x01|\.RMF|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\x06\x0e\x2b\x34|\x00\x00\x01\xba|\xb7\xd8\x00\x20"
    rb"|....(moov|mdat|wide|free|skip|ftyp(?!heic|heix|heim|heis|hevc|hevx|mif1|msf1|avif|avis|crx |jp2 |jpx ))"
    rb"|nut/multimedia|.{0,187}?\x47(?:.{187}\x47){4}|.{0,191}?\x47(?:.{191}\x47){4}",
    re.DOTALL,
)
HEAD = 1 << 14  # bytes; two frames of AAC fit into it
TRACK = re.compile(r"^ +Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: Audio: (.+)$", re.MULTILINE)
CLOCK = (  # ffmpeg's filter for timestamps that begin again, which the next one would take for sound to be left out
    f"asetpts='st(1,if(between(PTS+ld(1),ld(0)-0.1/TB,ld(0)+{GAP_S}/TB),ld(1),ld(0)-PTS))*0"
    "+st(2,PTS+ld(1))*0+st(0,ld(2)+NB_SAMPLES/SR/TB)*0+ld(2)'"
)


class BadClip(ValueError):
    """Sound that cannot be read, or only in part."""

    def __init__(self, reason: str, detail: str = "", passing: bool = False) -> None:
        """`reason` in snake_case; `detail` is the same in every run, so no addresses and no temporary names.

        `passing`: the fault is this machine's, not the clip's; another run may read it.
        """
        super().__init__(reason, detail)
        self.reason, self.detail, self.passing = reason, detail, passing


@dataclass
class Sound:
    """Sound that is open, to be read once."""

    rate: int  # Hz
    duration_s: float  # as its header states or estimates it
    blocks: Iterator["np.ndarray"]  # (time, channels) as float32, full scale 1; BadClip at the end of what is damaged
    notes: list[str] = field(default_factory=list)  # what a listener should know, the file is their subject; at the end


def open_sound(source: bytes | Path) -> Sound:
    """The sound of a clip's bytes or of a file; BadClip when nobody can read it, OSError when it cannot be opened.

    libsndfile reads what Common Voice holds, in this process; ffmpeg, slower by far, is asked about what libsndfile
    does not know or would not read to its end.
    """
    import soundfile

    file = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with _bytes_of(source, file) as data:
        if not len(data):
            raise BadClip("clip_empty", "0 bytes")
        try:
            with _silenced():
                found = soundfile.SoundFile(_Rest(file, 0))  # without its name: a suffix would be taken for a format
        except soundfile.LibsndfileError as error:
            return _open_by_ffmpeg(source, error.error_string)
        stream = read_stream(data) if found.format == "MP3" else None
        if stream:
            read_whole, promised = stream.is_as_stated(found.frames), stream.promised
        else:
            found, read_whole = _with_what_the_header_hides(found, file, data)
            promised = found.frames + _cut_off(found)
        fault = "its last page is cut off" if found.format == "OGG" and _ends_within_a_page(data) else ""
    if read_whole:
        duration_s = min(found.frames, promised) / found.samplerate
        return Sound(found.samplerate, duration_s, _checked(_by_libsndfile(found, promised, fault)))
    found.close()
    return _open_by_ffmpeg(source, "It does not say where it ends.", stream.duration_s if stream else None)


def may_hold_sound(path: Path) -> bool:
    """Whether the first bytes of a file are those of sound or video; nobody is asked, so thousands take no time."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    if head[:1] == b"\xff" and len(head) > 6:  # AAC, whose frames state their length, or MPEG
        after = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        is_aac = head[1] & 0xF6 == 0xF0 and head[after : after + 2] == head[:2]
        return is_aac or is_frame(head, 0)
    return bool(MAGIC.match(head))


@contextmanager
def _bytes_of(source: bytes | Path, file: BinaryIO) -> Iterator[Any]:
    """Bytes to look at without moving `file`, which libsndfile reads."""
    if isinstance(source, bytes) or not os.fstat(file.fileno()).st_size:
        yield source if isinstance(source, bytes) else b""
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


# --- libsndfile


def _with_what_the_header_hides(
    found: "soundfile.SoundFile", file: BinaryIO, data: bytes | mmap.mmap
) -> tuple["soundfile.SoundFile", bool]:
    """The file, opened anew from its first sample on where its header states too few, and whether it is read whole."""
    import soundfile

    if found.format == "OGG":
        return found, _is_one_stream(data)
    hidden = _first_sample(data) if found.format in ("WAV", "WAVEX", "RF64", "AU") else None
    if hidden is None:
        return found, found.frames < UNKNOWN
    start, order = hidden
    if not soundfile.check_format("RAW", found.subtype):
        return found, False
    about = (found.samplerate, found.channels, found.subtype, order, "RAW")
    found.close()
    return soundfile.SoundFile(_Rest(file, start), "r", *about), True


class _Rest:
    """A file from a place on, as libsndfile reads it."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start
        self.readinto = file.readinto
        file.seek(start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset + (self.start if whence == os.SEEK_SET else 0), whence) - self.start

    def tell(self) -> int:
        return self.file.tell() - self.start


def _first_sample(data: bytes | mmap.mmap) -> tuple[int, str] | None:
    """Where it is and its byte order, when a wav or au holds more sound than its header states.

    So do a recording whose recorder crashed (0 bytes) and one of more than 4 GB, whose size 32 bits do not hold.
    """
    order = "big" if data[:4] in (b"RIFX", b".snd") else "little"

    def number(at: int, length: int = 4) -> int:
        return int.from_bytes(data[at : at + length], order)

    if data[:4] in (b".snd", b"dns."):
        start, size = number(4), number(8)
        return (start, order) if size < 0xFFFFFFFF and start + size < len(data) else None
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] != b"data":
        at += 8 + number(at + 4) + number(at + 4) % 2
    start, size = at + 8, number(at + 4)
    if data[:4] == b"RF64" and size == 0xFFFFFFFF:
        size = number(28, 8)  # of the chunk ds64, which comes first
    ends = (start + size, start + size + size % 2)  # a byte that fills up may be missing
    return None if any(_holds_chunks(data, end, order) for end in ends) else (start, order)


def _holds_chunks(data: bytes | mmap.mmap, at: int, order: str) -> bool:
    """Whether the file ends at `at`, or goes on from there with chunks of its own kind to its end."""
    while at + 8 <= len(data):
        if not (data[at : at + 4].isascii() and data[at : at + 4].decode("ascii").isprintable()):
            return False
        size = int.from_bytes(data[at + 4 : at + 8], order)
        at += 8 + size + size % 2
    return True


def _cut_off(found: "soundfile.SoundFile") -> int:
    """Frames that the header promises and the file does not hold, as libsndfile notes when it opens it."""
    pattern = r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
    frames = 0
    for stated, there in re.findall(pattern, found.extra_info, re.MULTILINE):
        if not any(abs(int(stated) - unknown) < 1 << 16 for unknown in NOT_STATED) and int(there):
            frames = found.frames * (int(stated) - int(there)) // int(there)
    return frames


def _is_one_stream(data: bytes | mmap.mmap) -> bool:
    """Whether an ogg has one page that begins a stream, the first: of several streams libsndfile reads one."""
    at = 0
    while (at := data.find(b"OggS", at + 4)) >= 0:
        if data[at + 4] == 0 and data[at + 5] & 2:
            return False
    return True


def _ends_within_a_page(data: bytes | mmap.mmap) -> bool:
    """Whether the last page of an ogg is longer than what is left of the file."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 26 < len(data) else 0
    return at + 27 + segments + sum(data[at + 27 : at + 27 + segments]) > len(data)


def _by_libsndfile(file: "soundfile.SoundFile", promised: int, fault: str) -> Iterator["np.ndarray"]:
    """The blocks of `file`, which should hold `promised` frames; `fault` is known already, and raised at the end."""
    import soundfile

    done = 0
    file.seekable = lambda: False  # soundfile would seek after each block: an mp3's next frame is then decoded wrong
    with file:
        while True:
            try:
                with _silenced():
                    block = file.read(BLOCK, "float32", always_2d=True)  # (time, channels)
            except soundfile.LibsndfileError as error:
                raise BadClip("clip_damaged", error.error_string) from error
            if not len(block):
                break
            done += len(block)
            yield block
        if promised - done > TOLERATED_S * file.samplerate:
            fault = _shortage(done / file.samplerate, promised / file.samplerate)
        if fault:
            raise BadClip("clip_truncated", fault)


def _shortage(done_s: float, promised_s: float) -> str:
    return f"{done_s:.2f} s of the {promised_s:.2f} s that its header promises"


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what libmpg123 writes straight to the screen about a damaged mp3."""
    sys.stderr.flush()
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)


def _checked(blocks: Iterator["np.ndarray"]) -> Iterator["np.ndarray"]:
    """The blocks, as long as they are sound."""
    import numpy as np

    for block in blocks:
        peak = float(np.abs(block).max())
        if not np.isfinite(peak):
            raise BadClip("clip_undecodable", "holds samples that are not numbers")
        if peak > LOUDEST:
            detail = f"holds floating-point samples of {peak:,.0f}, where 1 is full scale; divide them by 32,768"
            raise BadClip("clip_out_of_range", detail)
        yield block


def to_mono(samples: "np.ndarray") -> tuple["np.ndarray", bool]:
    """(time, channels) -> (time,), the mean of the channels, and whether they cancel: then it is one of them."""
    import numpy as np

    if samples.shape[1] == 1:
        return samples[:, 0], False
    mean = samples.mean(axis=1)
    power = np.square(samples, dtype=np.float64).mean(axis=0)  # (channels,)
    if np.square(mean, dtype=np.float64).mean() >= CANCELLED * power.mean():
        return mean, False
    return samples[:, int((power >= power.mean() / 2).argmax())], True


# --- ffmpeg


def ffmpeg() -> str | None:
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


def _open_by_ffmpeg(source: bytes | Path, refused: str, counted_s: float | None = None) -> Sound:
    """As `open_sound`; `refused` is what libsndfile said, `counted_s` how long it is where its frames were counted."""
    program = ffmpeg()
    if program is None:
        detail = f"libsndfile: {refused} There is no ffmpeg to ask (pip install imageio-ffmpeg)"
        raise BadClip("clip_undecodable", detail, passing=True)
    held = None
    if isinstance(source, bytes):  # in a file: a pipe cannot be read backwards, as some formats need it
        held = tempfile.NamedTemporaryFile()  # noqa: SIM115  it lives until its blocks are read
        held.write(source)
        held.flush()
        source = Path(held.name)
    asked = [program, *GUARD, "-hide_banner", "-i", f"file:{source.absolute()}"]
    track = _track(subprocess.run(asked, capture_output=True, check=False).stderr.decode(errors="replace"), refused)
    blocks = _by_ffmpeg(asked, track, counted_s, held)
    return Sound(track.rate, counted_s or track.duration_s, _checked(blocks), track.notes)


def _track(said: str, refused: str) -> _Track:
    """The track that players take, of a file that ffmpeg has `said` this about; BadClip where it holds no sound."""
    tracks = sorted(TRACK.findall(said), key=lambda track: int(track[0]))
    if not tracks:
        fault = "ffmpeg finds no sound in it" if "\n  Stream #0:" in said else "ffmpeg cannot read it either"
        raise BadClip("clip_undecodable", f"libsndfile: {refused} {fault}")
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


def _by_ffmpeg(
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
        complaint = _complaint(said.read(1 << 20).decode(errors="replace"), track)
    if process.returncode < 0:
        raise BadClip("clip_undecodable", f"ffmpeg was ended by signal {-process.returncode}", passing=True)
    if not complaint and process.returncode:
        complaint = f"ffmpeg ended with status {process.returncode}"
    done_s, promised_s = done / track.rate, counted_s or (track.duration_s if track.alone else 0.0)
    if counted_s and counted_s - done_s <= TOLERATED_S:
        complaint = ""  # of tags between recordings that were joined
    if not track.alone and track.duration_s - done_s > max(GOES_ON_S, 0.1 * track.duration_s):
        track.notes.append(
            f"has a picture that goes on after its sound ends: at {done_s:.1f} s of {track.duration_s:.1f} s"
        )
    if not complaint and promised_s - done_s > max(TOLERATED_S, 0.01 * promised_s):
        raise BadClip("clip_truncated", _shortage(done_s, promised_s))
    if complaint:
        raise BadClip("clip_damaged", complaint)


def _complaint(said: str, track: _Track) -> str:
    """The first line about the sound; what is wrong with a picture, or another track, is no concern."""
    names = {track.container, "out#0", *re.findall(r"\w+", track.codec)}
    lost = len(re.findall(r"Error submitting packet to decoder|Error while decoding stream|Decoding error", said))
    if track.container in BROADCAST and lost <= LOST:
        said = "\n".join(
            line for line in said.splitlines() if not re.search(rf"\[({track.codec.split()[0]}|aist#)", line)
        )
    for line in said.splitlines():
        speakers = re.findall(r"\[([^]]*?) @ \w+\]", line)
        stream = re.search(r"(?:[Ss]tream #?(?:0:)?|#0:)(\d+)", line)
        words = re.sub(r"\[[^]]*\] ?", "", line).strip()
        if (stream and stream[1] != track.number) or words.startswith("Last message repeated"):
            continue
        if not speakers or any(name in names or re.match(r"aist|in#|dec:", name) for name in speakers):
            return words
    return ""
