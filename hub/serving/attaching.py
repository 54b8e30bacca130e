"""Run-time patches of a variant on the model that it borrows: put on for its turn, and taken off without a trace.

The first time each patch is attached by its kind; after that the model is only made again what it was then.
Imports torch: only an engine's process loads this.
"""

from collections.abc import Sequence
from typing import Any

from adapterhub.hub.errors import InvalidRequest
from adapterhub.merging.attachments import Attachment
from adapterhub.merging.live import Snapshot
from adapterhub.merging.runtime import runtimes


class Attached:
    """The attachments of a variant, the lowest first. For the one thread that computes."""

    def __init__(self, attachments: Sequence[Attachment]) -> None:
        """Raises InvalidRequest for a patch whose every call needs what a request cannot say."""
        for one in attachments:
            if one.needs:
                raise InvalidRequest(
                    f"{one.name}: a {one.kind} needs {' and '.join(one.needs)} with every call, which a request to "
                    "this service cannot give; attach it with adapterhub.merging in your own program"
                )
        self._attachments = attachments
        self._with: Snapshot | None = None
        self._without: Snapshot | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the patches' tensors in memory."""
        return sum(one.size_bytes for one in self._attachments)

    @property
    def virtual_tokens(self) -> int:
        """Places in the model's context that the patches take."""
        return sum(one.virtual_tokens for one in self._attachments)

    def put(self, model: Any) -> None:
        """Put all of them on a model that has none. Raises MergingError; the model is then as it was."""
        without = Snapshot(model)
        if self._with is None:
            self._with = _attached_once(model, self._attachments)
        self._with.restore()
        self._without = without

    def take_off(self) -> None:
        """Make the model what it was before `put`."""
        if self._without is not None:
            self._without.restore()
            self._without = None


def _attached_once(model: Any, attachments: Sequence[Attachment]) -> Snapshot:
    """What the model is with all of them on it; it has none of them afterwards."""
    undo = []
    try:
        for one in attachments:
            undo.append(runtimes()[one.kind].attach(model, one.folder, one.path, one.weight))
        return Snapshot(model)
    finally:
        for detach in reversed(undo):
            detach()
