"""The microphone of one conversation: from portions of sound to questions, by voice activity or by hand.

    listening = Listening(hearing, config, settings, clock, act, complain)
    await listening.append(pcm16)        # act(Started | Paused | Resumed | Stopped), as they are heard
    item = listening.question(sample)    # what was said until a pause, while the speaker may still go on
    item = listening.take(sample)        # the question is complete: it leaves the buffer
    item = listening.commit()            # push-to-talk, or in the middle of speech

    append ─→ InputBuffer ─→ VoiceActivity ─→ TurnTaking ─→ act(signal)

Knows what a question is; knows no answer, and says nothing itself but what is wrong with the sound.
"""

from collections.abc import Callable

from omni.audio.vad import WINDOW, VoiceActivity
from omni.audio.wav import SAMPLE_RATE, SILENCE, from_pcm16
from omni.serve.allowance import Allowance
from omni.serve.config import ServeConfig
from omni.serve.conversation import Item, new_id
from omni.serve.errors import BadAudio, BadRequest, OmniError, RateLimited
from omni.serve.hearing import Hearing
from omni.serve.input_buffer import SAMPLE_BYTES, InputBuffer
from omni.serve.realtime_settings import Settings
from omni.serve.registry import RETRY_SECONDS
from omni.serve.turn_taking import Signal, Started, Stopped, TurnTaking

LEAST_AUDIO = 0.1  # seconds; less is no question
FASTEST = 1.25  # seconds of sound a second, once the burst is used up


