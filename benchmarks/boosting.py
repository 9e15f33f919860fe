"""What a list of a domain's words brings to the beam search: how many of them are written, rightly and wrongly.

    python benchmarks/boosting.py

Needs what `make demo-domain` leaves; writes results/reference/boosting.json in a minute. The list holds the words of
the sample's text about trains and tickets that its general text lacks, so that its language model does not know them.
Of the validation and the test set, as they are and with white noise, it counts how many of these words are written that
are said (recall) and that are not (false alarms), for weights from none to far too much.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import numpy as np
import soundfile
from tqdm import tqdm

from clone_to_table import ROOT, cpu_name
from finetuning.config import loading
from finetuning.data.manifest import manifest_path, read_manifest
from finetuning.data.text_normalization import Language
from finetuning.decoding import weight_search
from finetuning.decoding.beam_search import WITHOUT_LM, BeamSearch
from finetuning.decoding.boosting import DEFAULT_WEIGHT, Phrase
from finetuning.decoding.greedy import greedy_decode
from finetuning.files import write_json
from finetuning.language_model.kenlm import find_language_model
from finetuning.metrics.error_rates import word_errors

RESULT = ROOT / "results" / "reference" / "boosting.json"
WORK = ROOT / "runs" / "demo_domain" / "general"
MODEL = ROOT / "runs" / "demo" / "Model-IT-finetuned.nemo"
WEIGHTS = (None, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)  # nats; None: without the list
NOISES_DB = (None, 10.0)  # signal-to-noise ratio; None: no noise is added


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not (WORK / "language_model").is_dir():
        sys.exit("there is no decoded demo; type: make demo-domain")
    config = loading.load_config("configs/demo_domain.yaml", [])
    language = Language.of(config.text)
    general, domain = (
        {
            word
            for line in (ROOT / source.file).read_text(encoding="utf-8").splitlines()
            for word in words(line, language)
        }
        for source in config.language_model.sources
    )
    listed = sorted(domain - general)
    measured = {"machine": cpu_name(), "words": listed, "default_weight": DEFAULT_WEIGHT, "data": {}}
    for noise_db in NOISES_DB:
        name = "as recorded" if noise_db is None else f"white noise, {noise_db:g} dB"
        measured["data"][name] = measure(listed, *recognise(ROOT / config.dataset.output, noise_db))
    write_json(RESULT, measured)
    print(json.dumps(measured, indent=2, ensure_ascii=False))


def words(line: str, language: Language) -> list[str]:
    """The words of a sentence after the rules for texts."""
    return language.normalise(line).split()


def recognise(folder: Path, noise_db: float | None) -> tuple[list[str], list[np.ndarray], object]:
    """The texts of validation and test, the demo's log-probabilities for them, (T, V + 1), and its vocabulary."""
    from finetuning.decoding.inference import iter_log_probs, prepare_for_inference
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import get_vocabulary, restore_model

    model, rng = prepare_for_inference(restore_model(MODEL)), np.random.default_rng(0)
    texts, recordings = [], []
    for split in ("validation", "test"):
        for utterance in read_manifest(manifest_path(folder, split)):
            samples, _ = soundfile.read(folder / utterance.audio_filepath, dtype="float32")
            noise = rng.normal(size=len(samples)).astype(np.float32)
            if noise_db is not None:
                samples = samples + noise * samples.std() * 10 ** (-noise_db / 20)
            texts.append(utterance.text)
            recordings.append(samples)
    outputs = list(iter_log_probs(model, load_network(model, MODEL), [[each] for each in recordings]))
    return texts, [np.array(each) for each in outputs], get_vocabulary(model)


def measure(listed: Sequence[str], texts: list[str], log_probs: list[np.ndarray], vocabulary: object) -> dict:
    """What is written with each weight, without a language model and with that of the general text."""
    decoder = WORK / "predictions" / f"{MODEL.stem}+LM" / weight_search.DECODER
    tuned, folder, config_file, _ = weight_search.read_decoder(decoder)
    arpa, lexicon, _ = find_language_model(folder, config_file)
    found: dict[str, list[dict]] = {"without": [], "with": []}
    for weight in tqdm(WEIGHTS, unit=" weights"):
        phrases = [Phrase(word, weight) for word in listed] if weight else []
        for kind, given, settings in (("without", (None, {}), WITHOUT_LM), ("with", (arpa, lexicon), tuned)):
            if kind == "without" and not weight:
                written = [greedy_decode(each, vocabulary) for each in log_probs]
            else:
                search = BeamSearch(*given, vocabulary, phrases)
                written = [search.text(each, settings) for each in log_probs]
            found[kind].append({"weight": weight, **counts(listed, texts, written)})
    return found


def counts(listed: Sequence[str], texts: list[str], written: list[str]) -> dict:
    """How many of the words are said, written where they are said, and where they are not; and the WER."""
    said = [Counter(word for word in text.split() if word in listed) for text in texts]
    heard = [Counter(word for word in text.split() if word in listed) for text in written]
    pairs = list(zip(said, heard, strict=True))
    return {
        "said": sum(each.total() for each in said),
        "right": sum((one & other).total() for one, other in pairs),
        "false_alarms": sum((other - one).total() for one, other in pairs),
        "wer": round(word_errors(texts, written).rate, 4),
    }


if __name__ == "__main__":
    main()
