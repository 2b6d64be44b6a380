"""Words and pictures of the lessons, large enough for the back of a room."""

import streamlit as st

from pages.widgets import charts
from upvit_core.figures.theme import Chart


def say(text: str) -> None:
    """Show HTML as the words of a lesson."""
    st.html(f'<div class="lesson">{text}</div>')


def show(chart: Chart, key: str) -> None:
    """Draw a chart with larger type."""
    charts.show(charts.enlarged(chart), f"lesson-{key}")
