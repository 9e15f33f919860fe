"""Networks of published shape with random weights: what they write means nothing, how long it takes is the same."""

import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from clone_to_table import ROOT
from finetuning.model import ctc_model

ALPHABET = " abcdefghijklmnopqrstuvwxyz'"
PIECES = 1024  # of NVIDIA's English sub-word models
MODULES = "nemo.collections.asr.modules"
PREPROCESSOR = {
    "_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "sample_rate": 16000, "normalize": "per_feature",
    "window_size": 0.025, "window_stride": 0.01, "window": "hann", "features": 80, "n_fft": 512, "frame_splicing": 1,
    "dither": 0.0, "pad_to": 0,
}  # fmt: skip


def quartznet_15x5(size: int = 1) -> EncDecCTCModel:
    """NVIDIA's architecture (Kriman et al. 2020, table 1) with the letters of the published English model.

    Its channels are divided by `size`.
    """
    config = OmegaConf.load(ROOT / "configs" / "models" / "quartznet_small.yaml")
    shape = [(256, 33), (256, 39), (512, 51), (512, 63), (512, 75)]
    blocks = [block(256 // size, 33, stride=2)]
    blocks += [block(filters // size, kernel, repeat=5, residual=True) for filters, kernel in shape for _ in range(3)]
    blocks += [block(512 // size, 87, dilation=2), block(1024 // size, 1, separable=False)]
    config.encoder.jasper = blocks
    config.decoder.feat_in = 1024 // size
    config.preprocessor.dither = 0.0
    config.pop("spec_augment")
    return built(OmegaConf.to_container(config), list(ALPHABET))


def citrinet_512(size: int = 1) -> EncDecCTCModel:
    """NVIDIA's architecture (Majumdar et al. 2021); its channels are divided by `size`."""
    groups = [(11, 13, 15, 17, 19, 21), (13, 15, 17, 19, 21, 23, 25), (25, 27, 29, 31, 33, 35, 37, 39)]
    squeezed = {"se": True, "se_context_size": -1}
    blocks = [block(512 // size, 5, **squeezed)]
    for kernels in groups:
        first = {"stride": 2, "stride_last": True, "residual_mode": "stride_add"}
        for number, kernel in enumerate(kernels):
            more = squeezed | (first if number == 0 else {})
            blocks.append(block(512 // size, kernel, repeat=5, residual=True, **more))
    blocks.append(block(640 // size, 41, **squeezed))
    encoder = {"_target_": f"{MODULES}.ConvASREncoder", "feat_in": 80, "activation": "relu", "conv_mask": True}
    return built({"preprocessor": PREPROCESSOR, "encoder": {**encoder, "jasper": blocks}}, pieces())


def fastconformer_large(size: int = 1) -> EncDecCTCModel:
    """NVIDIA's architecture (Rekesh et al. 2023) with a CTC decoder; width and channels are divided by `size`."""
    encoder = {
        "_target_": f"{MODULES}.ConformerEncoder", "feat_in": 80, "feat_out": -1, "n_layers": 17,
        "d_model": 512 // size, "subsampling": "dw_striding", "subsampling_factor": 8,
        "subsampling_conv_channels": 256 // size, "ff_expansion_factor": 4, "self_attention_model": "rel_pos",
        "n_heads": 8, "att_context_size": [-1, -1], "xscaling": True, "untie_biases": True, "pos_emb_max_len": 5000,
        "conv_kernel_size": 9, "conv_norm_type": "batch_norm", "dropout": 0.1, "dropout_emb": 0.0, "dropout_att": 0.1,
    }  # fmt: skip
    return built({"preprocessor": PREPROCESSOR, "encoder": encoder}, pieces())


NETWORKS = {"QuartzNet15x5": quartznet_15x5, "Citrinet-512": citrinet_512, "FastConformer-large": fastconformer_large}


def pieces() -> list[str]:
    """As many labels as a tokenizer has pieces; a character model with these computes what one of pieces does."""
    return [chr(0x4E00 + number) for number in range(PIECES)]


def built(network: dict, labels: list[str]) -> EncDecCTCModel:
    """The model in training mode, its weights drawn from one seed."""
    decoder = {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": None} | network.pop("decoder", {})
    decoder |= {"num_classes": len(labels), "vocabulary": labels}
    ctc_model.silence_nemo()
    torch.manual_seed(0)
    return EncDecCTCModel(cfg=OmegaConf.create({**network, "decoder": decoder, "labels": labels})).train()


def block(filters: int, kernel: int, stride: int = 1, dilation: int = 1, **more: int | bool | str) -> dict:
    """One entry of NeMo's `jasper` list."""
    same = {"repeat": 1, "residual": False, "separable": True, "dropout": 0.0}
    return {"filters": filters, "kernel": [kernel], "stride": [stride], "dilation": [dilation], **same, **more}
