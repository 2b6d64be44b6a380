"""A browser session without a browser: Streamlit's own protocol over a websocket, for load tests.

Each session holds its widgets as a browser would (ids and defaults come from the server) and sends all of them with
every rerun. A rerun lasts from its request until the server says that the script has finished, everything drawn.
"""

import socket
import time
from urllib.parse import urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

FINISHED = (ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)
TIMER_SECONDS = 20.0
KEPT_RUNS = 2  # Streamlit's global.maxCachedMessageAge


class Session:
    """One visitor. `widgets` by label; `errors` gathers what the page showed as an error or exception."""

    def __init__(self, address: str, page: str = "", query: str = "", host: str = ""):
        self.page, self.query, self.hash = page, query, ""
        self.widgets: dict[str, tuple[str, str]] = {}  # key or label: kind and id
        self.values: dict[str, tuple[str, list[str] | list[float]]] = {}  # id: field of the state and value
        self.buttons: dict[str, str] = {}
        self.errors: list[str] = []
        self.pages: list[str] = []  # hash of the page of every run
        self.texts: list[str] = []
        self.fragments: dict[str, float] = {}
        self.received = 0
        self.kept: dict[str, tuple[int, ForwardMsg]] = {}  # large messages, as a browser keeps them, by hash
        self.runs = 0
        there = urlsplit(address)
        named = f"{host or there.hostname}:{there.port}"  # as the browser calls the server
        self.socket: ClientConnection = connect(
            f"ws://{named}/_stcore/stream",
            sock=socket.create_connection((there.hostname or "", there.port or 80)),
            subprotocols=[Subprotocol("streamlit")],
            origin=Origin(f"http://{named}"),
            max_size=None,
            compression=None,
            open_timeout=120,
        )

    def close(self) -> None:
        self.socket.close()

    def rerun(self, fragment: str = "", timeout: float = 300.0, pressed: str = "") -> float:
        """Run the page (or one fragment of it) and take everything it draws; returns seconds."""
        if not fragment:
            self.fragments.clear()
        began = time.perf_counter()
        self.send(fragment, pressed)
        self.take(timeout, timer=fragment)
        if not fragment:
            self.runs += 1
            self.kept = {h: (seen, m) for h, (seen, m) in self.kept.items() if self.runs - seen <= KEPT_RUNS}
        return time.perf_counter() - began

    def send(self, fragment: str = "", pressed: str = "") -> None:
        """Ask for a run of the page, or of one fragment by its timer, as the page that was drawn last."""
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_name, state.page_script_hash = self.query, self.page, self.hash
        state.cached_message_hashes.extend(self.kept)
        if fragment:
            state.fragment_id, state.is_auto_rerun = fragment, True
        for widget_id, (field, value) in self.values.items():
            widget = state.widget_states.widgets.add()
            widget.id = widget_id
            if field.endswith("array_value"):
                getattr(widget, field).data.extend(value)
            else:
                setattr(widget, field, value)
        if pressed:
            button = state.widget_states.widgets.add()
            button.id, button.trigger_value = pressed, True
        self.socket.send(message.SerializeToString())

    def take(self, timeout: float = 300.0, timer: str = "") -> None:
        """Take what is sent until a run has finished; a timer asks again, since Streamlit may drop its request."""
        end = time.monotonic() + timeout
        while True:
            try:
                if self._take(self.socket.recv(min(TIMER_SECONDS, timeout) if timer else timeout)):
                    return
            except TimeoutError:
                if not timer or time.monotonic() > end:
                    raise
                self.send(timer)

    def slide(self, label: str, value: float) -> float:
        """Move a slider and wait for the page."""
        self.values[self.widgets[label][1]] = "double_array_value", [float(value)]
        return self.rerun()

    def press(self, label: str) -> float:
        """Press a button and wait for the page."""
        return self.rerun(pressed=self.buttons[label])

    def value_of(self, label: str) -> float:
        return float(self.values[self.widgets[label][1]][1][0])

    def _take(self, content: str | bytes) -> bool:
        """True if this was the last message of the run."""
        assert isinstance(content, bytes)
        self.received += len(content)
        message = ForwardMsg()
        message.ParseFromString(content)
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            message = self.kept[message.ref_hash][1]
            self.kept[message.hash] = self.runs, message
            kind = message.WhichOneof("type")
        elif message.metadata.cacheable:
            self.kept[message.hash] = self.runs, message
        if kind == "new_session":
            self.pages.append(message.new_session.page_script_hash)
            self.texts.clear()
            self.buttons.clear()
        elif kind == "navigation":
            self.hash, self.page = message.navigation.page_script_hash, ""
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            self._element(message.delta.new_element)
        elif kind == "auto_rerun":
            self.fragments[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "session_event" and message.session_event.WhichOneof("type") == "script_compilation_exception":
            self.errors.append("the script does not compile")
        return kind == "script_finished" and message.script_finished in FINISHED

    def _element(self, element: Element) -> None:
        kind = element.WhichOneof("type")
        proto = getattr(element, kind)
        if kind == "exception":
            self.errors.append(f"{proto.type}: {proto.message}")
        elif kind == "alert":
            (self.errors if proto.format == proto.ERROR else self.texts).append(proto.body)
        elif kind in ("html", "markdown", "text", "metric"):
            self.texts.append(str(getattr(proto, "body", "")))
        elif kind == "button":
            self.buttons[proto.label] = proto.id
        elif kind == "slider":
            self.widgets[proto.label] = kind, proto.id
            given = list(proto.value) if proto.set_value else list(proto.default)
            if proto.set_value or proto.id not in self.values:
                if proto.options:  # a choice from a list travels as its words
                    self.values[proto.id] = "string_array_value", [proto.options[int(place)] for place in given]
                else:
                    self.values[proto.id] = "double_array_value", given
