"""KenLM's own estimator, lmplz, for a text that does not fit in memory: it sorts on the disk.

It estimates what ngrams.py does (interpolated modified Kneser-Ney; Heafield et al. 2013), the probabilities equal to
5e-7. With language_model.min_count it leaves out n-grams with a rare word, where ngrams.py counts the word as <unk>.
"""

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetuning.errors import UserError, printable
from finetuning.files import replacing
from finetuning.ngrams import FALLBACK

GB_PER_MILLION_WORDS = 0.2  # of ngrams.py, measured; more or less as the text repeats itself
SHARE = 0.5  # of the free memory that lmplz may sort in
LEAST = 1 << 26  # bytes to sort in: below, lmplz does not begin
CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
SUBSTITUTED = re.compile(r"[Ss]ubstituting fallback discounts for order (\d+)")  # counted from 0


def needed_bytes(words: int) -> int:
    """About how much memory ngrams.py takes for a text of so many words."""
    return int(words * GB_PER_MILLION_WORDS * 1e3)


def free_bytes() -> int:
    """Memory that this process can still have, by the machine, its control group and its own limit."""
    free = []
    if found := re.search(r"^MemAvailable: +(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE):
        free.append(int(found[1]) * 1024)
    for limit, used in CGROUPS:
        numbers = [_read(Path("/sys/fs/cgroup") / name).strip() for name in (limit, used)]
        if all(number.isdecimal() for number in numbers):
            free.append(int(numbers[0]) - int(numbers[1]))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and (
        found := re.search(r"^VmSize:\s+(\d+)", _read(Path("/proc/self/status")), re.M)
    ):
        free.append(limit - int(found[1]) * 1024)
    return max(0, min(free, default=1 << 62))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def program() -> str | None:
    """Where lmplz lies on the PATH."""
    return shutil.which("lmplz")


def estimate(
    lmplz: str,
    arpa: Path,
    sentences: Iterable[Sequence[str]],
    order: int,
    prune: Sequence[int],
    vocabulary: Iterable[str] | None,
) -> list[int]:
    """Write the ARPA file of a text that is read once; the orders whose discounts could not be estimated.

    `vocabulary`: the words that the model may have. UserError when lmplz fails: nothing is written then.
    """
    with replacing(arpa) as temporary, tempfile.TemporaryFile() as allowed:
        command = [lmplz, "-o", str(order), "-S", f"{max(LEAST, int(SHARE * free_bytes()))}b", "-T", f"{arpa.parent}/"]
        command += ["--arpa", str(temporary), "--discount_fallback", *map(str, FALLBACK[1:])]
        command += ["--prune", *map(str, prune)] if any(prune) else []
        if vocabulary is not None:
            allowed.writelines(f"{word}\n".encode() for word in vocabulary)
            allowed.flush()
            command += ["--limit_vocab_file", f"/dev/fd/{allowed.fileno()}"]
        status, said = _fed(command, sentences, allowed.fileno())
        if status:
            last = printable(said.strip().splitlines()[-1])[:200] if said.strip() else "without a word"
            ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise UserError(
                f"{lmplz} {ended} ({last}); nothing was written: give it more memory or disk space beside {arpa}, type "
                "the same command again"
            )
    return [int(number) + 1 for number in SUBSTITUTED.findall(said)]


def _fed(command: list[str], sentences: Iterable[Sequence[str]], inherited: int) -> tuple[int, str]:
    """Run the program on the sentences; its status and what it said on stderr. It dies with an exception here.

    `inherited`: a file descriptor that it may open.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, pass_fds=[inherited]
        )
        try:
            for words in sentences:
                process.stdin.write(" ".join(words).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:  # it has ended, and says why
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        log.seek(0)
        return status, log.read().decode("utf-8", "replace")
