"""Convolutions and batch normalisation with channels last, which are faster on a CPU and give the same values."""

import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.submodules.jasper import GroupShuffle, MaskedConv1d
from torch import nn
from torch.nn import functional as F


def use_channels_last(model: EncDecCTCModel) -> None:
    """Compute the encoder's convolutions and batch normalisation with channels last; values agree to 1e-5.

    Only the way of computing changes: parameters, checkpoints and `.nemo` files stay stock, and on a GPU so does the
    computation. Encoders that reshape channels in groups are left as they are: they need channels first.
    """
    modules = list(model.encoder.modules())
    if any(isinstance(m, GroupShuffle) or getattr(m, "heads", -1) != -1 for m in modules):
        return
    for module in modules:
        if isinstance(module, MaskedConv1d) and type(module.conv) is nn.Conv1d:
            conv = module.conv
            if conv.groups == conv.in_channels == conv.out_channels:
                conv.__class__ = DepthwiseConv1d
            elif conv.groups == 1 and conv.kernel_size == conv.stride == (1,) and conv.padding == (0,):
                conv.__class__ = PointwiseConv1d
        elif type(module) is nn.BatchNorm1d:
            module.__class__ = ChannelsLastBatchNorm1d


class DepthwiseConv1d(nn.Conv1d):
    """One filter a channel: a Conv2d of height 1, for which the CPU has a channels-last kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C, T')
        """Return what nn.Conv1d returns."""
        if x.device.type != "cpu":
            return super().forward(x)
        image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        stride, padding, dilation = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return F.conv2d(image, weight, self.bias, stride, padding, dilation, self.groups).squeeze(2)


class PointwiseConv1d(nn.Conv1d):
    """A matrix applied at every frame; the frames are rows already when channels come last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C', T)
        """Return what nn.Conv1d returns."""
        if x.device.type != "cpu":
            return super().forward(x)
        return F.linear(x.transpose(1, 2), self.weight[:, :, 0], self.bias).transpose(1, 2)


class ChannelsLastBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of an image of height 1, for which torch keeps channels last; it transposes (B, C, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C, T)
        """Return what nn.BatchNorm1d returns."""
        if x.device.type != "cpu":
            return super().forward(x)
        return super().forward(x.unsqueeze(2)).squeeze(2)

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Check nothing: the input is an image on the CPU."""
