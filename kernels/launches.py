"""A kernel with what stays the same from call to call: launched again, it costs the host little."""

from __future__ import annotations

from typing import Any

from triton.runtime.jit import JITFunction


class Launch:
    """One kernel, its grid and all arguments but the pointers.

    The first call goes through Triton, which binds the arguments, looks at what they are specialised on and compiles.
    Later calls launch what was compiled. So all calls must have pointers of the same dtypes and of the same alignment.

    Args:
        kernel: Its pointers and descriptors come first.
        grid: Programs along three axes.
        sizes: All other arguments, in their order.
        warps: Warps of a program.
    """

    def __init__(self, kernel: JITFunction, grid: tuple[int, int, int], sizes: dict[str, Any], warps: int) -> None:
        self._kernel = kernel
        self._grid = grid
        self._sizes = sizes
        self._values = tuple(sizes.values())
        self._warps = warps
        self._compiled: Any = None  # Triton's interpreter compiles nothing

    def __call__(self, **pointers: Any) -> None:
        """Launch it on the current stream of the current device."""
        if self._compiled is None:
            arguments = {**pointers, **self._sizes}
            assert list(arguments) == list(self._kernel.arg_names)
            self._compiled = self._kernel[self._grid](**arguments, num_warps=self._warps)
        else:
            self._compiled[self._grid](*pointers.values(), *self._values)
