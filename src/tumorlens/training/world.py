"""The processes that train together, and the collectives they use.

torch is imported only if there is more than one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tumorlens.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train together. With a single process, the default, every method is trivial."""

    rank: int = 0
    """Rank of this process, 0 to `size` - 1."""
    size: int = 1
    """Number of processes on all hosts."""
    local_rank: int = 0
    """Rank of this process on its host: the index of its CUDA device."""
    resume_hint: list[str] = field(default_factory=lambda: ["it goes on from what is finished"], compare=False)
    """One phrase for the error message when another process is lost: what running the same command again would do."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, the only process that prepares data, evaluates, prints and writes files."""
        return self.rank == 0

    def run_on_rank0(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on rank 0 and return its result on every rank; the other ranks wait for it.

        If it fails, rank 0 reports the error and the other ranks exit silently with status 1.

        Raises
        ------
        RunError
            Another process of the run has ended.
        """
        if self.size == 1:
            return work(*args, **kwargs)
        if not self.is_rank0:
            done, made = self._broadcast(None)
            if not done:
                raise SystemExit(1)
            return made  # type: ignore[no-any-return]
        try:
            made = work(*args, **kwargs)
        except BaseException:
            self._broadcast((False, None))
            raise
        self._broadcast((True, made))
        return made

    def _broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        import torch
        from torch import distributed

        values = [value]
        try:
            distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        except RuntimeError:  # collectives have no specific error type for a closed connection
            raise self.lost("lost the connection to another one, which was killed or failed") from None
        return values[0]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; the result is bit-identical on every rank.

        Raises
        ------
        RunError
            Another process of the run has ended.
        """
        if self.size > 1:
            from torch import distributed

            try:
                distributed.all_reduce(tensor)
            except RuntimeError:
                raise self.lost("lost the connection to another one, which was killed or failed") from None
        return tensor

    def lost(self, what: str) -> RunError:
        """Return the error for a run that cannot continue because another of its processes ended."""
        return RunError(
            f"Process {self.rank} of 0 to {self.size - 1} {what}.",
            cure=f"Run the same command again: {self.resume_hint[0]}.",
        )


SINGLE_PROCESS = World()
