"""Entry point: `streamlit run app.py`. Navigation and page settings; every page is a script of its own."""

from pathlib import Path

import streamlit as st

from pages.services import server

server.prepare()
st.set_page_config(page_title="UP-ViT studio", page_icon=Path(__file__).parent / "assets" / "icon.png", layout="wide")

st.navigation(
    {
        "": [
            st.Page("pages/start/page.py", title="Start", icon=":material/home:", url_path="home", default=True),
            # The default page answers at the root alone, so links to /model need a page of their own.
            st.Page("pages/start/page.py", title="Start", url_path="model", visibility="hidden"),
            st.Page("pages/importance/page.py", title="Importance", icon=":material/grid_on:", url_path="importance"),
            st.Page("pages/tradeoff/page.py", title="Trade-off", icon=":material/tune:", url_path="tradeoff"),
            st.Page("pages/runs/page.py", title="Runs", icon=":material/model_training:", url_path="runs"),
        ],
        "Learn": [
            st.Page("pages/method/page.py", title="Method", icon=":material/school:", url_path="method"),
            st.Page("pages/workshop/page.py", title="Workshop", icon=":material/groups:", url_path="workshop"),
            st.Page("pages/glossary/page.py", title="Glossary", icon=":material/dictionary:", url_path="glossary"),
        ],
    },
    position="top",
).run()
