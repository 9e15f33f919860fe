"""The dataset in shards: what is in them, that they are made whole and once, and what is refused."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Script, assert_refused
from finetuning.data import shard_reader, shard_writer
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, read_manifest
from finetuning.errors import UserError
from finetuning.files import read_json
from releases import digest, small_release, write_folder

FEW = 300_000  # bytes a shard: one to four wavs
MANIFESTS = {f"{split}_manifest.json" for split in SPLITS}
PLACE = ("audio_filepath", "shard_id", "shard_offset")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("release") / "it", small_release(24))


@pytest.fixture(scope="module")
def loose(release: Path, tmp_path_factory: pytest.TempPathFactory, run_script: Script) -> Path:
    """What step 1 makes of 24 clips."""
    output = tmp_path_factory.mktemp("loose") / "data"
    made = step_1(run_script, release, output)
    assert made.returncode == 0, made.stderr[-2000:]
    return output


def step_1(run_script: Script, release: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    by_speaker = ("dataset.split.by=speaker", "dataset.workers=1")
    return run_script(
        "dataset_creation.py", f"dataset.source={release}", f"dataset.output={output}", *by_speaker, *overrides
    )


def utterances_of(folder: Path) -> dict[str, list[Utterance]]:
    return {split: read_manifest(manifest_path(folder, split)) for split in SPLITS}


def pack(loose: Path, folder: Path, chosen: dict[str, list[Utterance]] | None = None, **stamps: Any) -> bool:
    """Pack `chosen` (all there are) in shards of a few wavs; `stamps` by the wav's name without its suffix."""
    folder.mkdir(exist_ok=True)
    chosen = chosen or utterances_of(loose)
    every = {u.audio_filepath: stamps.get(Path(u.audio_filepath).stem, "") for us in chosen.values() for u in us}
    return shard_writer.pack_dataset(loose, chosen, every, read_json(loose / "dataset.json"), folder, FEW)[1]


@pytest.fixture
def packed(loose: Path, tmp_path: Path) -> Path:
    assert pack(loose, tmp_path / "packed")
    return tmp_path / "packed"


def test_shards_hold_every_wav_and_manifests_say_where(loose: Path, packed: Path, tmp_path: Path) -> None:
    """Read by this project, by tarfile and by tar."""
    seen = []
    for split, was in utterances_of(loose).items():
        now = read_manifest(manifest_path(packed, split))
        assert [replace(u, **dict.fromkeys(PLACE)) for u in now] == [replace(u, **dict.fromkeys(PLACE)) for u in was]
        for before, after in zip(was, now, strict=True):
            wav = before.wav(loose).read_bytes()
            assert after.audio_filepath == Path(before.audio_filepath).name
            assert after.wav(packed).read() == shard_reader.open_wav(after.wav(packed)).read() == wav
            with tarfile.open(packed / f"audio_{after.shard_id}.tar") as tar:
                member = tar.getmember(after.audio_filepath)
                assert tar.extractfile(member).read() == wav
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
        seen.append({u.shard_id for u in now})
        counts = [sum(u.shard_id == number for u in now) for number in seen[-1]]
        assert max(counts) - min(counts) <= 1
    assert sorted(number for numbers in seen for number in numbers) == list(range(sum(map(len, seen))))
    assert all(map(len, seen)) and len(seen[0]) > 3, "the test needs several shards"
    assert {path.name for path in packed.iterdir()} == {
        *MANIFESTS, "dataset.json", *(f"audio_{number}.tar" for number in range(sum(map(len, seen)))),
    }  # fmt: skip
    subprocess.run(["bash", "-c", 'cd "$1"; for tar in *.tar; do tar xf $tar; done', "-", packed], check=True)
    for wav in (loose / "wavs").iterdir():
        assert (packed / wav.name).read_bytes() == wav.read_bytes()


def test_shards_are_fair_samples_and_the_same_wherever_they_are_made(loose: Path, packed: Path, tmp_path: Path) -> None:
    train = read_manifest(manifest_path(packed, "train"))
    in_order = sorted(train, key=lambda u: (u.shard_id, u.shard_offset))
    assert train == sorted(train, key=lambda u: u.audio_filepath) != in_order
    pack(loose, tmp_path / "there")
    assert digest(tmp_path / "there") == digest(packed)


