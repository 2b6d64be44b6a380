"""Text that is not of the source is shown as it is: none of it reaches Streamlit's Markdown unescaped."""

import ast
import re
from collections.abc import Iterator, Sequence

import pytest

from pages.widgets.plain import JOINER, plain
from tests.support import ROOT

DRAWING = {
    "error", "warning", "info", "success", "caption", "markdown", "toast", "title", "header", "subheader", "checkbox",
    "toggle", "button", "radio", "selectbox", "segmented_control", "pills", "popover", "expander", "metric", "dialog",
    "text_input", "text_area", "number_input", "slider", "select_slider", "file_uploader", "multiselect", "status",
    "link_button", "page_link", "download_button", "form_submit_button", "progress", "spinner", "tabs", "write",
    "awaited", "table_button", "folded", "page",
}  # fmt: skip
READ = {"label", "body", "help", "text", "caption", "title", "label_text", "help_text"}
# Words and numbers of the source, of a what-if and of units.
OWN = re.compile(
    r"""(\w+\.)?task(_of\(shape\))?\.\w+(\(.*\))?|plain\(.*|units\.\w+\(.*|gigabytes\(.*|len\(.*|type\(error\).__name__"""
    r"|escape\(.*|\w+\.(words|heads|round_to)|(model\.)?shape\.(num_heads|img_size\[0\])|preview.images|device.batch_of.*",
    re.DOTALL,
)
# What the walk cannot follow, and was read: tables of words, parameters that get literals, states of jobs and runs.
READ_BY_HAND = """
importance/channel.py: member_word(scores, component).capitalize() | method/distill_lesson.py: state.progress
method/distill_lesson.py: model.task.name.lower() | tradeoff/measurements.py: model.task.name.lower()
method/page.py: task.sample.capitalize() | method/page.py: PAGES[SEE_ON[number]] | tradeoff/page.py: reports.HELP
runs/page.py: speed_table(drawn) | runs/page.py: step_table(drawn, name) | glossary/page.py: page
tradeoff/budget.py: label | tradeoff/budget.py: _limit_words(result.limits) | tradeoff/pareto.py: label
tradeoff/budget.py: family_name(model, result.chosen) | tradeoff/depth.py: name.capitalize() | tradeoff/depth.py: text
tradeoff/depth.py: order.capitalize() | tradeoff/depth.py: ORDERS[order] | tradeoff/undo.py: label
tradeoff/device_panel.py: calibration_text(known) | tradeoff/device_panel.py: model.task.batch_items.capitalize()
tradeoff/distill.py: DistillSettings.model_fields['feature_weight'].description | tradeoff/distill.py: HELP
tradeoff/distill.py: min(model.shape.num_classes, MOST_ANSWERS) | widgets/progress.py: min(max(job.share, 0.0), 1.0)
widgets/charts.py: label | widgets/frame.py: title | widgets/frame.py: help_text | widgets/frame.py: sentence
widgets/frame.py: page | widgets/frame.py: label | widgets/presenter.py: label | widgets/run_actions.py: label
runs/new_run.py: training.epochs | runs/page.py: RunStore(folders.runs()) | runs/page.py: cards.SHOWN
method/distill_lesson.py: limits.room_words(store) | runs/new_run.py: limits.room_words(store)
tradeoff/distill.py: limits.room_words(RunStore(folders.runs()))
services/recipes.py: DistillSettings.model_fields['workers'].description
tradeoff/distill.py: DistillSettings.model_fields['compile'].description
widgets/news.py: PATHS.get(end.page, PATHS[news.RUNS])
widgets/onnx_files.py: kind.label | start/open_panel.py: label | start/open_panel.py: name
start/open_panel.py: now.hint | start/page.py: LESSON | start/page.py: label | tradeoff/save.py: reports.HELP
tradeoff/distill.py: duration_words(model, requested_training(model), found) | tradeoff/page.py: TABS
tradeoff/distill.py: duration_words(model, training, found) | widgets/frame.py: self._help
tradeoff/distill.py: min(model.shape.classes, MOST_ANSWERS)
widgets/run_actions.py: effect | widgets/run_actions.py: yes | widgets/run_actions.py: no
tradeoff/page.py: next((name for name, tab in tabs.items() if tab.open), STAYS)
widgets/run_actions.py: title | widgets/run_actions.py: text
widgets/sliders.py: name | widgets/sliders.py: slider.label
widgets/sliders.py: slider.help | tradeoff/map_section.py: maps.STEPS[-1] | tradeoff/map_section.py: label
workshop/host.py: n | workshop/host.py: n != 1 | workshop/host.py: word | workshop/host.py: job.state
workshop/host.py: run.state.state | workshop/page.py: exercise.title
workshop/page.py: exercise.hint | workshop/page.py: number | workshop/page.py: name
""".replace("\n", " | ").split(" | ")


