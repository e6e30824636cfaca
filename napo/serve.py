"""Serve the explorer with Voila: `python -m napo.serve` (or `make explore`).

The page holds the explorer alone, on the real margins of a run if there are any. It is served on this machine only,
and only to those who have the token that the printed address carries.
Exit status: that of Voila; 2 bad input (one line says which).
"""

import argparse
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from napo import artifacts
from napo.artifacts import BadInput

HOST = "127.0.0.1"
PICTURES = ("explorer.png", "loss_family.png")  # published; the first that there is stands in while the page loads
INTRODUCTION = """# NaPO: turn the knobs

Sliders by mouse or arrow keys, fields by typing. {rows} The text in full: notebooks 00 and 02.

<details><summary>Still loading? This is what will come.</summary>

![What the explorer shows]({picture})

</details>
"""


def notebook(noise_tables, picture):
    """The page as a notebook: an introduction and one cell.

    noise_tables  paths of noise.parquet, may be empty;  picture: file name of the published picture
    """
    import nbformat

    rows = "The rows are the toy's own pairs, with known swaps."
    code = ["from napo import explore", "", "explore.Explorer()"]
    if noise_tables:
        rows = "The rows are real: margins measured in notebook 02; the swap rate is the toy's alone."
        tables = ", ".join(repr(str(path)) for path in noise_tables)
        code = [
            "import pandas as pd",
            "",
            "from napo import explore, views",
            "",
            f"table = pd.concat([pd.read_parquet(path) for path in [{tables}]])",
            "explore.Explorer(views.rows_of(table))",
        ]
    cells = [
        nbformat.v4.new_markdown_cell(INTRODUCTION.format(rows=rows, picture=picture)),
        nbformat.v4.new_code_cell("\n".join(code)),
    ]
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
    raise BadInput(f"no free port from {first} on: end another server, or give --port")


def write_page(folder, profile, runs_dir="runs"):
    """The page and its picture in `folder`. Returns the notebook's path."""
    import nbformat

    found = sorted(artifacts.run_folder(profile, runs_dir=runs_dir).glob("base-*/noise.parquet"))
    page, study = Path(folder) / "explorer.ipynb", artifacts.repository_root() / "figures" / "study"
    picture = next((name for name in PICTURES if (study / name).is_file()), PICTURES[-1])
    nbformat.write(notebook(found, picture), page)
    if (study / picture).is_file():  # not where the package was installed without the repository
        shutil.copyfile(study / picture, page.with_name(picture))
    return page


def serve(folder, profile, runs_dir, port):
    """Run Voila on the page until it ends. Returns its exit status."""
    page, token = write_page(folder, profile, runs_dir), secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "voila", str(page), "--no-browser", "--token", f"--port={port}"]
    command += [f"--Voila.ip={HOST}", "--Voila.port_retries=0", "--Voila.log_level=WARN"]
    print(f"the explorer: http://{HOST}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
    # the token in the environment: other users of the machine can read command lines
    environment = os.environ | {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("MPLBACKEND", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C, and Voila too
    voila = subprocess.Popen(command, cwd=artifacts.repository_root(), env=environment)
    try:
        return voila.wait()
    except KeyboardInterrupt:
        return 0
    finally:  # Voila ends its kernels
        voila.terminate()
        voila.wait()


def main(arguments=None):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m napo.serve", description="Serve the explorer on this machine.")
    parser.add_argument("--profile", default="desk", help="whose margins to show, if it has been run (default: desk)")
    parser.add_argument("--runs-dir", default="runs", help="default: runs")
    parser.add_argument("--port", type=int, help="default: 8866, or the next free one")
    asked = parser.parse_args(arguments)
    try:
        if importlib.util.find_spec("voila") is None:
            raise BadInput("voila is missing: pip install 'napo[notebooks]'")
        port = free_port() if asked.port is None else asked.port
        with tempfile.TemporaryDirectory(prefix="napo-explorer-") as folder:
            return serve(folder, asked.profile, asked.runs_dir, port)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
