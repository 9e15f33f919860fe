"""The files with which sherpa-onnx runs a model: whether a folder has them, and what its model card says of them."""

from pathlib import Path
from typing import Any

from finetuning.errors import printable
from finetuning.evaluation.results import Result
from finetuning.evaluation.results_table import markdown_table
from finetuning.files import read_json, sha256

RECORD = "sherpa_onnx.json"  # what the other files were made from, and what was measured with them
FILES = ("model.onnx", "model.int8.onnx", "tokens.txt", "test.wav", RECORD)


def read_record(folder: Path, row: Result) -> dict[str, Any] | None:
    """Return what RECORD holds; None unless all FILES in `folder` are whole, and of the model and test set of `row`."""
    record = read_json(folder / RECORD)
    made_from = {name: row["sha256"][name] for name in ("model", "manifest")}
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        return None
    hashes = {name: sha256(folder / name) for name in FILES if name != RECORD and (folder / name).is_file()}
    return record if record.get("sha256") == hashes else None


def describe_onnx_files(record: dict[str, Any]) -> str:
    """Return how sherpa-onnx runs the model, and how its files compare with the recogniser that the results are of."""
    speeds = record["seconds_of_audio_a_second"]
    own = next((speed for name, speed in speeds.items() if name not in FILES), None)  # evaluate.py's, on a CPU
    rows = [
        (
            name,
            f"{record['bytes'][name] / 1e6:.1f}" if name in record["bytes"] else "",
            f"{record['wer'][name.partition(',')[0]]:.4f}",
            f"{speed:g}",
            f"{speed / own:.2f}" if own else "",
        )
        for name, speed in speeds.items()
    ]
    return f"""

### Without NeMo: phones, browsers, single-board computers

[sherpa-onnx](https://github.com/k2-fsa/sherpa-onnx) 1.12.17 or newer runs `model.onnx`, and `model.int8.onnx`, which is
smaller, each with `tokens.txt`. They take samples at 16 kHz, so they are loaded as its model type "omnilingual", not as
one of NeMo. In Python (`pip install sherpa-onnx soundfile`):

```python
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model="model.int8.onnx", tokens="tokens.txt")
samples, rate = soundfile.read("test.wav", dtype="float32")
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
```

On the command line (`pip install sherpa-onnx-bin`):

```
sherpa-onnx-offline --omnilingual-asr-model=model.int8.onnx --tokens=tokens.txt test.wav
```

For Android, iOS, browsers and C++, take its examples of the same name:
[Kotlin](https://github.com/k2-fsa/sherpa-onnx/blob/master/kotlin-api-examples/test_offline_omnilingual_asr_ctc.kt),
[Swift](https://github.com/k2-fsa/sherpa-onnx/blob/master/swift-api-examples/omnilingual-asr-ctc.swift),
[WebAssembly](https://github.com/k2-fsa/sherpa-onnx/tree/master/wasm/asr),
[C++](https://github.com/k2-fsa/sherpa-onnx/blob/master/cxx-api-examples/omnilingual-asr-ctc-cxx-api.cc).
The speaker of `test.wav` says: {printable(record["test_wav"])}.

{markdown_table(("Recogniser", "MB", "Test WER", "Seconds of audio a second", "Ratio"), rows)}

Greedy decoding; speed in turns, with one thread of {record["processor"]}, sherpa-onnx {record["sherpa_onnx"]}."""
