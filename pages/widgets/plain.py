"""Text that is not of the source, as Markdown that shows it as it is: errors, names, what a file or a link says.

Streamlit reads labels, captions and messages as Markdown with HTML off; a name could still be a picture from elsewhere
or a link within a message of the app.
"""

import re

JOINER = "\u2060"  # invisible; parts links, emojis and arrows, which Streamlit makes of escaped text too
PARTED = re.compile(r"(?i)(?<=https:)(?=//)|(?<=http:)(?=//)|(?<=www)(?=\.)|(?=@[\w-]+\.)|(?<=[-<>~])(?=[->=](?:\s|$))")
EMOJI = re.compile(r":(?=[\w+/-]+:)")
SPECIAL = re.compile(r"[\\`*\[\]<>$~|&]|(?<![^\W_])_|_(?![^\W_])|:(?=[^\W\d_]|\u2060)|^[-+#=]")
NUMBERED = re.compile(r"^(\d+)([.)])")


def plain(text: object) -> str:
    """One line of Markdown that shows `text`."""
    line = " ".join(str(text).split())
    line = EMOJI.sub(":" + JOINER, PARTED.sub(JOINER, line))
    return NUMBERED.sub(r"\1\\\2", SPECIAL.sub(r"\\\g<0>", line))
