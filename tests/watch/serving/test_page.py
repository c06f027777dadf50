"""The live page in a browser: what a person sees, at a desk and on a phone, by day and by night."""

import time

import pytest
from alarms import START, make_event, make_status
from browser import browsing
from test_server import TOKEN, Running

from oddpatch.watch.events import Verdict

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("ODDPATCH_WATCH_TOKEN", raising=False)
    running = Running(source="rtsp://camera/<img src=x onerror=alert(1)>")
    verdicts = [Verdict.ACCEPT, Verdict.WARN, Verdict.FAILED, Verdict.REJECT]
    for number, verdict in enumerate(verdicts):
        running.server.put(make_event(number, verdict))
    yield running
    running.server.close(5)


def text(browser, name):
    return browser.see(f"document.getElementById('{name}').innerText")


LOADED = "[...document.images].filter(i => i.src && i.complete && i.naturalWidth > 0).length"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (320, True)])
def test_it_shows_frames_scores_and_counts_at_any_width(browser, running, width, dark, tmp_path):
    browser.complaints.clear()
    browser.open(running.url, width, dark=dark)
    browser.wait(f"{LOADED} == 3")  # the newest, and two of those not accepted: one could not be read
    assert text(browser, "source") == "rtsp://camera/<img src=x onerror=alert(1)>"
    assert text(browser, "state") == "connected"
    assert text(browser, "verdict") == "reject"
    assert "frame 3" in text(browser, "caption")
    assert "score 3" in text(browser, "caption")
    tiles = browser.see("[...document.querySelectorAll('.tile')].map(t => t.innerText.split('\\n').join(' '))")
    assert tiles == [
        "7 accepted", "2 warned of", "1 rejected", "0 failed", "9.5/s frames judged", "60 ms delay, 95 %", "3 dropped",
        "4 reconnects",
    ]  # fmt: skip
    assert text(browser, "limits").split("\n") == ["warn above 3", "reject above 5"]
    assert browser.see("document.querySelectorAll('#chart .limit').length") == 2
    assert browser.see("document.querySelector('#chart .trace').points.length") == 3
    assert browser.see("[...document.querySelectorAll('#chart circle')].map(c => c.getAttribute('class'))") == [
        "warn", "reject",
    ]  # fmt: skip
    assert "5 sent, 2 waiting, 1 given up, 0 lost" in text(browser, "sinks")
    alarms = browser.see("[...document.querySelectorAll('#alarms li')].map(l => l.innerText)")
    assert [word.split()[0].lower() for word in (alarms[0], alarms[2])] == ["reject", "warn"]
    assert "broken <b>frame</b>" in alarms[1]
    assert browser.see("document.documentElement.scrollWidth <= innerWidth")
    background = browser.see("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    assert browser.see("document.getElementById('trouble').hidden")
    browser.shoot(tmp_path / "page.png")
    assert browser.complaints == []


def test_it_follows_the_watch(browser, running):
    browser.open(running.url)
    browser.wait(f"{LOADED} == 3")
    running.status = make_status(connection="stalled", error="no picture for 5 s", last_frame=time.time() - 70)
    running.server.put(make_event(9, Verdict.WARN))
    browser.wait("document.getElementById('state').innerText == 'stalled'")
    browser.wait("document.getElementById('verdict').innerText == 'warn'")
    trouble = text(browser, "trouble")
    assert trouble.startswith("no picture for 5 s · last frame 7")
    assert browser.see("document.title").startswith("! ")
    browser.wait("document.querySelectorAll('#alarms li').length == 4")


def test_it_says_when_the_watch_does_not_answer(browser, running):
    browser.open(running.url)
    browser.wait(f"{LOADED} == 3")
    running.server.close(5)
    browser.wait("document.getElementById('state').innerText == 'no contact'")
    assert "does not answer" in text(browser, "trouble")


def test_a_frame_is_shown_large(browser, running):
    browser.open(running.url)
    browser.wait("document.querySelectorAll('#alarms button').length == 3")
    browser.see("document.querySelector('#alarms button').click()")
    assert browser.see("document.getElementById('large').open")
    assert "e-00003" in text(browser, "told")
    browser.see("document.querySelector('#large button').click()")
    assert not browser.see("document.getElementById('large').open")


def test_a_token_is_asked_for_and_leaves_the_address(browser, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("ODDPATCH_WATCH_TOKEN", TOKEN)
    running = Running()
    try:
        running.server.put(make_event(1))
        browser.open(running.url)
        browser.wait("document.querySelector('input[name=token]') !== null")
        browser.wait("getComputedStyle(document.body).display == 'grid'")  # the style sheet is there
        browser.see(f"document.querySelector('input').value = '{TOKEN}'; document.forms[0].submit()")
        browser.wait(f"document.images.length && {LOADED} == 2")
        assert browser.see("location.href") == running.url
        assert browser.see("document.cookie") == ""  # scripts do not see it
        browser.open(running.url)  # again, by the cookie alone
        browser.wait(f"document.images.length && {LOADED} == 2")
    finally:
        running.server.close(5)


def test_scores_far_beyond_the_threshold_do_not_flatten_the_others(browser, running):
    for number, score in enumerate([1, 2, 4, 3, 2, 1000], start=10):
        running.server.put(make_event(number, Verdict.REJECT, score=float(score)))
    browser.open(running.url)
    browser.wait("document.querySelectorAll('#chart circle').length >= 6")
    limits = browser.see("[...document.querySelectorAll('#chart .limit')].map(l => +l.getAttribute('y1'))")
    height = browser.see("document.getElementById('chart').clientHeight")
    assert limits[0] - limits[1] > height / 20
    assert "≥20" in browser.see("document.getElementById('chart').textContent")
    assert START > 0