def test_each_shard_is_written_once_and_again_when_it_would_be_another(loose: Path, packed: Path) -> None:
    before, times = digest(packed), {path: path.stat().st_mtime_ns for path in packed.iterdir()}

    def touched() -> set[str]:
        return {path.name for path in packed.iterdir() if path.stat().st_mtime_ns != times.get(path)}

    assert not pack(loose, packed) and not touched()
    (packed / "audio_1.tar").unlink()
    os.truncate(packed / "audio_2.tar", 20_000)
    (packed / "audio_3.tar").write_bytes(b"")
    one, other = packed / "audio_4.tar", packed / "audio_0.tar"
    one.rename(packed / "aside"), other.rename(one), (packed / "aside").rename(other)
    assert pack(loose, packed) and digest(packed) == before
    assert touched() == {f"audio_{number}.tar" for number in range(5)}

    times = {path: path.stat().st_mtime_ns for path in packed.iterdir()}
    changed = read_manifest(manifest_path(packed, "test"))[0]
    assert pack(loose, packed, **{Path(changed.audio_filepath).stem: "another clip, as long as the old one"})
    assert touched() == {f"audio_{changed.shard_id}.tar"}


def test_fewer_utterances_leave_no_shard_of_the_many(loose: Path, packed: Path) -> None:
    few = {split: utterances[:2] for split, utterances in utterances_of(loose).items()}
    assert pack(loose, packed, few)
    names = {f"audio_{u.shard_id}.tar" for us in utterances_of(packed).values() for u in us}
    assert {path.name for path in packed.glob("*.tar")} == names
    assert {split: len(us) for split, us in utterances_of(packed).items()} == dict.fromkeys(SPLITS, 2)


def test_names_that_webdataset_would_split_elsewhere_get_another(loose: Path, tmp_path: Path) -> None:
    source, odd = utterances_of(loose), ("a.b", "a_b", "è una clip", "x" * 180, "x" * 181, "-sub1", "__a__")
    renamed = []
    (tmp_path / "wavs").mkdir()
    for name, utterance in zip(odd, source["train"], strict=False):
        shutil.copy(utterance.wav(loose), tmp_path / "wavs" / f"{name}.wav")
        renamed.append(replace(utterance, audio_filepath=f"wavs/{name}.wav"))
    chosen = {"train": renamed} | dict.fromkeys(SPLITS[1:], renamed[1:2])
    stamps = {u.audio_filepath: "" for u in renamed}
    (tmp_path / "packed").mkdir()
    shard_writer.pack_dataset(tmp_path, chosen, stamps, {}, tmp_path / "packed", FEW)
    now = read_manifest(manifest_path(tmp_path / "packed", "train"))
    assert [u.wav(tmp_path / "packed").read() for u in now] == [u.wav(tmp_path).read_bytes() for u in renamed]
    names = [u.audio_filepath for u in now]
    assert len(set(names)) == len(odd) and names[1] == "a_b.wav"
    assert all(name.count(".") == 1 and name.isascii() and len(name) < 100 and "-" not in name for name in names)


