"""Second moments of what the kernel of a Conv sees: ``E[p p^T]`` over its input patches ``p``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.runtime.products import small_product

__all__ = ["LARGEST", "PatchMoment"]

Floats = npt.NDArray[np.float32]

LARGEST = 1 << 21  # elements of a moment: 8 MiB; larger kernels are rounded to nearest
_WORK = 1 << 26  # multiply-adds of a batch: some milliseconds
_LEAST = 16  # patches of a batch, however large the kernel
_STRIPS = 8  # rows of patches drawn from a batch: neighbours in a row are alike, strips are not


class PatchMoment:
    """Sum of ``p p^T`` over drawn patches, float64 ``[groups, K, K]``, ``K = C / groups * taps``.

    A patch is flattened as the kernel ``[O, C / groups, taps...]`` is, so for errors ``e`` of a
    flattened kernel ``e^T M e`` is the squared error of an output. From each batch whole rows of
    patches are drawn at random, zeros outside the picture included: a gather of single patches
    from ``[N, C, H, W]`` would miss the cache with every element.

    Attributes:
        groups: Groups of the Conv.
        kernel: Height and width of the kernel.
        dilation: Its dilation.
        total: The sum.
        count: Patches in it.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
        seed: int,
    ) -> None:
        """An empty sum for inputs ``[N, channels, H, W]``."""
        self.groups, self.kernel, self.dilation = groups, kernel, dilation
        size = channels // groups * kernel[0] * kernel[1]
        self.total = np.zeros((groups, size, size))
        self.count = 0
        self._random = np.random.default_rng(seed)

    @property
    def mean(self) -> Floats:
        """``E[p p^T]``, float32 ``[groups, K, K]``."""
        return np.asarray(self.total / max(self.count, 1), np.float32)

    def fits(self, weight: tuple[int, ...]) -> bool:
        """Whether the patches are those that a kernel ``[O, C / groups, kh, kw]`` sees."""
        return weight[2:] == self.kernel and weight[1] * np.prod(self.kernel) == self.total.shape[1]

    def update(self, x: Floats) -> None:
        """Draw from finite values ``[N, C, H, W]``."""
        images, _, height, _ = x.shape
        strips = min(_STRIPS, images * height)
        places = self._random.choice(images * height, strips, replace=False)
        drawn = [self._strip(x[place // height], int(place % height)) for place in places]
        patches = np.concatenate(drawn, axis=2)
        affordable = max(_LEAST, _WORK // self.total.size)
        if patches.shape[2] > affordable:
            kept = self._random.choice(patches.shape[2], affordable, replace=False)
            patches = np.ascontiguousarray(patches[:, :, np.sort(kept)])
        for group, part in enumerate(patches):
            self.total[group] += small_product(part, np.ascontiguousarray(part.T))
        self.count += patches.shape[2]

    def merge(self, other: PatchMoment) -> None:
        """Take in another part."""
        self.total += other.total
        self.count += other.count

    def _strip(self, image: Floats, row: int) -> Floats:
        """The patches centred on one row of ``[C, H, W]``: ``[groups, K, W]``."""
        channels, height, width = image.shape
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        above, before = (kh - 1) * dh // 2, (kw - 1) * dw // 2
        framed = np.zeros((channels, kh, width + (kw - 1) * dw), np.float32)
        for tap in range(kh):
            source = row - above + tap * dh
            if 0 <= source < height:
                framed[:, tap, before : before + width] = image[:, source]
        windows = np.stack([framed[:, :, t * dw : t * dw + width] for t in range(kw)], axis=2)
        return windows.reshape(self.groups, -1, width)
