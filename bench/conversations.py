"""What people are going to do, drawn beforehand: when they speak, think and interrupt. No torch, network or clock.

    for turn in conversation(Habits(), seed=7, num_questions=20):
        turn.question, turn.think, turn.interrupt_after

The shape is that of the published multi-turn data and of people who talk to assistants: about four turns, two seconds
of thought after an answer, one answer in ten interrupted.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    mean_turns: float = 4.0  # geometric, at least one
    mean_think: float = 2.0  # seconds between the end of an answer and the next question; exponential
    interrupting: float = 0.1  # share of answers that are interrupted
    patience: float = 3.0  # an interruption comes at most so many seconds after the first sound; uniform


@dataclass(frozen=True)
class PlannedTurn:
    question: int  # which recording
    think: float  # seconds before it
    interrupt_after: float | None  # seconds of listening, or None: to the end
    last: bool


def conversation(habits: Habits, seed: int, num_questions: int) -> Iterator[PlannedTurn]:
    draw = random.Random(f"conversation {seed}")
    number = 0
    while True:
        last = draw.random() < 1.0 / habits.mean_turns
        think = draw.expovariate(1.0 / habits.mean_think) if number and habits.mean_think > 0 else 0.0
        interrupts = draw.random() < habits.interrupting
        after = draw.uniform(0.0, habits.patience)
        yield PlannedTurn(draw.randrange(num_questions), think, after if interrupts else None, last)
        number += 1
        if last:
            return


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Poisson: seconds from the start at which conversations begin, `rate` of them per second."""
    draw, at = random.Random(f"arrivals {seed}"), 0.0
    while True:
        at += draw.expovariate(rate)
        yield at