def rotated(loose: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A process that packs, in shards of a few wavs, train as validation, validation as test and test as train."""
    code = """
import pathlib, sys
from finetuning import files
from finetuning.data import manifest, shard_writer
loose, folder = map(pathlib.Path, sys.argv[1:3])
read = {split: manifest.read_manifest(manifest.manifest_path(loose, split)) for split in manifest.SPLITS}
chosen = {"train": read["test"], "validation": read["train"], "test": read["validation"]}
stamps = {u.audio_filepath: "" for utterances in chosen.values() for u in utterances}
shard_writer.pack_dataset(loose, chosen, stamps, files.read_json(loose / "dataset.json"), folder, int(sys.argv[3]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, loose, folder, str(FEW)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "Fine_tuning")},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def inodes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def test_ended_at_any_moment_it_goes_on_and_no_manifest_speaks_of_other_shards(
    loose: Path, packed: Path, tmp_path: Path
) -> None:
    """Every manifest and shard comes to be another: the run is ended when so many of them have gone."""
    target, undisturbed = tmp_path / "target", tmp_path / "undisturbed"
    for copy in (target, undisturbed):
        shutil.copytree(packed, copy)
    assert rotated(loose, undisturbed).wait() == 0
    before, after, were = digest(packed), digest(undisturbed), inodes(target)
    ended_early = []
    for gone, end in ((1, signal.SIGKILL), (4, signal.SIGINT), (6, signal.SIGKILL), (8, signal.SIGKILL)):
        process = rotated(loose, target)
        while process.poll() is None and len(were.items() - inodes(target).items()) < gone:
            pass
        process.send_signal(end)
        ended_early.append(process.wait() != 0)
        there = digest(target)
        whole = {name: sha for name, sha in there.items() if not name.startswith(".")}
        assert all(sha in (before.get(name), after.get(name)) for name, sha in whole.items())
        assert end == signal.SIGKILL or whole == there, "Ctrl-C left something half-written"
        manifests = [whole[name] for name in MANIFESTS & whole.keys()]
        assert set(manifests) <= set(before.values()) or set(manifests) <= set(after.values()), "old and new ones"
        for name in MANIFESTS & whole.keys():
            assert read_manifest(target / name)
    assert any(ended_early), "nothing was interrupted"
    assert rotated(loose, target).wait() == 0
    assert digest(target) == after


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tar: tar.unlink(), ("there is no", "run step 1 again")),
        (lambda tar: os.truncate(tar, tar.stat().st_size // 2), ("damaged", "delete it and run step 1 again")),
        (lambda tar: tar.write_bytes(b""), ("damaged", "delete it and run step 1 again")),
        (lambda tar: tar.write_bytes(bytes(tar.stat().st_size)), ("damaged", "delete it and run step 1 again")),
        (lambda tar: tar.write_bytes(tar.with_name("audio_1.tar").read_bytes()), ("another manifest",)),
    ],
    ids=["missing", "truncated", "empty", "zeros", "another's"],
)
def test_a_shard_that_is_not_the_manifests_is_named(packed: Path, spoil: Any, words: tuple[str, ...]) -> None:
    spoil(packed / "audio_0.tar")
    with pytest.raises(UserError) as refusal:
        read_manifest(packed / "train_manifest.json")
    for word in (*words, str(packed / "audio_0.tar")):
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wav_within_a_shard_that_is_another_is_noticed_when_it_is_read(packed: Path) -> None:
    train = read_manifest(packed / "train_manifest.json")
    number = next(u.shard_id for u in train if sum(v.shard_id == u.shard_id for v in train) > 2)
    middle = sorted((u for u in train if u.shard_id == number), key=lambda u: u.shard_offset)[1]
    with (packed / f"audio_{number}.tar").open("r+b") as tar:
        tar.seek(middle.shard_offset)
        tar.write(b"common_voice_xx")
    utterances = read_manifest(packed / "train_manifest.json")
    with pytest.raises(UserError, match=f"audio_{number}.tar does not hold {middle.audio_filepath}"):
        [u.wav(packed).read() for u in utterances]
    longer = replace(middle, duration=middle.duration + 1e9)
    with pytest.raises(UserError, match="does not hold"):
        longer.wav(packed).read()


@pytest.mark.parametrize("place", ['"shard_id": 0', '"shard_offset": 0', '"shard_id": -1, "shard_offset": 1',
                                   '"shard_id": "0", "shard_offset": 1'])  # fmt: skip
def test_a_line_that_says_half_where_its_wav_is_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(f'{{"audio_filepath": "a.wav", "duration": 1, "text": "a", {place}}}\n')
    with pytest.raises(UserError, match=r"m\.json, line 1 .*shard_id and shard_offset"):
        read_manifest(path)


def test_a_process_reads_what_its_forked_children_read_too(packed: Path) -> None:
    """As the processes of torch's DataLoader do: from files that are open already."""
    wavs = [u.wav(packed) for u in read_manifest(packed / "train_manifest.json")]
    expected = [wav.read() for wav in wavs]
    children = []
    for seed in range(3):
        if not (child := os.fork()):
            order = random.Random(seed).choices(range(len(wavs)), k=300)
            os._exit(0 if all(wavs[i].read() == expected[i] for i in order) else 1)
        children.append(child)
    assert all(wav.read() == data for _ in range(20) for wav, data in zip(wavs, expected, strict=True))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_step_1_packs_when_it_is_asked_to(loose: Path, release: Path, tmp_path: Path, run_script: Script) -> None:
    output, folder = tmp_path / "data", tmp_path / "shards"
    shutil.copytree(loose, output)
    asked = f"dataset.shards={folder}"
    made = step_1(run_script, release, output, asked)
    assert made.returncode == 0, made.stderr[-2000:]
    assert " 0 to convert" in made.stdout and "changed since" not in made.stdout and "packed into" in made.stdout
    assert "train audio_{0..0}.tar, validation audio_{1..1}.tar, test audio_{2..2}.tar" in made.stdout
    assert digest(output) == digest(loose)
    assert (folder / "dataset.json").read_bytes() == (loose / "dataset.json").read_bytes()
    before = digest(folder)
    again = step_1(run_script, release, output, asked)
    assert "nothing to pack" in again.stdout and digest(folder) == before
    other = step_1(run_script, release, output, asked, "dataset.split.seed=1")
    assert "packed into" in other.stdout and digest(folder) != before
    for split, utterances in utterances_of(output).items():
        now = read_manifest(manifest_path(folder, split))
        assert [u.text for u in now] == [u.text for u in utterances]
        assert [u.wav(folder).read() for u in now] == [u.wav(output).read_bytes() for u in utterances]


