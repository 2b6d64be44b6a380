"""Entry point: `streamlit run app.py`. Navigation and page settings; every page is a script of its own."""

import streamlit as st

st.set_page_config(page_title="UP-ViT studio", page_icon=":material/content_cut:", layout="wide")

st.navigation(
    [
        st.Page("pages/explore/model.py", title="Model", icon=":material/memory:", url_path="home", default=True),
        # The default page answers at the root alone, so links to /model need a page of their own.
        st.Page("pages/explore/model.py", title="Model", url_path="model", visibility="hidden"),
        st.Page("pages/explore/importance.py", title="Importance", icon=":material/grid_on:", url_path="importance"),
        st.Page("pages/explore/tradeoff.py", title="Trade-off", icon=":material/tune:", url_path="tradeoff"),
        st.Page("pages/run/runs.py", title="Runs", icon=":material/model_training:", url_path="runs"),
        st.Page("pages/run/transfer.py", title="Transfer", icon=":material/moving:", url_path="transfer"),
        st.Page("pages/learn/method.py", title="Method", icon=":material/school:", url_path="method"),
        st.Page("pages/learn/workshop.py", title="Workshop", icon=":material/groups:", url_path="workshop"),
        st.Page("pages/learn/glossary.py", title="Glossary", icon=":material/dictionary:", url_path="glossary"),
    ],
    position="top",
).run()
