"""Convolutions, batch normalisation and masks computed in a way that is faster on a CPU and gives the same values."""

import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.submodules.jasper import GroupShuffle, MaskedConv1d
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def use_channels_last(model: EncDecCTCModel) -> None:
    """Compute the encoder's convolutions and batch normalisation with channels last; values differ by rounding.

    Only the way of computing changes: parameters, checkpoints and `.nemo` files stay stock, and on a GPU so does the
    computation. Encoders that reshape channels in groups are left as they are: they need channels first.
    """
    modules = list(model.encoder.modules())
    if any(isinstance(m, GroupShuffle) or getattr(m, "heads", -1) != -1 for m in modules):
        return
    for module in modules:
        if type(module) is MaskedConv1d and type(module.conv) is nn.Conv1d:
            module.__class__ = InPlaceMaskedConv1d
            conv = module.conv
            if conv.groups == conv.in_channels == conv.out_channels:
                conv.__class__ = DepthwiseConv1d
            elif conv.groups == 1 and conv.kernel_size == conv.stride == (1,) and conv.padding == (0,):
                conv.__class__ = PointwiseConv1d
        elif type(module) is nn.BatchNorm1d:
            module.__class__ = ChannelsLastBatchNorm1d
        elif type(module) is nn.ReLU:
            module.__class__ = ViewPreservingReLU


class InPlaceMaskedConv1d(MaskedConv1d):
    """Zeros the padding of its input where it lies, instead of a product of all of it with a mask."""

    def mask_input(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:  # (B, C, T), (B,) -> (B, C, T)
        """Return the input with zeros from each length on."""
        if x.device.type != "cpu" or x.grad_fn is None:  # without gradients it may be the caller's
            return super().mask_input(x, lens)
        return _ZeroedPadding.apply(x, lens.tolist())


class _ZeroedPadding(torch.autograd.Function):
    """Zero the padding of a layer's output, and of its gradient, in place.

    Autograd is not told, or it would refuse: a layer that needs its output for the gradient multiplies by it, frame by
    frame, a gradient that is zero here.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        ctx.lengths = lengths
        _zero_padding(x.data, lengths)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        _zero_padding(gradient, ctx.lengths)  # a convolution has just made it, for nobody else
        return gradient, None


def _zero_padding(x: torch.Tensor, lengths: list[int]) -> None:
    for row, length in zip(x, lengths, strict=True):  # (C, T)
        row[:, length:] = 0.0


class DepthwiseConv1d(nn.Conv1d):
    """One filter a channel: a Conv2d of height 1, for which the CPU has a channels-last kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C, T')
        """Return what nn.Conv1d returns."""
        if x.device.type != "cpu":
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        weight = self.weight[:, :, None, :, None]  # with zeros where dilation leaves frames out: oneDNN is slow with it
        weight = F.pad(weight, (0, dilation - 1)).flatten(3)[..., : dilation * (self.kernel_size[0] - 1) + 1]
        if weight.requires_grad and stride == 1 and padding < weight.shape[3] and self.bias is None:
            return _DepthwiseConvolution.apply(image, weight, padding).squeeze(2)
        return _depthwise(image, weight, padding, self.bias, stride).squeeze(2)


class _DepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution whose gradients are such convolutions, too.

    oneDNN's own gradient of the weights takes ten to twenty times as long as the convolution.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, image: torch.Tensor, weight: torch.Tensor, padding: int
    ) -> torch.Tensor:  # (B, C, 1, T), (C, 1, 1, K) -> (B, C, 1, T')
        ctx.save_for_backward(image, weight)
        ctx.padding = padding
        return _depthwise(image, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        image, weight = ctx.saved_tensors
        of_image = of_weight = None
        if ctx.needs_input_grad[0]:
            of_image = _depthwise(gradient, weight.flip(3), weight.shape[3] - 1 - ctx.padding)
        if ctx.needs_input_grad[1]:  # each utterance convolved with its gradient as the filter
            of_weight = torch.zeros_like(weight)
            image, gradient = (x.to(weight.dtype) for x in (image, gradient))
            for one, its in zip(image.unsqueeze(1), gradient.unsqueeze(2), strict=True):  # (1, C, 1, T), (C, 1, 1, T')
                of_weight += _depthwise(one, its, ctx.padding).view_as(of_weight)
        return of_image, of_weight, None


def _depthwise(
    image: torch.Tensor, weight: torch.Tensor, padding: int, bias: torch.Tensor | None = None, stride: int = 1
) -> torch.Tensor:
    """Convolve each channel with its filter: (B, C, 1, T), (C, 1, 1, K) -> (B, C, 1, T'), of the image's type.

    Computed in the type of the weights, 32 bits: in bfloat16 oneDNN (torch 2.13.0) never returns for some shapes and
    numbers of threads, such as 160 channels, 25 taps, one utterance of 60 frames, 10 threads.
    """
    weight = weight.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", enabled=False):
        made = F.conv2d(image.to(weight.dtype), weight, bias, (1, stride), (0, padding), groups=len(weight))
    return made.to(image.dtype)


class ViewPreservingReLU(nn.ReLU):
    """In place as configured, but on a view, as batch normalisation returns here: autograd would copy its gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what nn.ReLU returns."""
        return F.relu(x, inplace=self.inplace and x._base is None)


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
