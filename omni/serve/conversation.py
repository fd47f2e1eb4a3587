"""The items of one session: what the user said, what was answered, and how much of it was heard. Decides only: no I/O.

    conversation = Conversation(Window.of(config))
    conversation.add(Item.speech(pcm16))
    left = conversation.make_room()                  # the oldest turns leave whole: their items, to be told
    answer = conversation.begin_answer()             # an item in progress
    turn = Turn(cluster, config, conversation.messages(), sampling)
    ...                                              # the answer goes on while nobody interrupts
    conversation.end_answer(answer.id, turn.alignment(), heard=None)   # or the samples that were played
    conversation.truncate(answer.id, audio_end_ms)   # the client knows better what it played

An answer keeps its own tokens, so that the next prompt's positions equal those that a worker's slot holds already; of
one that was interrupted only what was heard goes into the next prompt. A turn is a user's item, or several, with the
answers to it; system items are no turns and never leave.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from omni.audio.wav import SAMPLE_RATE
from omni.serve.alignment import Alignment, Heard
from omni.serve.errors import BadRequest
from omni.serve.protocol import Message
from omni.serve.window import Size, Window

ROLES = ("system", "user", "assistant")


@dataclass
class Item:
    """One thing that was said: speech (int16 LE, mono, 16 kHz) or text; or an answer with its tokens."""

    id: str
    role: str  # one of ROLES
    pcm16: bytes | None = field(default=None, repr=False)
    text: str | None = None
    alignment: Alignment | None = None  # of an answer that omni gave
    heard_samples: int | None = None  # of an answer: how much of it was played; None: all that was sent
    status: str = "completed"  # or "in_progress", or "incomplete": interrupted, or failed on the way

    @classmethod
    def speech(cls, pcm16: bytes, item_id: str | None = None) -> "Item":
        return cls(item_id or new_id(), "user", pcm16=pcm16)

    @classmethod
    def written(cls, role: str, text: str, item_id: str | None = None) -> "Item":
        return cls(item_id or new_id(), role, text=text)

    @property
    def heard(self) -> Heard | None:
        """Of an answer: the part that was heard, and the text after it."""
        return None if self.alignment is None else self.alignment.heard(self.heard_samples)

    def message(self) -> Message | None:
        """As the model gets it; None for an answer of which nothing was heard, or that is still in progress."""
        if self.pcm16 is not None:
            return Message(self.role, pcm16=self.pcm16)
        if self.heard is None:
            return Message(self.role, text=self.text) if self.text else None
        if self.status == "in_progress" or not self.heard.token_ids:
            return None
        return Message(self.role, text=self.heard.text, token_ids=self.heard.token_ids)


class Conversation:
    """`max_items` and `max_chars` of text limit what it holds; of speech it holds twice the window at most."""

    def __init__(
        self, window: Window, items: Iterable[Item] = (), max_items: int = 256, max_chars: int = 32_768
    ) -> None:
        self.window, self.max_items, self.max_chars = window, max_items, max_chars
        self.items = list(items)

    # --- items --------------------------------------------------------------------------------------------------------

    def find(self, item_id: str) -> Item:
        for item in self.items:
            if item.id == item_id:
                return item
        raise BadRequest(f"There is no item {item_id[:100]!r} in this conversation.", code="item_not_found")

    def add(self, item: Item, after: str | None = None) -> Item:
        """Put an item after another one; "root" is the beginning, None the end. Returns it."""
        if item.role not in ROLES:
            raise BadRequest(f"role is {item.role!r}. Select one of {', '.join(ROLES)}.", code="invalid_value")
        if any(each.id == item.id for each in self.items):
            raise BadRequest(f"There is an item {item.id[:100]!r} already.", code="item_exists")
        if len(self.items) >= self.max_items:
            raise BadRequest(f"The conversation has {self.max_items} items, the limit: delete some.", code="too_long")
        if item.alignment is None:
            self._check_size(item)
        place = len(self.items) if after is None else 0 if after == "root" else self._index(after) + 1
        self.items.insert(place, item)
        return item

    def previous(self, item_id: str) -> str | None:
        """The id of the item before this one."""
        place = self._index(item_id)
        return self.items[place - 1].id if place else None

    def delete(self, item_id: str) -> Item:
        return self.items.pop(self._index(item_id))

    # --- answers ------------------------------------------------------------------------------------------------------

    def begin_answer(self, item_id: str | None = None) -> Item:
        return self.add(Item(item_id or new_id(), "assistant", alignment=Alignment(), status="in_progress"))

    def end_answer(
        self, item_id: str, alignment: Alignment, heard: int | None = None, *, completed: bool = True
    ) -> Item:
        """The answer is over: as it was made, and how many of its samples were played, where that is known."""
        item = self.find(item_id)
        item.alignment = alignment
        item.heard_samples = item.heard_samples if heard is None else heard  # truncate() may have come before
        item.status = "completed" if completed else "incomplete"
        item.text = alignment.text
        return item

    def truncate(self, item_id: str, audio_end_ms: int) -> Item:
        """The client played an answer up to here. It may say so again: the last word counts."""
        item = self.find(item_id)
        if item.alignment is None or not item.alignment.spoken:
            raise BadRequest(f"The item {item_id[:100]!r} is no spoken answer.", code="invalid_value", param="item_id")
        samples = audio_end_ms * SAMPLE_RATE // 1000
        sent = item.alignment.num_samples
        if audio_end_ms < 0 or (samples > sent and item.status != "in_progress"):
            raise BadRequest(
                f"audio_end_ms is {audio_end_ms}; of this answer {1000 * sent // SAMPLE_RATE} ms were sent.",
                code="invalid_value",
                param="audio_end_ms",
            )
        item.heard_samples = samples
        return item

    # --- the next prompt ----------------------------------------------------------------------------------------------

    def messages(self, pending: Sequence[Item] = ()) -> tuple[Message, ...]:
        """The conversation as the model gets it. `pending` items are no part of it yet: a question still being said."""
        return tuple(message for item in [*self.items, *pending] if (message := item.message()) is not None)

    def make_room(self, pending: Sequence[Item] = ()) -> list[Item]:
        """The oldest turns leave, so that the next prompt keeps the limits. Returns their items, whole turns.

        Raises BadRequest where the newest turn alone, with the system items, is more than fits.
        """
        turns = self._turns(pending)
        base = sum((self._size(item) for item in self.items if item.role == "system"), Size())
        sizes = [sum(map(self._size, turn), Size()) for turn in turns]
        count = self.window.overflow(base, sizes)
        if not self.window.fits(base, sizes[count:]):
            raise BadRequest(
                f"The instructions and the last question are more than fits: {self.window.positions} positions and "
                f"{self.window.seconds:g} s of speech.",
                code="context_too_long",
            )
        leaving = [item for turn in turns[:count] for item in turn]
        gone = {item.id for item in leaving}
        self.items = [item for item in self.items if item.id not in gone]
        return leaving

    def _check_size(self, new: Item) -> None:
        given = [each for each in [*self.items, new] if each.alignment is None]
        chars = sum(len(each.text or "") for each in given)
        seconds = sum(len(each.pcm16 or b"") for each in given) / 2 / SAMPLE_RATE
        if chars > self.max_chars:
            raise BadRequest(
                f"The conversation has {chars} characters; the limit is {self.max_chars}: delete items.",
                code="too_long",
            )
        if seconds > 2 * self.window.seconds:
            raise BadRequest(
                f"The conversation has {seconds:.1f} s of speech; the limit is {2 * self.window.seconds:g} s: "
                "ask for an answer, or delete items.",
                code="too_long",
            )

    def _turns(self, pending: Sequence[Item]) -> list[list[Item]]:
        """The items but the system's: a new turn begins with a user's item that follows an answer."""
        turns: list[list[Item]] = []
        for item in [*self.items, *pending]:
            if item.role == "system":
                continue
            if not turns or (item.role == "user" and turns[-1][-1].role == "assistant"):
                turns.append([])
            turns[-1].append(item)
        return turns

    def _size(self, item: Item) -> Size:
        message = item.message()
        if message is None:
            return Size()
        if message.pcm16 is not None:
            return self.window.spoken(len(message.pcm16) // 2)
        if message.token_ids is not None:
            return self.window.generated(len(message.token_ids))
        return self.window.written(message.text or "")

    def _index(self, item_id: str) -> int:
        return self.items.index(self.find(item_id))

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def new_id() -> str:
    return f"item_{uuid.uuid4().hex[:24]}"
