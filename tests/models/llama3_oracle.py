"""transformers' Llama, with everything that it computes in float32 whatever its dtype computed in float64."""

import contextlib
from unittest import mock

import numpy as np
import torch
import transformers

from models.hugging_face import Llama3Format
from models.llama3 import Config


@contextlib.contextmanager
def everything_in_float64():
    """What transformers calls float32, in the rotary embedding and in the norms, is float64 inside."""
    wide = torch.float64
    with (
        mock.patch.object(torch, "float", wide),
        mock.patch.object(torch, "float32", wide),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def random_model(config: Config, seed: int, noise: float = 0.1) -> transformers.LlamaForCausalLM:
    """A Llama in float64 in which no weight is 0 or 1."""
    torch.manual_seed(seed)
    keys = {key.name: getattr(config, name) for name, key in Llama3Format.keys.items()}
    rotary = Llama3Format.more_keys(config)["rope_parameters"]
    with everything_in_float64():
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**keys, rope_parameters=rotary, bos_token_id=0, eos_token_id=0)
        ).double()
    with torch.no_grad():
        for p in model.parameters():
            p += noise * torch.randn_like(p)
    return model


def random_tokens(config: Config, seed: int, B: int, T: int) -> np.ndarray:
    """Token numbers (B, T + 1): inputs and, one position ahead, targets."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (B, T + 1))


def step(model: transformers.LlamaForCausalLM, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, loss, gradients and weights, under the names of the weights' file."""
    inputs, targets = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
    with everything_in_float64():
        logits = model(inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    record = {"logits": logits, "loss": loss}
    record |= {f"gradients.{name}": p.grad for name, p in model.named_parameters()}
    record |= {f"weights.{name}": p for name, p in model.named_parameters()}
    return {name: value.detach().numpy().copy() for name, value in record.items()}


def greedy(model: transformers.LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The likeliest `count` tokens after the prompt, by transformers' own generation."""
    with everything_in_float64():
        written = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return written[0, len(prompt) :].tolist()
