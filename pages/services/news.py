"""Long work and its end, for every page of a session: runs, and the jobs that it has watched."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pages.services import jobs, run_data
from pages.services.session import session
from upvit_core import units
from upvit_core.runs.folder import RunSummary

RUNS = "Runs"


@dataclass(frozen=True)
class Work:
    """One piece of long work as it was seen last: its share done, the seconds left, and the page that shows it."""

    key: str
    title: str
    page: str
    share: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Ended:
    """Work that has ended, and how, in a line."""

    key: str
    line: str
    page: str
    well: bool


@dataclass
class News:
    """A session's part: the jobs that it watches, by key with their page; what was active; what has ended unseen."""

    watched: dict[str, str] = field(default_factory=dict)
    active: dict[str, Work] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)


def watch(job: jobs.AnyJob, page: str) -> None:
    """Tell the end of a job on every page of this session."""
    session().part(News).watched.setdefault(job.key, page)


def going(runs: Sequence[RunSummary]) -> list[Work]:
    """The active runs, the farthest first, then the watched jobs that are active."""
    found = [
        Work(s.id, s.name, RUNS, s.state.progress, s.state.seconds_left)
        for s in sorted(runs, key=lambda s: -s.state.progress)
        if s.state.is_active
    ]
    for key, page in session().part(News).watched.items():
        if (job := jobs.find(key)) is not None and job.active:
            found.append(Work(key, job.title, page, job.share, job.seconds_left))
    return found


def look(runs: Sequence[RunSummary]) -> list[Ended]:
    """The work that has ended since the last look; it stays in `News.ended` until its page is opened."""
    mine, now = session().part(News), {work.key: work for work in going(runs)}
    by_id = {s.id: s for s in runs}
    over = [_end(work, by_id.get(key)) for key, work in mine.active.items() if key not in now]
    mine.active = now
    for key in [key for key in mine.watched if key not in now]:
        del mine.watched[key]
    mine.ended = [*mine.ended, *over][-5:]
    return over


def _end(work: Work, run: RunSummary | None) -> Ended:
    if run is not None:
        return Ended(work.key, f"{run.name}: {run_data.state_words(run.state)}", work.page, run.state.state == "done")
    job = jobs.find(work.key)
    if job is None or job.state == "cancelled":
        return Ended(work.key, f"{work.title}: cancelled", work.page, False)
    return Ended(work.key, f"{work.title}: {job.error or 'done'}", work.page, not job.error)


def seen(page: str) -> None:
    """Forget what the page that is open shows."""
    mine = session().part(News)
    mine.ended = [end for end in mine.ended if end.page != page]


def tab_title(page: str, work: Sequence[Work]) -> str:
    """`87 % · 2 min – Runs` while something goes on, else the page and the studio."""
    if not work:
        return f"{page} – UP-ViT Studio"
    left = units.duration(work[0].seconds_left)
    return f"{100 * work[0].share:.0f} %{f' · {left}' if left else ''} – {page}"
