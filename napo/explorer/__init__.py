"""The loss under sliders: `views.py` computes, `panels.py` draws, `widgets.py` reacts, `serve.py` makes a page."""
