"""A pre-trained language model helps to choose among the texts that the beam found for a line (chapter 5)."""

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional, utils

from hwrlib.beam import Candidate, PrefixBeam
from hwrlib.cpu import PRECISIONS, best_precision
from hwrlib.ctc import Reading
from hwrlib.language import CharNgram

TUNED = 0.5, 0.5, 0.5  # on every third of 467 IAM validation lines
MODEL = "HuggingFaceTB/SmolLM2-135M"  # Allal et al., 2025
LINES_ABOVE = 3


def undo_spacing(text: str) -> str:
    """A text as it is printed elsewhere: IAM has a space before most marks, and on both sides of quotation marks.

    >>> undo_spacing('" Well , " he said ( once ) .')
    '"Well," he said (once).'
    """
    text = re.sub(r" +(?=[.,;:!?)])", "", text.replace("( ", "("))
    text = re.sub(r'" ([^"]+) "', r'"\1"', text)
    return re.sub(r' "(?=[.,;:!?)]|$)', '"', re.sub(r'^" ', '"', text))  # whose other is on another line


class CausalModel:
    """A causal language model of ``transformers``: how probable is a text after what stands before it?

    Its source is a folder, or a name on the Hugging Face Hub; its weights are safetensors, and no code of it is run.
    A ValueError says that the package or the model cannot be had.
    """

    def __init__(self, source: str | Path = MODEL):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            why, do = " ".join(str(error).split())[:200], "check name and network, or name a folder in HWR_RERANKER"
            do = "pip install 'transformers>=4.50'" if isinstance(error, ImportError) else do
            raise ValueError(f"the language model {source} cannot be had: {do} ({why})") from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device, PRECISIONS[best_precision(self.device)])

    @torch.inference_mode()
    def log_probabilities(self, texts: Sequence[str], before: str = "") -> np.ndarray:
        """Natural log-probability (N,) of each text, in one batch, after a text that stands before all of them."""
        texts = [f" {text}" if before and text else text for text in texts]
        first, *rows = self.tokenizer([before, *texts], add_special_tokens=False)["input_ids"]
        labels = utils.rnn.pad_sequence([torch.tensor(row).long() for row in rows], True, -100).to(self.device)
        if not labels.numel():
            return np.zeros(len(texts))
        start = [k for k in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if k is not None][:1]
        once = self.model(torch.tensor([start + first], device=self.device), use_cache=True)
        (cache,) = {"cache", "past_key_values"} & once.keys()  # as newer and older transformers call it
        once[cache].batch_repeat_interleave(len(texts))  # what stands before is read once for all
        # A row's padding stands behind its text, where a causal model cannot see it.
        each = self.model(labels.clamp(min=0), **{cache: once[cache]})
        logits = torch.cat([once.logits[:, -1:].expand(len(texts), -1, -1), each.logits[:, :-1]], dim=1)
        return -functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1).cpu().numpy()


@dataclass(eq=False)
class Reranker(PrefixBeam):
    """A beam of whose texts the one with the highest score is read, a pre-trained model's share in it.

    log p(text | image) + a x log weight of ``Fusion`` + b x log p(text | lines above) + c x number of words; the last
    pays back what a model takes for each word. Rescoring of n-best lists: Chow and Schwartz, 1989.
    """

    language: CharNgram | None = field(default_factory=CharNgram.load)
    width: int = 64
    model: CausalModel = field(default_factory=lambda: CausalModel(os.environ.get("HWR_RERANKER", MODEL)))
    weights: tuple[float, float, float] = TUNED  # a, b and c
    above: Sequence[str] | None = None  # texts of the lines above; None where lines do not follow each other

    def after(self, above: Sequence[str]) -> "Reranker":
        """This decoder for lines of a page, below others with these texts, top to bottom."""
        (other := copy.copy(self)).above = above
        return other

    def rank(self, candidates: Sequence[Candidate], readings: Sequence[Reading] = ()) -> list[Candidate]:
        """The first texts of one line, best first; the model sees the last three lines above it on a page."""
        above = [] if self.above is None else [*self.above, *(reading.text for reading in readings)]
        texts = [undo_spacing(candidate.text) for candidate in candidates]
        chances = self.model.log_probabilities(texts, " ".join(map(undo_spacing, above[-LINES_ABOVE:])))
        words = [len(text.split()) for text in texts]
        _, image, ngram = zip(*candidates, strict=True)
        scores = np.add(image, np.dot(self.weights, [ngram, chances, words]))
        return [candidates[k] for k in np.argsort(-scores, kind="stable")]
