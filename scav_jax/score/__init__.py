"""How well a sound fits a picture, and where it belongs: `scav score FILE... --model RUN`."""
