"""Serve the explorer alone with Voila, on the margins of a run if there is one: `napo serve` (or `make explore`).

The page is served on this machine only, and only to whoever has the token in the printed address.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
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

table = pd.concat([pd.read_parquet(path) for path in {tables}])
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


def free_port(first=8866):
    """The first port from `first` on that nothing on this machine listens on. Raises BadInput if 50 are taken."""
    for port in range(first, min(first + 50, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
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


def serve(folder, profile, runs_dir, port):
    """Run Voila on the page until it ends. Returns its exit status."""
    page, token = write_page(folder, profile, runs_dir), secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "voila", str(page), "--no-browser", "--token", f"--port={port}"]
    command += [f"--Voila.ip={HOST}", "--Voila.port_retries=0", "--Voila.log_level=WARN"]
    print(f"the explorer: http://{HOST}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
    # the token goes into the environment: other users of the machine can read command lines
    environment = os.environ | {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("MPLBACKEND", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C, and Voila too
    voila = subprocess.Popen(command, cwd=repository_root(), env=environment)
    try:
        return voila.wait()
    except KeyboardInterrupt:
        return 0
    finally:  # ending Voila ends its kernels
        voila.terminate()
        voila.wait()
