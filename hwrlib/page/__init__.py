"""From the picture of a page to its lines: maps, baselines, ink, lines cut out, and places on the page (chapter 7)."""