class Listening:
    """Nothing raised by `act` ends the hearing: it is given to `complain`, and the next window is heard."""

    def __init__(
        self,
        hearing: Hearing,
        config: ServeConfig,
        settings: Settings,
        clock: Callable[[], float],
        act: Callable[[Signal], None],
        complain: Callable[[OmniError], None],
    ) -> None:
        self.settings = settings  # the session's
        self.question_id = ""  # the item's, while somebody speaks
        self._question_start = 0  # sample
        self._hearing, self._config, self._clock = hearing, config, clock
        self._act, self._complain = act, complain
        self._allowance = Allowance(config.audio_burst, FASTEST)
        self._buffer = InputBuffer(settings.rate_in)
        self._ear: VoiceActivity | None = None  # made when something is heard: most sockets only wait
        self._taking: TurnTaking | None = None

    @property
    def is_untouched(self) -> bool:
        return not self._buffer.end

    @property
    def is_empty(self) -> bool:
        """Nothing is kept of what was appended."""
        return self._buffer.start == self._buffer.end

    @property
    def bytes_in(self) -> int:
        """Of the question that is on its way."""
        return self._buffer.bytes_in

    def change(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        if settings.rate_in != before.rate_in:
            self._buffer.flush()
            self._buffer.change_rate(settings.rate_in)
        if settings.turn_detection is None:
            self._ear = self._taking = None
        elif self._taking is not None:
            self._taking.settings = settings.taking(self._config)

    # --- sound in -----------------------------------------------------------------------------------------------------

    async def append(self, pcm16: bytes) -> None:
        seconds = len(pcm16) / SAMPLE_BYTES / self.settings.rate_in
        if self.settings.turn_detection is None and self._buffer.seconds + seconds > self._config.max_audio_seconds:
            raise too_long(self._buffer.seconds + seconds, self._config)
        if len(pcm16) % SAMPLE_BYTES == 0 and not self._allowance.take(seconds, self._clock()):
            raise RateLimited(
                f"Audio comes faster than it is spoken; {self._config.audio_burst:g} s may come at once. "
                f"This portion was not taken.",
                retry_after=RETRY_SECONDS,
                param="audio",
            )
        self._buffer.append(pcm16)
        if self.settings.turn_detection is not None:
            await self._listen(self.settings)

    async def _listen(self, settings: Settings) -> None:
        """Turn-taking, as far as whole windows have come."""
        if self._taking is None:
            self._taking = TurnTaking(settings.taking(self._config), self._buffer.start)
        taking = self._taking
        while (count := (self._buffer.end - taking.position) // WINDOW) > 0:
            start = taking.position
            samples = from_pcm16(self._buffer.peek(start, start + min(count, self._hearing.windows) * WINDOW))
            if self._ear is None:
                self._ear = await self._hearing.ear()
            for probability in await self._hearing.run(self._ear.push, samples):
                self._notice(taking.hear(float(probability)))
                self._end_if_too_long(taking)
        if not taking.speaking:
            self._buffer.forget(taking.kept_from)

    def _notice(self, signal: Signal | None) -> None:
        if isinstance(signal, Started):
            self._question_start, self.question_id = signal.sample, new_id()
        if signal is None:
            return
        try:
            self._act(signal)
        except OmniError as exc:  # the windows after it are still to be heard
            self._complain(exc)

    def _end_if_too_long(self, taking: TurnTaking) -> None:
        """A question has a limit: what was said is answered, and the speaker is told."""
        limit = self._config.max_audio_seconds
        if taking.speaking and taking.position - self._question_start >= limit * SAMPLE_RATE:
            taking.stop()
            message = f"You have spoken for {limit:g} s, the limit: this is answered, what follows is another question."
            self._complain(BadAudio(message, code="audio_too_long"))
            self._notice(Stopped(taking.position))

    # --- questions out ------------------------------------------------------------------------------------------------

    def question(self, end: int) -> Item:
        """What was said from the question's start to this sample."""
        return Item.speech(self._buffer.peek(self._question_start, end), self.question_id)

    def take(self, end: int) -> Item:
        return Item.speech(self._buffer.take(self._question_start, end), self.question_id)

    def commit(self) -> Item:
        """The question ends here, because the client says so."""
        if self.settings.turn_detection is None:
            self._need_audio()
            self._buffer.flush()
            start, end, item_id = self._buffer.start, self._buffer.end, new_id()
        elif self._taking is not None and self._taking.speaking:
            start, end, item_id = self._question_start, self._taking.position, self.question_id
        else:
            raise BadRequest("Nobody speaks: there is nothing to commit.", code="input_audio_buffer_commit_empty")
        item = Item.speech(checked(self._buffer.peek(start, end)), item_id)
        self._buffer.take(start, end)
        if self._taking is not None:
            self._taking.stop()
        return item

    def clear(self) -> None:
        """What was appended is forgotten, a question that is being said too."""
        self._buffer.flush()
        self._buffer.forget(self._buffer.end)
        self._ear = self._taking = None

    def _need_audio(self) -> None:
        seconds = self._buffer.seconds
        if seconds < LEAST_AUDIO:
            raise BadRequest(
                f"The buffer has {1000 * seconds:.0f} ms; a question needs {1000 * LEAST_AUDIO:.0f}.",
                code="input_audio_buffer_commit_empty",
            )


def given_speech(pcm16: bytes, rate: int, config: ServeConfig) -> bytes:
    """A recording that came whole, int16 LE mono at `rate` → at 16 kHz, neither too long nor silent."""
    seconds = len(pcm16) / SAMPLE_BYTES / rate
    if seconds > config.max_audio_seconds:
        raise too_long(seconds, config)
    buffer = InputBuffer(rate)
    buffer.append(pcm16)
    buffer.flush()
    return checked(buffer.take(buffer.start, buffer.end))


def checked(pcm16: bytes) -> bytes:
    """A question as it is, unless it is silent."""
    samples = from_pcm16(pcm16)
    if not len(samples) or float(abs(samples).max()) < SILENCE:
        raise BadAudio("The audio is silent (peak below -60 dBFS). Check the microphone.", code="audio_silent")
    return pcm16


def too_long(seconds: float, config: ServeConfig) -> OmniError:
    limit = config.max_audio_seconds
    message = f"The audio would last {seconds:.1f} s; the limit is {limit:g} s. This portion was not taken."
    return BadAudio(message, code="audio_too_long", param="audio")
