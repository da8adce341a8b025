"""The app with its sample page, in charts/07_read_your_handwriting/app.png and in chapter 7's app cell (both show the same picture)."""
import nbformat, base64, io, json, shutil, socket, subprocess, sys, tempfile, time, os
from pathlib import Path
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
root, port, place = Path("/work/main"), 8917, tempfile.mkdtemp()
server = subprocess.Popen([sys.executable, "-m", "hwrlib", "app", "--no-browser", f"--port={port}", f"--lines={place}/lines"], cwd=place, env=os.environ | {"PYTHONPATH": str(root), "IPYTHONDIR": place})
while True:
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", port)) == 0: break
    time.sleep(0.5)
options = webdriver.ChromeOptions(); options.binary_location = shutil.which("chromium"); options.page_load_strategy = "none"
for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={place}/profile"): options.add_argument(f"--{flag}")
driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1380, "height": 802, "deviceScaleFactor": 0.8, "mobile": False})
driver.get(f"http://127.0.0.1:{port}")
def until(what):
    for _ in range(600):
        try:
            if found := what(): return found
        except Exception: pass
        time.sleep(0.5)
    raise SystemExit("waited in vain")
until(lambda: "Write on the pad" in driver.find_element(By.CSS_SELECTOR, ".hwr-status").text)
until(lambda: driver.find_element(By.XPATH, "//button[text()='Sample page']")).click()
until(lambda: driver.find_element(By.CSS_SELECTOR, ".hwr-status").text.startswith("Read the sample page"))
driver.find_elements(By.CSS_SELECTOR, ".hwr-text")[3].click(); driver.execute_script("document.activeElement.blur()"); time.sleep(1)
picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
driver.quit(); server.terminate()
picture.save(out := io.BytesIO(), "PNG", optimize=True)
print(picture.size, len(out.getvalue()))
(root / "charts/07_read_your_handwriting/app.png").write_bytes(out.getvalue())
path = root / "notebooks/07_read_your_handwriting.ipynb"; nb = json.loads(path.read_text())
(output,) = next(cell["outputs"] for cell in nb["cells"] if "poster=" in "".join(cell["source"]))
output["data"]["image/png"] = base64.b64encode(out.getvalue()).decode()
nbformat.write(nbformat.from_dict(nb), path)
print(path.stat().st_size)
