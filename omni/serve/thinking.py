"""The engine and its thread: what a model worker computes with. torch is imported here, and nowhere else in serve/.

thinking = Thinking(load(config), deliver)     # deliver(outputs) is called in the computing thread
sequence = thinking.add(request)
thinking.abort(key(request))
thinking.stop()
"""

import logging
import threading
from collections.abc import Callable

import torch

from omni.audio.wav import from_pcm16
from omni.engine.engine import Engine, EngineConfig
from omni.engine.sequence import EngineError, NotFinite, Output, RowFailed, Sequence, UnknownAdaptor
from omni.model import checkpoint
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.serve import arithmetic, errors
from omni.serve.config import ServeConfig
from omni.serve.protocol import Message, ReadRequest, TurnRequest
from omni.vocoder import checkpoint as voices
from omni.vocoder.streaming import seconds_per_unit

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # then the thread looks whether it has been stopped

Deliver = Callable[[list[Output]], None]


def load(config: ServeConfig) -> Engine:
    torch.set_num_threads(config.model_threads)
    device = "cuda" if config.model_gpus > 0 else "cpu"
    found = config.here()
    omni = checkpoint.load(found.model, device, arithmetic.dtype(config.model_dtype, device))
    told = EngineConfig(
        config.slots,
        max_answer=config.max_new_tokens,
        weights=config.model_weights,
        release=True,
        prefill_alone=config.prefill_alone,
        prefill_beside=config.prefill_beside,
        prefill_dry=config.prefill_dry,
        seconds_per_unit=seconds_per_unit(voices.read_config(found.vocoder)),
    )
    engine = Engine(omni, told)
    engine.warm_up()
    return engine


class Thinking:
    def __init__(self, engine: Engine, deliver: Deliver) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        self._deliver = deliver
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def add(self, request: TurnRequest) -> Sequence:
        own = request.sampling
        sampling = Sampling(own.temperature, own.top_p, own.top_k, own.max_new_tokens, own.seed)
        conversation = [_utterance(message) for message in request.messages]
        received = request.forced_tokens, request.received_units
        return self.engine.add(key(request), conversation, sampling, *received, request.adaptor)

    def read(self, request: ReadRequest) -> Sequence:
        conversation = [_utterance(message) for message in request.messages]
        return self.engine.read(request.turn_id, conversation, request.adaptor)

    def abort(self, name: str) -> None:
        self.engine.abort(name)

    def stop(self) -> None:
        self._stopped = True
        self.engine.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped:
                self.engine.wait(IDLE_SECONDS)
                outputs = self.engine.step()
                if outputs:
                    self._deliver(outputs)
        except BaseException as exc:
            logger.exception("the computing thread ended")
            self.failure = exc


def key(request: TurnRequest) -> str:
    """The engine's name for the turn: another epoch of it may still be on its way out."""
    return f"{request.turn_id}/{request.epoch}"


def as_wire_error(error: EngineError) -> errors.OmniError:
    """The engine's verdict on one sequence → what the client is told."""
    if isinstance(error, UnknownAdaptor):  # another machine's copy of the checkpoint has it
        return errors.UnknownAdaptor(str(error), param="adaptor")
    kind = errors.Internal if isinstance(error, NotFinite | RowFailed) else errors.BadRequest
    return kind(str(error), code=error.code)


def _utterance(message: Message) -> Utterance:
    speech = None if message.pcm16 is None else from_pcm16(message.pcm16)
    return Utterance(message.role, message.text, speech, message.token_ids)
