"""Conversations in the page with a scripted controller: turns, interruptions, what was heard, faults, widths."""

import io
import json
import re
import wave
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import RECORDING, chromium, page_server, visit
from fake_realtime import FakeRealtime
from waiting import free_port, wait_until

from omni.audio import wav

KEY = "a-key-no-browser-may-see"
FRAME = 320  # samples: 20 ms

TALK = "document.querySelector('omni-live').conversation"
TAP = f"""() => {{
    const talk = {TALK};
    const tap = new AudioWorkletNode(talk.context, 'omni-capture');
    window.heard = [];
    tap.port.onmessage = ({{ data }}) => window.heard.push(...data.pcm);
    talk.player.node.connect(tap).connect(talk.context.destination);
    const flush = talk.player.flush.bind(talk.player);
    window.flushed = [];
    talk.player.flush = () => flush().then((heard) => (window.flushed.push(heard), heard));
}}"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Speech and a long enough pause, which the microphone hears again and again."""
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    speech = wav.read(RECORDING)
    wav.write(path, np.concatenate([np.zeros(4_000, np.float32), speech, np.zeros(44_000, np.float32)]))
    return path


@pytest.fixture(scope="module")
def browser(recording):
    with chromium(recording) as found:
        yield found


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeRealtime]:
    with FakeRealtime(api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def url(fake, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("page") / "page.log"
    with page_server(f"http://127.0.0.1:{fake.port}", log, api_key=KEY) as address:
        yield address
    assert "Traceback" not in log.read_text()


@contextmanager
def visitor(browser, url: str, fake: FakeRealtime, **more):
    """A visitor who has arrived and leaves in the end: the page made no error, and gave back its sockets."""
    fake.seconds, fake.close_code, fake.fail_next, fake.answers, fake.remembers = 3.0, 0, "", 0, True
    fake.events.clear()
    fake.sockets.clear()
    page = visit(browser, url, **more)
    page.locator("omni-live #talk").wait_for()
    try:
        yield page
        assert page.wrong == []
    finally:
        page.context.close()
    wait_until(lambda: fake.closed == fake.opened)


def phase(page, wanted: str) -> None:
    page.wait_for_function(f"{TALK}.phase === '{wanted}'")


def connected(page) -> None:
    page.wait_for_function(f"{TALK}.session !== null")


def ask(page, ms: int = 1000) -> None:
    """Hold the button with the space bar while that much is said; less than 700 ms would be a click."""
    page.locator("#talk").focus()
    page.keyboard.down(" ")
    page.wait_for_function(f"{TALK}.hearing?.question.ms >= {ms}")
    page.keyboard.up(" ")


def heard_to_the_end(page, number: int) -> None:
    page.wait_for_function(f"{TALK}.turns[{number - 1}]?.answer?.over === true")


def heard_for(page, number: int, ms: int) -> None:
    page.wait_for_function(f"{TALK}.turns[{number - 1}]?.answer?.heardMs >= {ms}")


def heard(page) -> np.ndarray:
    """What came out of the loudspeaker, as the number of the answer it belongs to; 0 is silence. (S,) int."""
    return np.round(np.array(page.evaluate("window.heard")) / 1000).astype(int)


def whole(samples: np.ndarray) -> np.ndarray:
    """Without the few samples in which a sound rises or falls, and so passes through other numbers."""
    steady = np.ones(len(samples), dtype=bool)
    changes = np.flatnonzero(np.diff(samples)) + 1
    for change in changes:
        steady[max(0, change - 80) : change + 80] = False
    return samples[steady]


# --- a conversation ---------------------------------------------------------------------------------------------------


def test_three_turns_the_second_interrupted(browser, url, fake, tmp_path):
    """Spoken, answered, spoken over, asked again: in order, cut where it was heard, replayed, kept, never elsewhere."""
    with visitor(browser, url, fake) as page:
        connected(page)
        ask(page)
        phase(page, "speaking")
        page.evaluate(TAP)
        heard_to_the_end(page, 1)
        ask(page)
        heard_for(page, 2, 500)
        page.locator("#talk").focus()
        page.keyboard.down(" ")  # speaks over the second answer
        page.wait_for_function("window.flushed.length === 1")
        page.wait_for_function(f"{TALK}.hearing?.question.ms >= 800")
        page.keyboard.up(" ")
        heard_to_the_end(page, 3)

        check_what_was_heard(page, fake)
        check_what_is_shown(page)
        check_replay(page)
        check_the_archive(page, tmp_path)
        check_where_it_asked(page, url)
    assert all(event["type"] != "error" for event in fake.events)


def check_what_was_heard(page, fake) -> None:
    samples = heard(page)
    sounds = whole(samples)
    sounds = sounds[sounds > 0]
    assert set(sounds) == {1, 2, 3}
    assert np.all(np.diff(sounds) >= 0), "a sample of an old answer after a new one began"
    flushed = page.evaluate("window.flushed")[0]
    latency = page.evaluate(f"{TALK}.player.latency")
    out = flushed["ms"] / 1000 + latency  # what had left the buffer when it was told to be silent
    assert abs(np.count_nonzero(samples == 2) - out * 16_000) < FRAME + 160
    truncated = fake.of_type("conversation.item.truncate")
    assert [(event["item_id"], event["audio_end_ms"]) for event in truncated] == [("item_2", int(flushed["ms"]))]
    reports = [event["played_ms"] for event in fake.of_type("omni.playback") if event["item_id"] == "item_1"]
    assert reports == sorted(reports) and reports[-1] == 3000
    assert len(fake.pcm()) >= 3 * 800 * 16


def check_what_is_shown(page) -> None:
    turns = page.locator("ol > li")
    assert turns.count() == 3
    assert turns.nth(0).locator(".heard").inner_text().startswith("Answer 1 has quite a few words")
    assert turns.nth(0).locator(".rest").inner_text() == ""
    told, rest = turns.nth(1).locator(".heard").inner_text(), turns.nth(1).locator(".rest").inner_text()
    assert told.startswith("Answer 2") and rest
    assert re.search(r"first sound \d+ ms · stopped after \d\.\d s", turns.nth(1).inner_text())
    assert re.fullmatch(r"\d+ ms", page.locator("#first").inner_text())


def check_replay(page) -> None:
    for name in ("question 1", "answer 2"):
        page.get_by_label(f"Hear {name} again").click()
        page.get_by_label(f"Stop {name}").wait_for()  # it sounds
        page.get_by_label(f"Hear {name} again").wait_for()  # and ends by itself


def check_the_archive(page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.get_by_label("Download the conversation").click()
    assert re.fullmatch(r"conversation-[\d-]{16}\.zip", download.value.suggested_filename)
    download.value.save_as(tmp_path / "kept.zip")
    with zipfile.ZipFile(tmp_path / "kept.zip") as kept:
        assert kept.testzip() is None
        told = json.loads(kept.read("conversation.json"))
        sounds = {name: samples_of(kept.read(name)) for name in kept.namelist() if name.endswith(".wav")}
    assert sorted(sounds) == [f"0{n}-{kind}.wav" for n in (1, 2, 3) for kind in ("answer", "question")]
    first, second, third = (turn["answer"] for turn in told["turns"])
    assert np.array_equal(sounds["01-answer.wav"], np.full(48_000, 1000))
    assert np.array_equal(sounds["02-answer.wav"], np.full(len(sounds["02-answer.wav"]), 2000))
    assert abs(len(sounds["02-answer.wav"]) - second["heard_ms"] * 16) <= 16
    assert second["interrupted"] and second["text"].startswith(second["heard"]) and second["heard"] != second["text"]
    assert not third["interrupted"] and third["heard"] == third["text"]
    assert first["first_sound_ms"] > 0 and first["status"] == "completed"
    assert np.abs(sounds["01-question.wav"]).max() > 300  # the recording, and not silence


def samples_of(file: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(file)) as sound:
        assert sound.getframerate() == 16_000
        return np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")


def check_where_it_asked(page, url: str) -> None:
    own = url.removeprefix("http://")
    assert [each for each in page.asked if not re.match(rf"(http|ws)://{own}|data:|blob:", each)] == []
    assert [each for each in page.asked if each.startswith("ws:")] == [f"ws://{own}/live"]
    assert KEY not in page.content() + "".join(page.asked)


def test_hands_free_speech_over_the_answer_silences_it(browser, url, fake):
    """Turns follow from speech and silence alone; speech that begins during an answer cuts it."""
    with visitor(browser, url, fake) as page:
        connected(page)
        ask(page)  # by the button first: the server's times count what was sent for it
        heard_to_the_end(page, 1)
        fake.seconds = 30.0  # longer than the microphone's pause
        page.get_by_text("Hands-free", exact=True).click()
        page.locator("#talk").click()
        page.wait_for_function(f"{TALK}.turns[1]?.answer?.sounding")
        page.evaluate(TAP)
        page.wait_for_function(f"{TALK}.turns.filter((turn) => turn.answer?.cut).length >= 2")
        page.locator("#talk").click()  # rests: nothing is listened to
        page.wait_for_function(f"{TALK}.microphone === null")
        sounds = whole(heard(page))
        sounds = sounds[sounds > 0]
        assert np.all(np.diff(sounds) >= 0)
        assert len(set(sounds)) >= 2
        questions = page.evaluate(f"{TALK}.turns.filter((turn) => turn.answer).map((turn) => turn.question.ms)")
        assert all(500 < ms < 4000 for ms in questions)  # cut out of the stream where speech was
        truncated = [event["item_id"] for event in fake.of_type("conversation.item.truncate")]
        assert truncated[:2] == ["item_2", "item_3"]
        assert len(fake.of_type("response.create")) == 1


def test_ten_interruptions_at_random_moments(browser, url, fake):
    """Whenever the button is pressed, no sample of an earlier answer comes after the first of a later one."""
    moments = np.random.default_rng(5).integers(0, 900, 10)
    with visitor(browser, url, fake) as page:
        connected(page)
        ask(page, 700)
        phase(page, "speaking")
        page.evaluate(TAP)
        for number, moment in enumerate(moments, start=1):
            heard_for(page, number, int(moment))
            ask(page, 700)
        heard_to_the_end(page, 11)
        sounds = whole(heard(page))
        sounds = sounds[sounds > 0]
        assert np.all(np.diff(sounds) >= 0)
        assert sounds[-1] == 11
        assert len(page.evaluate("window.flushed")) == 10


def test_a_server_of_openais_own_events_is_enough(browser, tmp_path):
    """Without omni's extensions: audio in base64 both ways, and no event that such a server does not know."""
    with FakeRealtime(ours=False) as plain, page_server(f"http://127.0.0.1:{plain.port}", tmp_path / "log") as address:
        with visitor(browser, address, plain) as page:
            connected(page)
            ask(page)
            heard_to_the_end(page, 1)
            assert page.evaluate(f"{TALK}.turns[0].answer.heardMs") == 3000
        assert {event["type"] for event in plain.events} == {
            "session.update",
            "input_audio_buffer.clear",
            "input_audio_buffer.commit",
            "response.create",
        }
        assert "omni" not in plain.of_type("session.update")[0]["session"]
        assert len(plain.pcm()) >= 16_000


# --- the button, the keyboard, the settings ---------------------------------------------------------------------------


def test_a_click_begins_and_a_click_ends(browser, url, fake):
    """Who cannot hold a button clicks it; Esc stops the answer."""
    with visitor(browser, url, fake) as page:
        connected(page)
        page.locator("#talk").click()
        page.wait_for_function(f"{TALK}.hearing?.question.ms >= 400")
        page.locator("#talk").click()
        phase(page, "speaking")
        page.keyboard.press("Escape")
        phase(page, "idle")
        assert len(fake.of_type("response.cancel")) == 1


def test_the_keyboard_reaches_everything(browser, url, fake):
    """Tab goes through every control, each with a name; the focus can be seen."""
    with visitor(browser, url, fake) as page:
        connected(page)
        page.get_by_role("button", name="Settings").focus()
        page.keyboard.press("Enter")
        names = []
        for _ in range(9):
            page.keyboard.press("Tab")
            names.append(
                page.evaluate(
                    """() => {
                        const { activeElement } = document.querySelector('omni-live').shadowRoot;
                        return [activeElement?.name || activeElement?.id || activeElement?.className,
                                activeElement && getComputedStyle(activeElement).outlineStyle];
                    }"""
                )
            )
        reached = [name for name, _ in names]
        expected = ["voice", "temperature", "chunk", "longest", "silence", "threshold", "turns", "talk"]
        assert [name for name in reached if name in expected] == expected
        assert ("talk", "solid") in map(tuple, names)
        assert page.locator("#talk").get_attribute("aria-label") == "Talk"


def test_settings_reach_the_session_and_last(browser, url, fake):
    """What is chosen is said at once, and again by the next visit of this browser."""
    with visitor(browser, url, fake) as page:
        connected(page)
        page.get_by_role("button", name="Settings").click()
        page.locator("[name=chunk]").fill("25")
        page.locator("[name=longest]").fill("64")
        page.locator("[name=temperature]").fill("0.7")
        page.locator("[name=temperature]").dispatch_event("change")
        wait_until(lambda: fake.of_type("session.update")[-1]["session"].get("temperature") == 0.7)
        said = fake.of_type("session.update")[-1]["session"]
        assert said["omni"] == {"binary_audio": True, "first_chunk": 25}
        assert said["max_output_tokens"] == 64
        assert said["audio"]["input"] == {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}
        page.locator("[name=chunk]").fill("0")
        page.locator("[name=chunk]").dispatch_event("change")
        assert page.locator("[name=chunk]").evaluate("field => !field.validity.valid")  # refused where it is typed
        count = len(fake.of_type("session.update"))
        page.reload()
        wait_until(lambda: len(fake.of_type("session.update")) > count)
        assert fake.of_type("session.update")[-1]["session"]["omni"]["first_chunk"] == 25
        page.get_by_text("Hands-free", exact=True).click()
        page.locator("#talk").click()
        wait_until(
            lambda: fake.of_type("session.update")[-1]["session"]["audio"]["input"]["turn_detection"] is not None
        )
        detection = fake.of_type("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]
        assert detection == {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500}


def turn_detection(fake: FakeRealtime) -> dict | None:
    return fake.of_type("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]


# --- when something is wrong ------------------------------------------------------------------------------------------


def notice(page, words: str) -> None:
    page.locator(".notice p", has_text=words).wait_for()


def test_a_full_cluster_is_named_and_tried_again(browser, url, fake):
    with visitor(browser, url, fake) as page:
        connected(page)
        fake.close_code = 1013
        fake.do(lambda socket: socket.hang_up(1013))
        notice(page, "All places of the cluster are taken. Next try in")
        fake.close_code = 0
        page.get_by_role("button", name="Try now").click()
        connected(page)
        page.locator(".notice").wait_for(state="hidden")


def test_a_restart_is_survived_with_the_session(browser, url, fake):
    """1012: back at once, with the token of before; nothing is told twice."""
    with visitor(browser, url, fake) as page:
        connected(page)
        first = page.evaluate(f"{TALK}.session.id")
        for number in (1, 2):
            ask(page)
            heard_to_the_end(page, number)
            fake.do(lambda socket: socket.hang_up(1012))
            wait_until(lambda n=number: len(fake.of_type("omni.session.resume")) == n)
            connected(page)
            assert page.evaluate(f"{TALK}.session.id") == first
        assert fake.of_type("conversation.item.create") == []


def test_a_line_that_breaks_while_it_resumes_loses_no_session(browser, url, fake):
    """The token is spent, and the next one never comes: the page comes back with the one it has."""
    with visitor(browser, url, fake) as page:
        connected(page)
        first = page.evaluate(f"{TALK}.session.id")
        fake.lose_token = True
        fake.do(lambda socket: socket.hang_up(1012))
        wait_until(lambda: fake.of_type("omni.session.acknowledge"))
        connected(page)
        assert page.evaluate(f"{TALK}.session.id") == first
        one, other = fake.of_type("omni.session.resume")
        assert one == other and one["token"] not in fake.tokens


def test_a_store_that_is_away_loses_no_session(browser, url, fake):
    """The page comes back later and later with the same token, and says why; nothing is told anew."""
    with visitor(browser, url, fake) as page:
        connected(page)
        first = page.evaluate(f"{TALK}.session.id")
        ask(page)
        heard_to_the_end(page, 1)
        fake.store_away = 2
        fake.do(lambda socket: socket.hang_up(1012))
        notice(page, "The session store does not answer. Next try in")
        assert page.evaluate(f"{TALK}.link.failures") >= 2
        wait_until(lambda: fake.of_type("omni.session.acknowledge"))
        connected(page)
        assert page.evaluate(f"{TALK}.session.id") == first
        tokens = [event["token"] for event in fake.of_type("omni.session.resume")]
        assert len(tokens) == 3 and len(set(tokens)) == 1
        assert fake.of_type("conversation.item.create") == []
        page.locator(".notice").wait_for(state="hidden")
        ask(page)
        heard_to_the_end(page, 2)


def test_a_server_that_forgot_is_told_what_was_said(browser, url, fake):
    """The token is not good any more: the new session gets the questions, and of the answers what was heard."""
    with visitor(browser, url, fake) as page:
        fake.remembers = False
        connected(page)
        ask(page)
        heard_to_the_end(page, 1)
        fake.do(lambda socket: socket.hang_up(1012))
        wait_until(lambda: len(fake.of_type("conversation.item.create")) == 2)
        question, answer = (event["item"] for event in fake.of_type("conversation.item.create"))
        assert question["role"] == "user" and len(question["content"][0]["audio"]) > 16_000
        assert answer == {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": page.locator("ol .heard").inner_text()}],
        }
        ask(page)
        heard_to_the_end(page, 2)


def test_a_broken_line_is_mended_and_the_question_asked_again(browser, url, fake):
    """The line breaks while one speaks: what was said until then is not lost."""
    with visitor(browser, url, fake) as page:
        connected(page)
        page.locator("#talk").focus()
        page.keyboard.down(" ")
        page.wait_for_function(f"{TALK}.hearing?.question.ms >= 500")
        fake.do(lambda socket: socket.break_off())
        page.wait_for_function(f"{TALK}.link.state !== 'open'")
        connected(page)
        page.wait_for_function(f"{TALK}.hearing?.question.ms >= 1000")
        page.keyboard.up(" ")
        heard_to_the_end(page, 1)
        assert len(fake.sockets[-1].pcm) >= 2 * 16 * 1000


def test_a_page_server_that_is_gone_is_waited_for(browser, fake, tmp_path):
    """The page counts down, tries again, and goes on when the server is back."""
    port = free_port()
    controller = f"http://127.0.0.1:{fake.port}"
    with page_server(controller, tmp_path / "log", port=port, api_key=KEY) as address:
        page = visit(browser, address)
        page.locator("omni-live #talk").wait_for()
        connected(page)
    try:
        page.wait_for_function(f"{TALK}.link.state === 'waiting'")
        notice(page, "Next try in")
        with page_server(controller, tmp_path / "log", port=port, api_key=KEY):
            connected(page)
            page.locator(".notice").wait_for(state="hidden")
            assert page.wrong == []
            page.context.close()
    finally:
        page.context.close()


def test_a_worker_that_is_gone_is_said_and_asked_again(browser, url, fake):
    with visitor(browser, url, fake) as page:
        connected(page)
        fake.fail_next = "worker_lost"
        ask(page)
        page.get_by_text("The worker that was answering is gone").wait_for()
        phase(page, "idle")
        page.get_by_role("button", name="Ask again").click()
        heard_to_the_end(page, 1)
        assert page.locator("ol .heard").inner_text().startswith("Answer 2")


def test_a_refused_page_says_so_and_does_not_insist(browser, tmp_path, fake):
    """A wrong key: one try, the reason, and a button."""
    with page_server(f"http://127.0.0.1:{fake.port}", tmp_path / "log", api_key="wrong") as address:
        page = visit(browser, address)
        notice(page, "The controller refuses with HTTP 401.")
        assert page.evaluate(f"{TALK}.link.state") == "closed"
        page.get_by_role("button", name="Connect again").wait_for()
        page.context.close()


def test_a_slip_of_the_finger_is_no_question(browser, url, fake):
    with visitor(browser, url, fake) as page:
        connected(page)
        ask(page, 700)  # opens the microphone
        phase(page, "speaking")
        page.evaluate(f"{TALK}.press().then(() => {TALK}.release())")
        notice(page, "That was too short")
        assert len(fake.of_type("response.create")) == 1
        assert page.locator("ol > li").count() == 1


def test_a_browser_without_worklets_is_led_to_the_form(browser, url, fake):
    """The form for recordings and files is there, and opened."""
    page = browser.new_context().new_page()
    page.add_init_script("delete window.AudioWorkletNode")
    page.goto(url)
    page.locator("#ask").wait_for(state="visible")
    page.get_by_role("tab", name="Talk").click()
    notice(page, "This browser has no AudioWorklet")
    page.context.close()


# --- how it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(browser, url, fake, width, scheme):
    """A phone and a desk, by day and by night: no sideways scrolling, the button in view, text that can be read."""
    with visitor(browser, url, fake, width=width, height=740, color_scheme=scheme) as page:
        connected(page)
        ask(page, 700)
        heard_to_the_end(page, 1)
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.evaluate(
            """width => [...document.querySelector('omni-live').shadowRoot.querySelectorAll('section *')]
                .filter((each) => each.getBoundingClientRect().right > width + 1).map((each) => each.outerHTML)""",
            width,
        )
        assert wide == []
        modes, next_to_it = (page.locator(each).bounding_box() for each in (".modes label:last-of-type", "#download"))
        assert modes["x"] + modes["width"] <= next_to_it["x"]
        box = page.locator("#talk").bounding_box()
        assert box["y"] + box["height"] < 740 and box["width"] >= 80
        assert contrast(page, ".state p") > 4.5
        assert contrast(page, ".answer .heard") > 4.5


def contrast(page, selector: str) -> float:
    """Of an element's text on the page's ground, as WCAG counts it."""
    text, ground = (
        page.evaluate(
            """([selector, name]) => {
                const root = document.querySelector('omni-live').shadowRoot;
                const paint = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
                paint.fillStyle = getComputedStyle(root.querySelector(selector))[name];
                paint.fillRect(0, 0, 1, 1);
                return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
            }""",
            [where, name],
        )
        for where, name in ((selector, "color"), (".talk", "backgroundColor"))
    )
    lighter, darker = sorted((luminance(text), luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: list[int]) -> float:
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
