"""What a training step keeps in memory, counted on a CPU, for networks of published shape.

    python benchmarks/memory.py

Writes results/reference/memory.json in two minutes: the activations that a step in 16-bit mixed precision keeps for
its gradients, per second of audio, and what the weights, their gradients and the state of AdamW take. What a GPU needs
beside them (the libraries, their workspaces, fragments) is not counted.
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import torch
from nemo.collections.asr.models import EncDecCTCModel

from clone_to_table import ROOT, cpu_name
from networks import NETWORKS
from training import loss, noise

RESULT = ROOT / "results" / "reference" / "memory.json"
LENGTHS_S = [16.7, 16.7]  # of the longest utterances that step 1 keeps: attention takes more the longer they are
STATE_BYTES = 4 + 4 + 8  # of a parameter: the weight, its gradient, the two means of AdamW


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measured = {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores ({cpu_name()})",
        "versions": {name: version(name) for name in ("nemo_toolkit", "torch")},
        "utterance_s": LENGTHS_S[0],
        "networks": {name: count(network()) for name, network in NETWORKS.items()},
    }
    RESULT.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


def count(model: EncDecCTCModel) -> dict[str, float]:
    """The memory of one step: activations in MB for each second of audio, and the rest in GB."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by address, and alive: no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss(model, noise(LENGTHS_S))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return {
        "parameters": parameters,
        "activation_mb_per_s": round(activations / sum(LENGTHS_S) / 1e6, 1),
        "state_gb": round(parameters * STATE_BYTES / 1e9, 2),
    }


if __name__ == "__main__":
    main()
