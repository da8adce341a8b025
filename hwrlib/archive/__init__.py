"""Archives: pages from images, TIFF and PDF, files that other tools read, many pages on many machines (chapter 9)."""

FORMATS = {  # what can be written, and how the name of its file ends
    "text": ".txt",
    "json": ".json",
    "alto": ".alto.xml",
    "page": ".page.xml",
    "hocr": ".hocr.html",
    "pdf": ".pdf",
}
