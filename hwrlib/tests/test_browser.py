"""The app in a headless Chromium, as a person uses it: alone and in chapter 7; skipped where something is missing."""

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

from hwrlib.files import read_metadata

NEEDED = [name for name in ("jupyterlab", "voila", "selenium") if importlib.util.find_spec(name) is None]
NEEDED += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"the browser test needs {', '.join(NEEDED)}")
if not NEEDED:
    from selenium import webdriver
    from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTER = "07_read_your_handwriting.ipynb"
PATIENCE = 300  # seconds, for a machine that does much else
FLAGS = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "window-size=1200,1000"]
HELLO = [
    [(20, 30), (20, 120)],
    [(20, 95), (38, 75), (55, 90), (55, 120)],
    [(70, 96), (104, 96), (87, 75), (70, 97), (87, 119), (104, 110)],
    [(126, 30), (126, 120)],
    [(150, 30), (150, 120)],
    [(188, 75), (207, 97), (188, 119), (169, 97), (188, 75)],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the repository, so that what JupyterLab saves by itself does not change a chapter."""
    place = tmp_path_factory.mktemp("place")
    for name in ("hwrlib", "charts"):
        (place / name).symlink_to(ROOT / name, target_is_directory=True)
    (place / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / CHAPTER, place / "notebooks")
    (place / "notebooks" / "recorded").symlink_to(ROOT / "notebooks" / "recorded", target_is_directory=True)
    (place / "jupyter_config" / "labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # it asks, over the page
    (place / "jupyter_config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    return place


@pytest.fixture(scope="module")
def serve(place):
    """A function that starts a server, waits for it and returns its address; all are stopped at the end."""
    started = []

    def start(*command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {f"JUPYTER_{name}_DIR": str(place / f"jupyter_{name}".lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        own |= {"HWR_DATA": "sample", "HWR_LINES": str(place / "lines"), "HWR_CHARTS": str(place / "runs")}
        command = [sys.executable, "-m", *command, "--no-browser", f"--port={port}"]
        process = subprocess.Popen(command, cwd=place, env=os.environ | own | {"IPYTHONDIR": str(place / "ip")})
        started.append(process)

        def answers(_):
            assert process.poll() is None
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait(None, answers, "an answer of the server")
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def alone(serve):
    """The address of the app alone."""
    return serve("hwrlib", "app", "--lines=lines")


@pytest.fixture
def browse(tmp_path):
    """A function that opens a page as a new visitor, with a profile of its own; a phone is 390 px wide."""
    drivers = []

    def browse(address, phone=False):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"user-data-dir={tmp_path / f'profile {len(drivers)}'}"):
            options.add_argument(f"--{flag}")
        metrics = {"width": 390, "height": 844, "pixelRatio": 2, "touch": True}
        if phone:
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.page_load_strategy = "none"  # Voila's page is loaded only when the whole notebook has run
        driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
        drivers.append(driver)
        if not phone:
            metrics = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address)
        return driver

    yield browse
    for k, driver in enumerate(drivers):
        driver.save_screenshot(str(tmp_path / f"end {k}.png"))
        driver.quit()


def wait(driver, condition, what):
    # A widget drew itself again, or moved away, between the finding and the looking.
    renewed = [StaleElementReferenceException, ElementNotInteractableException]
    return WebDriverWait(driver, PATIENCE, 0.2, renewed).until(condition, f"waited {PATIENCE} s for {what}")


def find(driver, selector):
    """The element, once it can be seen."""
    by = By.XPATH if selector.startswith("//") else By.CSS_SELECTOR

    def shown(_):
        return next((element for element in driver.find_elements(by, selector) if element.is_displayed()), None)

    return wait(driver, shown, selector)


def kernel_is_idle(address):
    try:
        with urllib.request.urlopen(f"{address}/api/kernels", timeout=30) as reply:
            return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in json.load(reply))
    except urllib.error.HTTPError:  # the server answers 500 while a kernel starts
        return False


def press(driver, label):
    """Click the button with these words, as soon as it can be clicked."""

    def clicked(_):
        find(driver, f"//button[normalize-space()='{label}'][not(@disabled)]").click()
        return True

    wait(driver, clicked, f"the button {label!r}")


def wait_for(driver, selector, words):
    """Wait until one of these elements begins with these words."""
    chosen = (By.CSS_SELECTOR, selector)
    wait(driver, lambda _: any(e.text.startswith(words) for e in driver.find_elements(*chosen)), f"{words!r}")


def scroll_up_to(driver, selector):
    """Scroll from the end of a notebook, where running it leads, to an element: JupyterLab draws what is in view."""

    def seen(_):
        found = [element for element in driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]
        script = "arguments[0].scrollIntoView({block: 'start'})" if found else "arguments[1].scrollBy(0, -300)"
        driver.execute_script(script, *found[:1] or [None], find(driver, ".jp-Notebook .jp-WindowedPanel-outer"))
        return found

    wait(driver, seen, selector)


def write(driver, strokes, down=0):
    """Write on the pad with the mouse."""
    pad = find(driver, ".hwr-pad svg")
    size = pad.size
    actions = ActionChains(driver, duration=10)
    for stroke in strokes:
        for k, (x, y) in enumerate(stroke):
            actions.move_to_element_with_offset(pad, round(x - size["width"] / 2), round(y + down - size["height"] / 2))
            if k == 0:
                actions.click_and_hold()
        actions.release()
    actions.perform()


def texts(driver):
    return [element.text for element in driver.find_elements(By.CSS_SELECTOR, ".hwr-text")]


def upload(driver, path):
    """Choose a file as a person does; the dialog, which no driver can reach, is left out."""
    driver.find_element(By.CSS_SELECTOR, ".hwr-pictures input[type=file]").send_keys(str(path))


def correct(driver, text, *keys):
    field = find(driver, ".hwr-selected input[type=text]")
    field.clear()
    field.send_keys(text, *keys)


def bottom(driver, selector):
    return driver.execute_script("return arguments[0].getBoundingClientRect().bottom", find(driver, selector))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo of 20 megapixels of three lines, stored on its side, noisy: it has more bytes than a server takes."""
    page = Image.open(ROOT / "hwrlib" / "samples" / "page.png").convert("L").crop((0, 0, 1200, 310))
    grey = np.asarray(page.resize((8400, 2170)).rotate(90, expand=True)).astype(np.int16)
    noisy = (grey + np.random.default_rng(0).integers(-30, 30, grey.shape, dtype=np.int16)).clip(0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(noisy.astype(np.uint8)).convert("RGB").save(path, quality=98, exif=exif)
    assert path.stat().st_size > 10_000_000
    return path


def test_writing_is_read_corrected_kept_and_taken_back_and_visitors_are_apart(alone, browse, place):
    driver, other = browse(alone), browse(alone)
    for one in (driver, other):
        wait_for(one, ".hwr-status", "Write on the pad")
        write(one, HELLO)
        wait_for(one, ".hwr-status", "Read your writing.")
    assert bottom(driver, ".hwr-edit") < 800
    fetched = "return performance.getEntriesByType('resource').map(e => new URL(e.name).host).filter(host => host)"
    assert set(driver.execute_script(fetched)) == {alone.removeprefix("http://")}  # and nothing from elsewhere

    find(driver, ".hwr-pad svg").send_keys(Keys.CONTROL, "z")
    wait_for(driver, ".hwr-pad [role=status]", "5 strokes")
    find(driver, ".hwr-pad svg").send_keys(Keys.CONTROL, "y")
    wait_for(driver, ".hwr-pad [role=status]", "6 strokes")
    find(driver, ".hwr-pad svg").send_keys(Keys.ESCAPE)
    wait_for(driver, ".hwr-status", "Write on the pad")
    assert texts(driver) == []
    press(driver, "Undo")
    wait_for(driver, ".hwr-status", "Read your writing.")
    correct(driver, "corrected")
    press(driver, "New line")
    write(driver, HELLO, down=170)
    wait(driver, lambda _: len(texts(driver)) == 2, "two lines")
    assert texts(driver)[0] == "corrected"  # though both were read

    driver.find_elements(By.CSS_SELECTOR, ".hwr-text")[0].click()
    taken = find(driver, ".hwr-selected .hwr-other").text
    find(driver, ".hwr-selected .hwr-other").click()
    assert texts(driver)[0] == taken
    correct(driver, 'hello, "<b>you</b>"', Keys.ENTER)
    wait_for(driver, ".hwr-count", "1 line kept")
    assert not driver.find_elements(By.CSS_SELECTOR, ".hwr-kept .hwr-other:enabled")  # taken, it would not be kept
    press(driver, "Keep all")
    wait_for(driver, ".hwr-count", "2 lines kept")
    press(driver, "Undo the last")
    wait_for(driver, ".hwr-count", "1 line kept")

    assert find(other, ".hwr-count").text == "0 lines kept"
    (folder,) = (place / "lines").iterdir()
    assert [text for _, text in read_metadata(folder / "metadata.jsonl")] == ['hello, "<b>you</b>"']
    driver.get(alone)
    wait_for(driver, ".hwr-status", "Write on the pad")
    write(driver, HELLO)
    wait_for(driver, ".hwr-count", "1 line kept")


def test_a_photo_on_a_phone_is_shrunk_turned_read_line_by_line_and_stopped(alone, browse, photo, tmp_path):
    driver = browse(alone, phone=True)
    wait_for(driver, ".hwr-status", "Write on the pad")
    small = "return [...document.querySelectorAll('.hwr-app :is(button, select)')].filter(e => e.offsetHeight % 44 > 0)"
    assert driver.execute_script(f"{small}.map(e => e.textContent + e.offsetHeight)") == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    write(driver, HELLO)
    wait_for(driver, ".hwr-status", "Read your writing.")
    assert bottom(driver, ".hwr-text") < 844

    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4")
    upload(driver, tmp_path / "letter.pdf")
    wait_for(driver, ".hwr-error", "letter.pdf: this is no image that can be read")
    assert texts(driver) == []
    upload(driver, photo)
    wait(driver, lambda _: len(driver.find_elements(By.CSS_SELECTOR, ".hwr-picture rect")) == 3, "three boxes")
    assert not [e.text for e in driver.find_elements(By.CSS_SELECTOR, ".hwr-error") if e.text]
    wait_for(driver, ".hwr-status", "Read photo.jpg.")
    assert len(texts(driver)) == 3
    assert driver.execute_script("const e = document.querySelector('.hwr-picture img'); return e.width > 2 * e.height")
    press(driver, "Rotate")  # the lines stand on their side now
    wait_for(driver, ".hwr-error", "photo.jpg: no writing was found")
    upload(driver, ROOT / "hwrlib" / "samples" / "page.png")  # long enough to be stopped
    wait_for(driver, ".hwr-status", "Reading page.png")
    press(driver, "Stop")
    wait_for(driver, ".hwr-status", "Stopped: ")
    find(driver, ".hwr-camera")
    press(driver, "Back to the pad")
    wait_for(driver, ".hwr-status", "Read your writing.")


def test_the_chapter_in_jupyterlab(browse, serve, place, tmp_path):
    address = serve("jupyterlab", "--allow-root", "--IdentityProvider.token=")
    driver = browse(f"{address}/lab/tree/notebooks/{CHAPTER}")
    find(driver, ".jp-Notebook .jp-CodeCell")
    wait(None, lambda _: kernel_is_idle(address), "the kernel to be idle: what is run before gets lost")
    find(driver, "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']").click()
    find(driver, "//li[@data-command='runmenu:run-all']").click()
    wait(None, lambda _: not kernel_is_idle(address), "the chapter to begin")
    wait(None, lambda _: kernel_is_idle(address), "the chapter to end")
    scroll_up_to(driver, ".hwr-pictures")
    wait_for(driver, ".hwr-status", "Write on the pad")
    write(driver, HELLO)
    wait_for(driver, ".hwr-status", "Read your writing.")
    Image.open(ROOT / "hwrlib" / "samples" / "page.png").crop((60, 60, 1020, 140)).save(tmp_path / "line.png")
    upload(driver, tmp_path / "line.png")
    wait_for(driver, ".hwr-status", "Read line.png.")
    correct(driver, 'The night, "corrected"', Keys.ENTER)
    wait_for(driver, ".hwr-count", "1 line kept in ")
    assert [text for _, text in read_metadata(place / "lines" / "metadata.jsonl")] == ['The night, "corrected"']