def foreign(node: ast.expr, scopes: Sequence[ast.AST], depth: int = 0) -> Iterator[str]:
    """The parts of an expression that are neither literals nor the app's own words; names are looked up in scopes."""
    parts: list[ast.expr] = []
    match node:
        case ast.Constant() | ast.Starred():
            return
        case ast.JoinedStr():
            parts = [v.value for v in node.values if isinstance(v, ast.FormattedValue) and not _is_number(v)]
        case ast.IfExp():
            parts = [node.body, node.orelse]
        case ast.BinOp():
            parts = [node.left, node.right]
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            pass
        case ast.ListComp(elt=elt) | ast.GeneratorExp(elt=elt):
            parts = [elt]
        case ast.Call(func=ast.Attribute(attr="join" | "tip"), args=parts):
            pass
        case ast.Name(id=name) if depth < 5 and (
            values := next(filter(None, (_assigned(s, name) for s in scopes)), [])
        ):
            parts, depth = values, depth + 1
        case _ if not OWN.fullmatch(ast.unparse(node)):
            yield ast.unparse(node)
    for part in parts:
        yield from foreign(part, scopes, depth)


def _is_number(value: ast.FormattedValue) -> bool:
    return value.format_spec is not None and ast.unparse(value.format_spec)[-2] in "def%,"


def _assigned(scope: ast.AST, name: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                found += [v for n, v in zip(names, values, strict=False) if isinstance(n, ast.Name) and n.id == name]
            case ast.Assign(targets=[ast.Name(id=other)], value=value) if other == name:
                found.append(value)
            case ast.AugAssign() | ast.NamedExpr() if isinstance(node.target, ast.Name) and node.target.id == name:
                found.append(node.value)
    return found


def unescaped() -> Iterator[str]:
    for path in sorted((ROOT / "pages").rglob("*.py")):
        module = ast.parse(path.read_text())
        functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        top = ast.Module([node for node in module.body if isinstance(node, ast.Assign)], [])
        for call in ast.walk(module):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in DRAWING):
                continue
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            scopes = [*sorted(around, key=lambda f: -f.lineno), top] if around else [module]
            for read in [*call.args[:1], *(k.value for k in call.keywords if k.arg in READ)]:
                yield from (f"{path.relative_to(ROOT / 'pages')}: {text}" for text in foreign(read, scopes))


def test_no_page_draws_text_that_is_not_of_the_source_as_markdown() -> None:
    assert sorted(set(unescaped()) - set(READ_BY_HAND)) == []


@pytest.mark.parametrize("text", ["plain", "50/50/50 %, 3 heads", "a_b (x) 3.5; UPVIT_ROOTS", "it's 12 > x"])
def test_what_needs_no_escape_has_none(text: str) -> None:
    assert plain(text).replace("\\>", ">") == text


def test_joiners_and_backslashes_are_all_that_is_added() -> None:
    text = "[a](http://b.c) :x: *d* __e__ $f$ <g> me@h.i www.j.k 1) ~l~ --m -- `n`"
    assert re.sub(r"\\(?=[^a-z\s])", "", plain(text)).replace(JOINER, "") == text
