"""The app: a drawing pad, pictures and corrections in a notebook or alone in the browser (chapter 7)."""
