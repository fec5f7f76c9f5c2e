"""The processes that train together, and what they exchange.

torch is imported only if there are several.
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
    """The processes that train as one. By default there is a single one, and every method does next to nothing."""

    rank: int = 0
    """This process, 0 to `size` - 1."""
    size: int = 1
    """Number of processes, on all hosts."""
    local_rank: int = 0
    """This process among those of its host: the index of its CUDA device."""
    resume_hint: list[str] = field(default_factory=lambda: ["it goes on from what is finished"], compare=False)
    """One phrase: what the same command would do now, for the message when another process is lost."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which alone prepares, evaluates, prints and writes files."""
        return self.rank == 0

    def run_on_rank0(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns at rank 0, at every rank; the others wait for it.

        Where it fails at rank 0, which then says why, the others exit with 1 and say nothing.

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
        """Rank 0's value at every rank."""
        import torch
        from torch import distributed

        values = [value]
        try:
            distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        except RuntimeError:  # the collectives have no error type of their own for a closed connection
            raise self.lost("lost the connection to another one, which was killed or failed") from None
        return values[0]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place; every rank gets the same bits.

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
        """The error for a run that cannot go on because another of its processes ended."""
        return RunError(
            f"Process {self.rank} of 0 to {self.size - 1} {what}.",
            cure=f"Run the same command again: {self.resume_hint[0]}.",
        )


SINGLE_PROCESS = World()
