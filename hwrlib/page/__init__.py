"""From the picture of a page to its lines: its ink (``ink``) and the lines in it (``lines``), chapter 7."""
