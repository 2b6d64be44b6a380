"""Data to plotly figures: pure functions, no Streamlit, no torch."""
