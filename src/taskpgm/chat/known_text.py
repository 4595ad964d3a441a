"""`KnownText`: rows of a known form are rendered once and not traced; all others as `Template` does.

A row is plain if its turns are texts that neither begin nor end with white space. What a template writes around the
texts of a plain row is learned from the first row with the same roles, which is traced. Of a later one with these roles
the template's own text is compared, letter by letter, with that frame around the row's texts; if they are equal, its
answers stand where the frame has them. If not, the row is traced like any other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from taskpgm.chat.template import FIRST, Rendered, Template
from taskpgm.data.messages import Conversation
from taskpgm.pool.task_pool import Refused

Form = tuple[tuple[str, bool], ...]  # role, and whether it is learned, of every turn


class _Frame(NamedTuple):
    around: tuple[str, ...]  # before the first text, between the texts, behind the last
    answers: tuple[tuple[int, int, int], ...]  # turn, how far its span reaches beyond its text at either end
    lost: tuple[str, ...]


class KnownText:
    """The texts that a template writes."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self._frames: dict[Form, _Frame] = {}

    @property
    def forms(self) -> int:
        """How many forms are known."""
        return len(self._frames)

    def write(self, row: Conversation) -> Rendered | Refused:
        """What `Template.write` says."""
        form = _form_of(row)
        if form is None:
            return self.template.write(row)
        if form not in self._frames:
            written = self.template.write(row)
            frame = _learned(row, written) if isinstance(written, Rendered) and not self.template.marks(row) else None
            self._frames |= {form: frame} if frame else {}
            return written
        frame, texts = self._frames[form], [turn.content for turn in row.messages]
        text = self.template.text_of(row)
        return _placed(frame, texts, text) if text == _framed(frame, texts) else self.template.write(row)


def _form_of(row: Conversation) -> Form | None:
    """Roles of a plain row."""
    if not row.plain_texts or not all(_bare(turn.content) for turn in row.messages):
        return None
    return tuple((turn.role, turn.learned) for turn in row.messages)


def _bare(text: str) -> bool:
    """Whether a text begins and ends with a letter or a sign, and holds no stand-in."""
    return bool(text) and _visible(text[0]) and _visible(text[-1]) and (text.isascii() or max(text) < chr(FIRST))


def _visible(sign: str) -> bool:
    return sign > " " and not sign.isspace()


def _learned(row: Conversation, written: Rendered) -> _Frame | None:
    """The frame of a traced row; none if it is not sure where its texts stand."""
    around, starts, end = [], [], 0
    for turn in row.messages:
        start = written.text.find(turn.content)
        if start < end or written.text.find(turn.content, start + 1) >= 0:
            return None
        around.append(written.text[end:start])
        starts.append(start)
        end = start + len(turn.content)
    answers = [i for i, turn in enumerate(row.messages) if turn.answers]
    if len(answers) != len(written.spans):
        return None
    reach = [
        (i, starts[i] - a, b - starts[i] - len(row.messages[i].content))
        for i, (a, b) in zip(answers, written.spans, strict=True)
    ]
    return _Frame((*around, written.text[end:]), tuple(reach), written.lost)


def _framed(frame: _Frame, texts: Sequence[str]) -> str:
    return "".join(part for pair in zip(frame.around, (*texts, ""), strict=True) for part in pair)


def _placed(frame: _Frame, texts: Sequence[str], text: str) -> Rendered:
    starts, end = [], 0
    for before, own in zip(frame.around, texts, strict=False):
        starts.append(end + len(before))
        end = starts[-1] + len(own)
    spans = [(starts[i] - left, starts[i] + len(texts[i]) + right) for i, left, right in frame.answers]
    return Rendered(text, spans, frame.lost)