def test_a_folder_that_shards_would_spoil_is_refused(
    loose: Path, release: Path, tmp_path: Path, run_script: Script
) -> None:
    output = tmp_path / "data"
    shutil.copytree(loose, output)
    before = digest(output)
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "dataset.json").write_text('{"release": "cv-corpus-9.0/es"}')
    shards_of = f"dataset.shards={folder}"
    assert_refused(step_1(run_script, release, output, shards_of), "shards of cv-corpus-9.0/es", "dataset.shards=")
    (folder / "dataset.json").unlink()
    subprocess.run(["tar", "cf", folder / "audio_7.tar", "-C", loose, "dataset.json"], check=True)
    assert_refused(step_1(run_script, release, output, shards_of), "audio_7.tar was not made by step 1")
    (folder / "audio_7.tar").rename(folder / "train_manifest.json")
    assert_refused(step_1(run_script, release, output, shards_of), "train_manifest.json was not made by step 1")
    (folder / "train_manifest.json").rename(folder / "audio_7.tar")
    assert_refused(step_1(run_script, release, tmp_path / "new", f"dataset.shards={output}"), "dataset.output of some")
    assert_refused(
        step_1(run_script, release, output, f"dataset.shards={output}"), "another folder than dataset.output"
    )
    assert_refused(step_1(run_script, release, output, f"dataset.shards={release}/x"), "dataset.shards=…")
    assert not (tmp_path / "new").exists() and [path.name for path in folder.iterdir()] == ["audio_7.tar"]
    assert digest(output) == before


def test_without_room_for_the_shards_it_says_so_and_keeps_the_old_ones(
    loose: Path, packed: Path, release: Path, tmp_path: Path, run_script: Script
) -> None:
    output = tmp_path / "data"
    shutil.copytree(loose, output)
    script = [sys.executable, str(ROOT / "Fine_tuning" / "dataset_creation.py"), "dataset.split.by=speaker"]
    script += [f"dataset.source={release}", f"dataset.output={output}", f"dataset.shards={tmp_path / 'full'}"]
    limited = subprocess.run(["bash", "-c", 'ulimit -f 200; exec "$@"', "-", *script], capture_output=True, text=True)
    assert_refused(limited, "cannot write", "full/audio_0.tar")
    assert not (tmp_path / "full").exists()
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may make a disk")
    try:
        few = {split: utterances[:2] for split, utterances in utterances_of(loose).items()}
        assert pack(loose, disk, few)
        before = digest(disk)
        assert_refused(step_1(run_script, release, output, f"dataset.shards={disk}"), "set of missing shards", "room")
        assert digest(disk) == before
    finally:
        subprocess.run(["umount", disk], check=True)


def test_steps_2_and_3_name_a_shard_that_is_missing(packed: Path, tmp_path: Path, run_script: Script) -> None:
    for number in {u.shard_id for split in ("train", "test") for u in utterances_of(packed)[split][:1]}:
        (packed / f"audio_{number}.tar").unlink()
    for script in ("train.py", "evaluate.py"):
        refused = run_script(script, "--config", "configs/demo.yaml", f"dataset.shards={packed}")
        assert_refused(refused, "there is no", "audio_", "run step 1 again")
    refused = run_script("train.py", "--config", "configs/demo.yaml", f"dataset.shards={tmp_path / 'none'}")
    assert_refused(refused, "no manifest", "dataset_creation.py")
