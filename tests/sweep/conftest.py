"""A sweep that takes seconds."""

import pytest
import yaml


@pytest.fixture
def sweep_file(tiny_lm_dir, text, tmp_path):
    """Writes a sweep of four SAEs, which takes a second; `changes` replace its keys."""

    def write(**changes):
        flags = f"--model={tiny_lm_dir} --data={text} --steps=24 --batch-size=32 --n-ctxs=8"
        flags += " --ctx-len=32 --dict-size=32 --eval-tokens=200 --eval-documents=4"
        flags += " --log-steps=6 --save-every=6"
        content = {
            "name": "tiny",
            "method": "grid",
            "parameters": {"k": {"values": [2, 4]}, "beta": {"values": [0.0, 0.5]}},
            "command": ["vsae", "train", *flags.split(), "${args}"],
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write
