"""The reason why a run stopped, in one sentence.

Whoever ends a run writes into its state: `error` where something went wrong, `stopped_by` where somebody asked.
`reason_of` turns that into the sentence. A killed run wrote nothing; `folder.true_state` supplies `KILLED` on reading.
"""

import errno
from pathlib import Path
from shutil import disk_usage

from upvit_core.errors import UPViTError
from upvit_core.runs.spec import RunState

SPARE_BYTES = 1 << 16  # kept free for the last state of a run that fills the disk

GO_ON = "Resume goes on from the last checkpoint."
KILLED = f"Its process was killed, or the machine restarted; {GO_ON}"
NEVER_STARTED = "It was never started; Resume starts it."
UNREADABLE = f"Its state.json cannot be read; {GO_ON}"
TERMINATED = f"Its process was asked to end; {GO_ON}"
PEER_LOST = f"Another process of the run ended; {GO_ON}"
TOO_SHORT = "The job's time is too short to get any further than the last checkpoint; give it more minutes."


def reason_of(state: RunState) -> str:
    """The reason why a run stopped; empty while it is active. States of earlier versions have a reason, too."""
    if state.is_active:
        return ""
    if state.state == "done":
        return f"All {state.total_steps:,} steps are done." if state.total_steps else "It is done."
    if state.error:
        return state.error
    by = f" by {state.stopped_by}" if state.stopped_by else ""
    where = f"at step {state.step:,} of {state.total_steps:,}" if state.total_steps else "before its first step"
    return f"{state.state.capitalize()}{by} {where}; {GO_ON}"


def error_message(error: BaseException, folder: Path) -> str:
    """An error that ended a run, as one sentence for a person; the log has the rest."""
    if isinstance(error, UPViTError):
        return str(error)
    if _is_disk_full(error) or (isinstance(error, RuntimeError) and disk_usage(folder).free < SPARE_BYTES):
        return "The disk is full; free some space and resume the run."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "The device ran out of memory; free memory on it, and resume the run."
    first = str(error).strip().splitlines()
    return f"Unexpected {type(error).__name__}{': ' + first[0] if first else ''}; the log has the details."


def _is_disk_full(error: BaseException | None) -> bool:
    """True if this error, or one that led to it, is that of a full disk; torch's writer raises another over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_peer_lost(error: BaseException) -> bool:
    """True if the error says that another process of the run is gone, by its name or as gloo and NCCL put it."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "onnection closed"))
