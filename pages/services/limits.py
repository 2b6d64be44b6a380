"""The host's limits on what a browser may ask for.

Where others can reach the studio (`host.is_shared`), a visitor reads the demo, what the app wrote, and the folders that
the host names; the host reads any. Nothing is guessed from a name: models and data sets by name are the host's too.
"""

import os
from dataclasses import replace

from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.services import folders, host
from pages.services.session import session
from upvit_core.errors import LimitError
from upvit_core.limits import NAME, Limits
from upvit_core.paths import DEMO_FOLDER, place_of
from upvit_core.runs.store import RunStore

ASSETS = DEMO_FOLDER.parent
MOST_ALLOWED = 10_000
_allowed: dict[str, None] = {}  # places that a page has let pass, for the jobs that it then starts


def limits() -> Limits:
    """The limits of this session: those of the environment, and a visitor's."""
    found = Limits.of(os.environ)
    shared, is_host = host.is_shared(found), host.is_host(found)
    uploads = (not shared if found.uploads is None else found.uploads) and (is_host or not shared)
    roots = found.roots if is_host or (not shared and _is_job()) else found.roots or ()
    return replace(found, uploads=uploads, roots=roots)


def _is_job() -> bool:
    return get_script_run_ctx(suppress_warning=True) is None


def is_host() -> bool:
    return host.is_host(Limits.of(os.environ))


def confine(place: str, *, weights: bool = True) -> None:
    """Raises LimitError where a path that came from a browser leads out of the folders that may be read.

    weights: False for a name that only asks for a shape.
    """
    if _is_job() and place in _allowed:
        return
    now = limits()
    now.confine(place, (folders.home(), folders.runs(), ASSETS))
    if now.roots is not None and place_of(place).is_relative_to(folders.uploads()) and not session_owns(place):
        raise LimitError(f"{place[:80]} may not be read here.")
    if not (is_host() or place == "demo" or not weights) and NAME.fullmatch(place) and not os.path.lexists(place):
        raise LimitError(f"{place[:80]} may not be read here: names of models and data are for the host.")
    _allowed[place] = None
    while len(_allowed) > MOST_ALLOWED:
        del _allowed[next(iter(_allowed))]


def session_owns(place: str) -> bool:
    """True of an upload of this session, and of any in a job, which a page has let pass."""
    return _is_job() or str(place_of(place)) in session().uploads


def check_room(store: RunStore, owner: str, more: int = 1) -> None:
    """Raises LimitError where there would be more runs at a time than the host allows, of an owner or in all."""
    now = limits()
    active = [s.spec.owner for s in store.list() if s.spec is not None and s.state.is_active]
    mine = active.count(owner)
    for most, held, whose in (
        (now.runs_per_session, mine, f"for each visitor; {mine} of yours"),
        (now.runs_in_all, len(active), f"in all; {len(active)}"),
    ):
        if most is not None and held + more > most:
            raise LimitError(
                f"This host allows {most} run{'s' if most > 1 else ''} at a time {whose} "
                f"{'are' if held != 1 else 'is'} not finished, and {more} more would be started."
            )


def room_words(store: RunStore) -> str:
    """The runs that the limits leave, to be said before a run is started; empty where there are none."""
    now, owner = limits(), session().owner
    active = [s.spec.owner for s in store.list() if s.spec is not None and s.state.is_active]
    said = []
    if now.runs_per_session is not None:
        said.append(f"{active.count(owner)} of the {now.runs_per_session} that you may have at a time")
    if now.runs_in_all is not None:
        said.append(f"{len(active)} of {now.runs_in_all} in all")
    return f"Runs that go on or wait: {', '.join(said)}." if said else ""
