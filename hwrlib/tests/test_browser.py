"""Chapter 7 in a real browser, as a person uses it: JupyterLab and Voila, driven in a headless Chromium.

It needs Chromium with its driver and what `pip install .[browser]` brings; where one is missing it says so and skips.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwrlib.data import read_metadata

NEEDED = [name for name in ("jupyterlab", "voila", "selenium") if importlib.util.find_spec(name) is None]
NEEDED += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"the browser test needs {', '.join(NEEDED)}")
if not NEEDED:
    from selenium import webdriver
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTER = "07_read_your_handwriting.ipynb"
PATIENCE = 300  # seconds, for a machine that does much else
FLAGS = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "window-size=1200,1000"]


def arc(x, y, width, height, begin, end):
    angles = np.radians(np.linspace(begin, end, 12))
    return list(zip(x + width * np.cos(angles), y + height * np.sin(angles), strict=True))


HELLO = [
    [(20, 30), (20, 70), (20, 120)],
    [(20, 95), *arc(38, 90, 17, 17, 180, 360), (55, 120)],
    [(70, 96), (104, 96), *arc(87, 97, 17, 22, 0, -300)],
    [(126, 30), (126, 70), (126, 120)],
    [(150, 30), (150, 70), (150, 120)],
    arc(188, 97, 19, 22, -90, 270),
]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The folder that kept lines go to."""
    return tmp_path_factory.mktemp("kept") / "lines"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the repository, so that what JupyterLab saves by itself does not change a chapter."""
    place = tmp_path_factory.mktemp("place")
    (place / "hwrlib").symlink_to(ROOT / "hwrlib", target_is_directory=True)
    (place / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / CHAPTER, place / "notebooks")
    (place / "jupyter_config" / "labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # it asks, over the page
    (place / "jupyter_config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    return place


@pytest.fixture(scope="module")
def serve(place, lines):
    """A function that starts a Jupyter server and returns its address; all are stopped at the end."""
    started = []

    def start(*command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {
            f"{name}_DIR": str(place / name.lower()) for name in ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME")
        }
        own |= {
            "HWR_DATA": "sample",
            "HWR_LINES": str(lines),
            "HWR_CHARTS": str(place),
            "IPYTHONDIR": str(place / "ip"),
        }
        log = place / f"{command[0]}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--no-browser", f"--port={port}"],
                cwd=place, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(process)
        return f"http://127.0.0.1:{port}", process, log

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


@pytest.fixture
def driver(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.page_load_strategy = "none"  # Voila's page is loaded only when the whole chapter has run
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.save_screenshot(str(tmp_path / "end.png"))
    driver.quit()


def wait(driver, condition, what):
    renewed = [StaleElementReferenceException]  # a widget drew itself again between the finding and the looking
    return WebDriverWait(driver, PATIENCE, 0.5, renewed).until(condition, f"waited {PATIENCE} s for {what}")


def find(driver, selector):
    """The element, once it can be seen."""
    by = By.XPATH if selector.startswith("//") else By.CSS_SELECTOR

    def shown(_):
        return next((element for element in driver.find_elements(by, selector) if element.is_displayed()), None)

    return wait(driver, shown, selector)


def wait_until_up(address, process, log):
    def answers(_):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/nothing-here", timeout=5)
        except urllib.error.HTTPError:  # not found: that is an answer
            return True
        except OSError:
            return False
        return True

    wait(None, answers, f"{address} to answer")


def kernel_is_idle(address):
    try:
        with urllib.request.urlopen(f"{address}/api/kernels", timeout=30) as reply:
            return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in json.load(reply))
    except urllib.error.HTTPError:  # the server answers 500 while a kernel starts
        return False


def button(driver, label):
    return find(driver, f"//button[normalize-space()='{label}']")


def write(driver, strokes):
    """Write on the pad with the mouse, and wait until it has been read."""
    pad = find(driver, ".hwr-pad svg")
    driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", pad)
    size = pad.size
    actions = ActionChains(driver, duration=10)
    for stroke in strokes:
        for k, (x, y) in enumerate(stroke):
            actions.move_to_element_with_offset(pad, round(x - size["width"] / 2), round(y - size["height"] / 2))
            if k == 0:
                actions.click_and_hold()
        actions.release()
    actions.perform()
    wait_for_note(driver, "Read your writing in")


def wait_for_note(driver, words):
    wait(driver, lambda _: any(words in e.text for e in driver.find_elements(By.CSS_SELECTOR, "[role=status]")), words)


def read_text(driver):
    shown = find(driver, ".hwr-text")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", shown)
    return shown.text


def upload(driver, path):
    """Choose a file as a person does; the dialog, which no driver can reach, is left out."""
    driver.execute_script(
        "HTMLInputElement.prototype.click = function () { document.body.append(this); this.style.display = 'block' }"
    )
    find(driver, "//button[contains(., 'Upload an image')]").click()
    wait(driver, lambda _: driver.find_elements(By.CSS_SELECTOR, "body > input[type=file]"), "the file input")
    driver.find_element(By.CSS_SELECTOR, "body > input[type=file]").send_keys(str(path))


def test_the_chapter_in_jupyterlab(driver, serve, tmp_path, lines):
    address, *server = serve("jupyterlab", "--allow-root", "--IdentityProvider.token=")
    wait_until_up(address, *server)
    driver.get(f"{address}/lab/tree/notebooks/{CHAPTER}")
    find(driver, ".jp-Notebook .jp-CodeCell")
    wait(None, lambda _: kernel_is_idle(address), "the kernel to be idle: what is run before gets lost")
    find(driver, "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']").click()
    find(driver, "//li[@data-command='runmenu:run-all']").click()
    wait_for_note(driver, "Read line 1 of the sample")

    write(driver, HELLO)
    assert read_text(driver).strip()
    driver.save_screenshot(str(tmp_path / "hello.png"))
    assert find(driver, ".hwr-bar span").text == "6 strokes"
    find(driver, ".hwr-pad svg").send_keys(Keys.CONTROL, "z")
    assert find(driver, ".hwr-bar span").text == "5 strokes"
    find(driver, ".hwr-pad svg").send_keys(Keys.ESCAPE)
    wait(driver, lambda _: not driver.find_elements(By.CSS_SELECTOR, ".hwr-text"), "an empty result")
    assert find(driver, ".hwr-bar span").text == "Nothing written yet"

    (tmp_path / "broken.png").write_bytes(b"no image")
    upload(driver, tmp_path / "broken.png")
    assert "broken.png: this is no image" in find(driver, ".hwr-error").text
    Image.open(ROOT / "hwrlib" / "samples" / "page.png").crop((60, 60, 1020, 140)).save(tmp_path / "line.png")
    upload(driver, tmp_path / "line.png")
    wait_for_note(driver, "Read line.png in")
    assert read_text(driver).strip()

    field = find(driver, ".widget-text input")
    field.clear()
    field.send_keys('The night, "corrected"')
    button(driver, "Keep").click()
    wait_for_note(driver, "Kept as")
    assert [text for _, text in read_metadata(lines / "metadata.jsonl")] == ['The night, "corrected"']


def test_the_same_drawing_in_voila(driver, serve, tmp_path):
    address, *server = serve("voila", f"notebooks/{CHAPTER}")
    wait_until_up(address, *server)
    driver.get(address)
    wait_for_note(driver, "Read line 1 of the sample")
    write(driver, HELLO)
    assert read_text(driver).strip()
    driver.save_screenshot(str(tmp_path / "hello.png"))
