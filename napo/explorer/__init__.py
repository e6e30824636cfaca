"""The loss under sliders: `views.py` computes, `panels.py` draws, `widgets.py` reacts, `serve.py` makes a page of it.

`few_kernels.py` limits what a page's visitors take of the machine.
"""
