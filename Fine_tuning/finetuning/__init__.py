"""The library behind the scripts: an English CTC speech recogniser, fine-tuned to another language.

One package a stage; each stands on those below it: training, export, evaluation and transcription on decoding,
language_model, data, audio, metrics, model and config, and all of them on download, files and errors.
"""

import logging
import sys

sys.modules["openvino_telemetry"] = None  # OpenVINO reports its import to Google Analytics unless it cannot import this
logging.getLogger("nv_one_logger").setLevel(logging.ERROR)  # NeMo's telemetry writes to the screen while it is imported
