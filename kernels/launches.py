"""A kernel with what stays the same from call to call: launched again, it costs the host little."""

from __future__ import annotations

from typing import Any

from triton.runtime.jit import JITFunction


class Launch:
    """One kernel, its grid and all arguments but the pointers.

    The first call goes through Triton, which binds the arguments, looks at what they are specialised on and compiles.
    If it is direct, later calls launch what was compiled, so all must have pointers of the same dtypes and alignment.

    Args:
        kernel: Its pointers and descriptors come first.
        grid: Programs along three axes.
        sizes: All other arguments by name; what the kernel has no name for is left out.
        warps: Warps of a program.
        stages: Of a software pipeline; None: as many as Triton likes.
        direct: Whether later calls do without Triton.
    """

    def __init__(
        self,
        kernel: JITFunction,
        grid: tuple[int, int, int],
        sizes: dict[str, Any],
        warps: int,
        stages: int | None = None,
        direct: bool = True,
    ) -> None:
        self._kernel = kernel
        self._grid = grid
        self._sizes = {name: sizes[name] for name in kernel.arg_names if name in sizes}
        self._values = tuple(self._sizes.values())
        self._options = {"num_warps": warps} | ({} if stages is None else {"num_stages": stages})
        self._direct = direct
        self._compiled: Any = None  # Triton's interpreter compiles nothing

    def __call__(self, **pointers: Any) -> None:
        """Launch it on the current stream of the current device."""
        if self._compiled is None:
            arguments = {**pointers, **self._sizes}
            assert list(arguments) == list(self._kernel.arg_names)
            compiled = self._kernel[self._grid](**arguments, **self._options)
            self._compiled = compiled if self._direct else None
        else:
            self._compiled[self._grid](*pointers.values(), *self._values)
