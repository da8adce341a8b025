"""Archives: pages from images, TIFF and PDF, files that other tools read, many pages on many machines (chapter 9)."""

FORMATS = {"text": ".txt", "json": ".json", "alto": ".alto.xml"}  # what can be written, and how its file's name ends
FORMATS |= {"page": ".page.xml", "hocr": ".hocr.html", "pdf": ".pdf"}
