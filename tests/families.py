"""Small models of each CTC family, built from the keys of NeMo's own configurations and saved by stock NeMo."""

from pathlib import Path
from typing import Any

from small import ITALIAN

MODULES = "nemo.collections.asr.modules"
PREPROCESSOR = {
    "_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "sample_rate": 16000, "normalize": "per_feature",
    "window_size": 0.025, "window_stride": 0.01, "window": "hann", "features": 80, "n_fft": 512, "frame_splicing": 1,
    "dither": 1e-5, "pad_to": 0,
}  # fmt: skip
SPEC_AUGMENT = {
    "_target_": f"{MODULES}.SpectrogramAugmentation", "freq_masks": 2, "time_masks": 5, "freq_width": 27,
    "time_width": 0.05,
}  # fmt: skip
DECODER = {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
FAMILIES = {  # name: class, frames of 10 ms that become one
    "citrinet": ("EncDecCTCModelBPE", 8),
    "conformer": ("EncDecCTCModelBPE", 4),
    "fastconformer": ("EncDecCTCModelBPE", 8),
    "conformer_char": ("EncDecCTCModel", 4),
    "hybrid": ("EncDecHybridRNNTCTCBPEModel", 8),
    "hybrid_char": ("EncDecHybridRNNTCTCModel", 8),
}


def conformer(subsampling: str, factor: int) -> dict[str, Any]:
    return {
        "_target_": f"{MODULES}.ConformerEncoder", "feat_in": 80, "feat_out": -1, "n_layers": 2, "d_model": 64,
        "subsampling": subsampling, "subsampling_factor": factor, "subsampling_conv_channels": 32,
        "causal_downsampling": False, "ff_expansion_factor": 4, "self_attention_model": "rel_pos", "n_heads": 4,
        "att_context_size": [-1, -1], "att_context_style": "regular", "xscaling": True, "untie_biases": True,
        "pos_emb_max_len": 5000, "conv_kernel_size": 9, "conv_norm_type": "batch_norm", "dropout": 0.1,
        "dropout_pre_encoder": 0.1, "dropout_emb": 0.0, "dropout_att": 0.1, "stochastic_depth_drop_prob": 0.0,
        "stochastic_depth_mode": "linear", "stochastic_depth_start_layer": 1,
    }  # fmt: skip


def citrinet() -> dict[str, Any]:
    def block(filters: int, repeat: int, kernel: int, stride: int = 1, residual: bool = True) -> dict[str, Any]:
        block = {
            "filters": filters, "repeat": repeat, "kernel": [kernel], "stride": [stride], "dilation": [1],
            "dropout": 0.0, "residual": residual, "separable": True, "se": True, "se_context_size": -1,
        }  # fmt: skip
        return block | ({"stride_last": True, "residual_mode": "stride_add"} if stride > 1 else {})

    blocks = [block(64, 1, 5, residual=False), block(64, 2, 11, 2), block(64, 2, 13), block(64, 2, 15, 2)]
    blocks += [block(64, 2, 17, 2), block(96, 1, 41, residual=False)]
    encoder = {"_target_": f"{MODULES}.ConvASREncoder", "feat_in": 80, "activation": "relu", "conv_mask": True}
    return {**encoder, "jasper": blocks}


def configuration(family: str, tokenizer: Path, pieces: int) -> dict[str, Any]:
    """As a file of NVIDIA's; `tokenizer`: its folder."""
    name, factor = FAMILIES[family]
    encoder = citrinet() if family == "citrinet" else conformer("striding" if factor == 4 else "dw_striding", factor)
    decoder = DECODER | ({"feat_in": 96} if family == "citrinet" else {})
    config: dict[str, Any] = {"preprocessor": PREPROCESSOR, "spec_augment": SPEC_AUGMENT, "encoder": encoder}
    if name.endswith("BPEModel") or name.endswith("BPE"):
        config["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
        size = pieces
    else:
        size, decoder = len(ITALIAN), decoder | {"num_classes": len(ITALIAN), "vocabulary": list(ITALIAN)}
        config["labels"] = list(ITALIAN)
    if "Hybrid" not in name:
        return {**config, "decoder": decoder}
    network = {"pred_hidden": 32, "dropout": 0.2}
    joint = {"encoder_hidden": 64, "joint_hidden": 32, "activation": "relu"}
    vocabulary = list(ITALIAN) if "labels" in config else [f"piece {number}" for number in range(size)]
    return {
        **config,
        "model_defaults": {"enc_hidden": 64, "pred_hidden": 32, "joint_hidden": 32},
        "decoder": {
            "_target_": f"{MODULES}.RNNTDecoder", "normalization_mode": None, "random_state_sampling": False,
            "blank_as_pad": True, "vocab_size": size, "prednet": {**network, "pred_rnn_layers": 1, "t_max": None},
        },
        "joint": {
            "_target_": f"{MODULES}.RNNTJoint", "log_softmax": None, "preserve_memory": False, "fuse_loss_wer": True,
            "fused_batch_size": 4, "num_classes": size, "vocabulary": vocabulary, "jointnet": {**network, **joint},
        },
        "decoding": {
            "strategy": "greedy_batch", "greedy": {"max_symbols": 10},
            "beam": {"beam_size": 2, "return_best_hypothesis": False, "score_norm": True},
        },
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
        "compute_eval_loss": False,
        "aux_ctc": {
            "ctc_loss_weight": 0.3, "use_cer": False, "ctc_reduction": "mean_batch",
            "decoder": decoder | {"num_classes": size, "vocabulary": vocabulary}, "decoding": {"strategy": "greedy"},
        },
    }  # fmt: skip


def stock_model(family: str, folder: Path, sentencepiece: bytes) -> Any:
    """An untrained model of stock NeMo that writes more than one token; it is saved as `folder`/`family`.nemo."""
    import torch
    from nemo.collections.asr import models
    from omegaconf import OmegaConf

    from finetuning.model.ctc_model import silence_nemo, write_tokenizer
    from finetuning.model.vocabulary import Vocabulary

    silence_nemo()
    torch.set_num_threads(1)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    write_tokenizer(tokenizer, sentencepiece)
    torch.manual_seed(0)
    config = configuration(family, tokenizer, len(Vocabulary.of_pieces(sentencepiece)))
    model = getattr(models, FAMILIES[family][0])(cfg=OmegaConf.create(config)).eval()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 48000, generator=rng) / 10
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=noise, length=torch.full((4,), 48000))
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.train()
                module.momentum = 1.0
                module.bias.data.normal_(0, 0.3, generator=rng)
        model.encoder(audio_signal=features, length=length)
        encoded = model.eval().encoder(audio_signal=features, length=length)[0]  # (B, C, T)
        decoder = (model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder).decoder_layers[0]
        decoder.weight *= 10
        decoder.bias.copy_(-decoder.weight[:, :, 0] @ encoded.mean(dim=(0, 2)))
    model.save_to(str(folder / f"{family}.nemo"))
    return model
