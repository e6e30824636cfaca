"""Serve the explorer alone with Voila, on the margins of a run if there is one: `napo serve` (or `make explore`).

The page is served on this machine only, and only to whoever has the token in the printed address.
"""

import os
import secrets
import shutil
import signal
import socket
from pathlib import Path

from napo.workshop import artifacts
from napo.workshop.files import BadInput, repository_root

HOST = "127.0.0.1"
PICTURES = ("explorer.png", "loss_family.png")  # published; the page shows the first that exists while it loads
INTRODUCTION = """# NaPO: turn the knobs

Move the sliders by mouse or arrow keys, or type numbers. {rows} Notebooks 00 and 02 explain it in full.

<details><summary>Still loading? This is what you will see.</summary>

![What the explorer shows]({picture})

</details>
"""
TOY_CELL = "from napo.explorer import widgets\n\nwidgets.Explorer()"
ROWS_CELL = """import pandas as pd

from napo.explorer import views, widgets
from napo.workshop.files import read_parquet

table = pd.concat([read_parquet(path, "02") for path in {tables}])
widgets.Explorer(views.rows_of(table))"""


def notebook(noise_tables, picture):
    """The page as a notebook. noise_tables: paths of noise.parquet, may be empty; picture: file name of the picture."""
    import nbformat

    rows, code = "The rows are the toy's own pairs, with known swaps.", TOY_CELL
    if noise_tables:
        rows = "The rows are real: margins measured in notebook 02. The swap rate concerns the toy alone."
        code = ROWS_CELL.format(tables=[str(path) for path in noise_tables])
    introduction = INTRODUCTION.format(rows=rows, picture=picture)
    cells = [nbformat.v4.new_markdown_cell(introduction), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def free_port(asked=None, first=8866):
    """The asked port, or the first from `first` on that can be used. Raises BadInput if it, or 50 of them, cannot."""
    if asked is not None and not 1 <= asked <= 65535:
        raise BadInput(f"port {asked}: give a number from 1 to 65535")
    for port in range(first, min(first + 50, 65536)) if asked is None else (asked,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError as error:
                reason = error.strerror
    if asked is not None:
        raise BadInput(f"port {asked} cannot be used ({reason}): give another --port, or none")
    raise BadInput(f"no free port from {first} on: end another server or give --port")


def write_page(folder, profile, runs_dir="runs"):
    """Write the page and its picture into `folder`. Returns the notebook's path."""
    import nbformat

    found = sorted(artifacts.run_folder(profile, runs_dir=runs_dir).glob("base-*/noise.parquet"))
    page, study = Path(folder) / "explorer.ipynb", repository_root() / "figures" / "study"
    picture = next((name for name in PICTURES if (study / name).is_file()), PICTURES[-1])
    nbformat.write(notebook(found, picture), page)
    if (study / picture).is_file():  # missing if the package was installed without the repository
        shutil.copyfile(study / picture, page.with_name(picture))
    return page


def serve(page, port):
    """Run Voila on the page until a signal ends it, with its kernels."""
    from traitlets.config import Config
    from voila.app import Voila

    from napo.explorer.few_kernels import FewKernels

    token = secrets.token_urlsafe(24)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this Python
    os.environ.pop("MPLBACKEND", None)
    server = {"ip": HOST, "port": port, "port_retries": 0, "open_browser": False, "token": token, "log_level": "ERROR"}
    server |= {"connection_dir_root": str(page.parent), "config_file_paths": []}  # no settings of this account
    server["tornado_settings"] = {"allow_remote_access": False}  # only Host: localhost, 127.0.0.1
    pages = {"multi_kernel_manager_class": FewKernels}
    voila = Voila(config=Config({"Voila": server, "VoilaConfiguration": pages}))
    voila.initialize([str(page)])  # also handles SIGTERM
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"the explorer: http://{HOST}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
    voila.start()
