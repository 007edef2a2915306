"""Save and restore a pytree by epoch, with Orbax behind it."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoint:
    """The newest pytree saved in a folder; each save replaces the one before.

    A save is atomic (a killed process leaves the old one or the new one) and returns before the
    disk is done; :meth:`close`, or leaving a ``with`` block, waits for it.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def epoch(self) -> int | None:
        """The epoch of what is saved; None if nothing is."""
        epoch: int | None = self._manager.latest_step()
        return epoch

    def save(self, epoch: int, tree: Any) -> None:
        """Saves the arrays of `tree` as those of `epoch`, unless that epoch is already there.

        It is after a resume, if the process was killed between two of its saves.
        """
        if epoch != self.epoch:
            self._manager.save(epoch, args=ocp.args.StandardSave(tree))

    def restore(self, like: Any) -> Any:
        """What was saved, in the structure, types and placement of `like`.

        Raises:
            ValueError: if what was saved has another structure or is damaged.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(self.epoch, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"can not restore {self._manager.directory}: it is damaged, or another network or "
                "another version saved it"
            ) from error

    def wait(self) -> None:
        """Returns when everything saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the disk, too."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
