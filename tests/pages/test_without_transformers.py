import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets.plain import plain
from tests.support.tiny_text import folder_of_weights


@pytest.mark.usefixtures("jobs_at_once")
@pytest.mark.parametrize("ours", [True, False])
def test_the_model_page_says_what_to_install(
    ours: bool, page: Callable[..., AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    test = page("pages/start/page.py", open=str(folder_of_weights(tmp_path / "lm", ours=ours)))
    assert not test.exception
    why = "Language models need Hugging Face's transformers; install it with pip install 'transformers>=4.50,<6'."
    assert [message.value for message in (*test.error, *test.warning)] == [plain(why)]
