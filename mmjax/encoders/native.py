"""The vision transformer for pictures at their native resolution and shape: Qwen2-VL and 2.5-VL."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.encoders.vit import VARIANTS as VIT
from mmjax.nn.block import Block, BlockShape, fields_of
from mmjax.nn.linear import Linear
from mmjax.nn.norm import Norm
from mmjax.nn.rope import rope_frequencies
from mmjax.nn.stack import run, stacked
from mmjax.typed import Count, Natural, Positive

_QWEN2_VL = {key: value for key, value in VIT["siglip"].items() if key in BlockShape.__dataclass_fields__} | dict(
    activation="quick_gelu",
    rope_theta=10_000.0,
    rope_fraction=1.0,
    patch=14,
    frames=2,
    merge=2,
    window=0,
    full=(),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
VARIANTS = {
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL | dict(activation="silu", gated=True, norm="rms", window=8),
}


def places(grid: jax.Array, count: int, merge: int) -> tuple[jax.Array, jax.Array]:
    """Where each patch of a picture stands, the patches being in the order of data/patches.py.

    Args:
      grid: int32 [B, 2], rows and columns of patches, multiples of `merge`. count: N.

    Returns:
      int32 [B, N, 2], row and column; bool [B, N], False from patch rows * columns on.
    """
    rows, columns = grid[:, :1], grid[:, 1:]
    patch = jnp.arange(count)
    block, inside = patch // merge**2, patch % merge**2
    across = jnp.maximum(columns // merge, 1)
    row = block // across * merge + inside // merge
    column = block % across * merge + inside % merge
    return jnp.stack([row, column], axis=-1), patch < rows * columns


class NativeViT(BlockShape):
    """Patches uint8 [B, M, N, P * P * 3] and grid [B, M, 2] -> features [B, M, N, D], in the order of the patches.

    A medium is a dict of these two; data/patches.py makes it. What stands behind its rows * columns patches is
    padding: nothing attends to it, and its features mean nothing.

    patches: N, the most of a picture. patch: P, its side in pixels. merge: side of the blocks that patches are
    ordered by, and that a projector joins (MLP, reduce 'concat'). width, depth: of the transformer.
    frames: time steps of a patch, all the same in a still picture.
    window, full: side in patches of the windows that attention stays within, 0 for none, but in the layers `full`.
    rope_theta: of the positions, which are row and column. rope_sections: not to be set.
    mean, std: of the pixels, each scaled to [0, 1]. remat, scan: see nn/stack.py.
    Qwen2-VL (arXiv:2409.12191, section 2.1), Qwen2.5-VL (arXiv:2502.13923, section 2.1.1).
    """

    patches: Count
    patch: Count
    frames: Count
    merge: Count
    width: Count
    depth: Count
    window: Natural
    full: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    remat: bool
    scan: bool

    def medium_shape(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one medium's arrays."""
        return {"patches": (self.patches, self.patch**2 * 3), "grid": (2,)}

    @nn.compact
    def __call__(self, medium: dict[str, jax.Array]) -> jax.Array:
        def norm(name, x):
            return Norm(self.norm, self.norm_eps, self.param_dtype, name=name)(x)

        b, m, n, _ = medium["patches"].shape
        x = self._tokens(medium["patches"].reshape(b * m, n, -1))
        place, real = places(medium["grid"].reshape(b * m, 2).astype(jnp.int32), n, self.merge)
        seen, near = self._masks(place, real)
        # Half of the pairs turn by the row, half by the column, each half through all wavelengths.
        half, _ = rope_frequencies(self.head_dim // 2, self.rope_theta, 1.0)
        rope = jnp.tile(half, 2), 1.0
        block = Block(**fields_of(self, Block) | dict(rope_sections=(len(half),) * 2), parent=None)
        layers = stacked(self, "layers", block, self.depth, x[:1, :1], positions=place[:1, :1], rope=rope)
        everywhere = jnp.asarray([not self.window or i in self.full for i in range(self.depth)])

        def layer(x, params_and_reach):
            params, reach = params_and_reach
            mask = jnp.where(reach, seen, near) if self.window else seen
            return block.apply({"params": params}, x, mask=mask, positions=place, rope=rope)[0], None

        x, _ = run(layer, x, (layers, everywhere), remat=self.remat, scan=self.scan)
        return norm("norm_out", x).reshape(b, m, n, -1)

    def _tokens(self, patches: jax.Array) -> jax.Array:
        """uint8 [B, N, P * P * 3] -> [B, N, D]."""
        b, n, _ = patches.shape
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        x = (patches.reshape(b, n, -1, 3).astype(jnp.float32) / 255 - mean) / std
        x = jnp.tile(x.reshape(b, n, -1).astype(self.dtype), (1, 1, self.frames))
        return Linear(self.width, False, self.dtype, self.param_dtype, name="embed")(x)

    def _masks(self, place: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """bool [B, N, N] twice: who sees whom in the layers with full attention, and in those with windows."""
        seen = real[:, :, None] & real[:, None, :]
        window = place // max(self.window, 1)
        return seen, seen & (window[:, :, None] == window[:, None, :]).all(-1)
