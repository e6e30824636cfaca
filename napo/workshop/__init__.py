"""What every room stands on: whole-file writes, artefacts and their keys, parallel cells, progress, the hub."""
