"""EfficientNet-Lite: a small convolutional network, an encoder that costs little on a CPU."""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.nn.linear import Linear
from mmjax.typed import Count, NotNegative, Positive

Stage = tuple[
    Count, Count, Count, Count, Count
]  # blocks, side of the kernel, stride of the first, expansion, width


def lite(size: int, width: float, depth: float) -> dict[str, Any]:
    """The settings of a network scaled in width and depth, stem, head, and depth of the outer stages excepted."""
    base = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def rounded(channels: float) -> int:
        near = max(8, int(channels + 4) // 8 * 8)
        return near if near >= 0.9 * channels else near + 8

    inner = range(1, len(base) - 1)
    return dict(
        size=size,
        stem_width=32,
        stages=tuple(
            (math.ceil(blocks * depth) if i in inner else blocks, kernel, stride, expansion, rounded(w * width))
            for i, (blocks, kernel, stride, expansion, w) in enumerate(base)
        ),
        width=1280,
        norm_eps=1e-3,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


VARIANTS = {
    "lite0": lite(224, 1.0, 1.0),
    "lite1": lite(240, 1.0, 1.1),
    "lite2": lite(260, 1.1, 1.2),
    "lite3": lite(280, 1.2, 1.4),
    "lite4": lite(300, 1.4, 1.8),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm over [B, H, W, C] by statistics that are parameters: x's own are never taken.

    So the encoder stays a pure function of its parameters, one picture's features do not depend on its batch, and
    there is no state to carry from step to step. A fine-tuned encoder keeps the statistics, or learns them with
    the rest (torchvision.ops.FrozenBatchNorm2d).
    """

    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def of_channels(name: str, start: Any) -> jax.Array:
            return self.param(name, start, x.shape[-1:], self.param_dtype).astype(jnp.float32)

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale, bias = of_channels("scale", ones), of_channels("bias", zeros)
        mean, var = of_channels("mean", zeros), of_channels("var", ones)
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)


class Depthwise(nn.Module):
    """A convolution of each channel by itself, [B, H, W, C] -> [B, H / stride, W / stride, C], rounded up.

    A sum of shifted pictures, which XLA makes one loop of; its own grouped convolution takes the whole encoder
    eight times as long on a CPU. Padded as TensorFlow's 'SAME'.
    """

    kernel: int
    stride: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = self.kernel, self.kernel, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype).astype(jnp.float32)
        reach = [(side - 1) // self.stride * self.stride + 1 for side in x.shape[1:3]]  # from first to last centre
        pads = [max(r + self.kernel - 1 - side, 0) for r, side in zip(reach, x.shape[1:3], strict=True)]
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
        total = jnp.zeros((), jnp.float32)
        for i in range(self.kernel):
            for j in range(self.kernel):
                here = slice(i, i + reach[0], self.stride), slice(j, j + reach[1], self.stride)
                total = total + x[:, *here] * kernel[i, j]
        return total.astype(self.dtype)


class Bottleneck(nn.Module):
    """Widen, convolve each channel, narrow; plus the input, where shapes agree (Sandler et al. 2018, figure 3).

    [B, H, W, D] -> [B, H / stride, W / stride, width], rounded up.
    """

    kernel: int
    stride: int
    expansion: int
    width: int
    norm_eps: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        def norm(name, x):
            return FrozenBatchNorm(self.norm_eps, self.param_dtype, name=name)(x)

        types = self.dtype, self.param_dtype
        x, d = inputs, inputs.shape[-1]
        if self.expansion != 1:
            x = Linear(d * self.expansion, False, *types, name="expand")(x)
            x = nn.relu6(norm("expand_norm", x))
        x = Depthwise(self.kernel, self.stride, *types, name="depthwise")(x)
        x = nn.relu6(norm("depthwise_norm", x))
        x = norm("project_norm", Linear(self.width, False, *types, name="project")(x))
        return x + inputs if self.stride == 1 and self.width == d else x


class EfficientNet(nn.Module):
    """Pictures uint8 [B, M, H, W, 3] -> features [B, M, N, D].

    size: pixels; any will do, whatever the size of pre-training.
    stem_width: of the first convolution, which halves the picture. width: of the last, 1 x 1.
    stages: (blocks, side of the kernel, stride of the first block, expansion, width) of each, see Bottleneck.
    layer: which hidden state is the feature: 0 the stem's, k the k-th stage's, -1 the head's, -2 the last stage's.
    pool: 'none' for the grid's positions in raster order, 'mean' for their mean, D wide.
    mean, std: of the pixels, each scaled to [0, 1].
    Tan and Le 2019; Lite: no squeeze-and-excitation, ReLU6 (tensorflow/tpu, models/official/efficientnet/lite).
    """

    size: Count
    stem_width: Count
    stages: tuple[Stage, ...]
    width: Count
    norm_eps: NotNegative
    layer: int
    pool: Literal["none", "mean"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    dtype: Any
    param_dtype: Any

    def __post_init__(self):
        count = len(self.stages) + 2
        if not -count <= self.layer < count:
            raise UserError(f"layer: {self.layer}; of {count} hidden states it is {-count} to {count - 1}.")
        super().__post_init__()

    def medium_shape(self) -> tuple[int, ...]:
        """Shape of one medium, [H, W, 3]."""
        return self.size, self.size, 3

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        if self.pool not in ("none", "mean"):
            raise UserError(f"pool: {self.pool!r} is neither 'none' nor 'mean'.")
        b, m = pixels.shape[:2]
        types = self.dtype, self.param_dtype
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        x = ((pixels.reshape(b * m, *pixels.shape[2:]).astype(jnp.float32) / 255 - mean) / std).astype(self.dtype)
        x = nn.Conv(
            self.stem_width, (3, 3), 2, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="stem"
        )(x)
        x = nn.relu6(FrozenBatchNorm(self.norm_eps, self.param_dtype, name="stem_norm")(x))
        states, number = [x], 0
        for blocks, kernel, stride, expansion, width in self.stages:
            for i in range(blocks):
                block = kernel, stride if i == 0 else 1, expansion, width, self.norm_eps
                x = Bottleneck(*block, *types, name=f"block_{number}")(x)
                number += 1
            states.append(x)
        x = Linear(self.width, False, *types, name="head")(x)
        states.append(nn.relu6(FrozenBatchNorm(self.norm_eps, self.param_dtype, name="head_norm")(x)))
        x = states[self.layer]  # a compiled program leaves out what comes after; its parameters are kept
        x = x.reshape(b, m, -1, x.shape[-1])
        return x.mean(2, keepdims=True) if self.pool == "mean" else x
