"""Archives: pages from images, TIFF and PDF, files that other tools read, many pages on many machines (chapter 9)."""
