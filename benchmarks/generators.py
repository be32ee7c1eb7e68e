"""The engines that generation.py compares, each in a process of its own, in whichever environment has it.

Run as a program, this loads one engine with one model and then answers lines of JSON, one by one, on standard input:
prompts as lists of ids, all of one length, and how many tokens are to follow each, greedily, whatever they are. Each
answer has the ids, seconds of wall and CPU time, and after how many seconds the first token of every prompt was
there. So engines can take turns, and none is loaded twice.

    python generators.py ENGINE MODEL DTYPE THREADS

MODEL is what the engine reads: a checkpoint of neoxkit, a folder of transformers, or a file in GGUF. It needs nothing
of this folder, and imports only what the engine named needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 256
"""Room for a prompt and its answer, where an engine has to be told."""
MOST = 16
"""Prompts at once, likewise."""

Answer = tuple[list[list[int]], float]  # the ids that follow each prompt, and when every first one was there
Engine = Callable[[list[list[int]], int], Answer]


def neoxkit(model: str, dtype: str, threads: int) -> Engine:
    """neoxkit's engine, as `generate` and `serve` use it."""
    import torch

    from neoxkit.checkpoint.store import place
    from neoxkit.serve.request import Limits, Request
    from neoxkit.serve.start import open_engine

    torch.set_num_threads(threads)
    limits = Limits(batch=MOST, context=LONGEST)
    kind = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}[dtype]
    opened = open_engine(place(model), dtype=kind, device="cpu", limits=limits, compile="+compiled" in sys.argv[1])
    engine = opened.engine

    def generate(prompts: list[list[int]], tokens: int) -> Answer:
        answers: dict[int, list[int]] = {}
        for ids in prompts:
            answers[engine.submit(Request(tuple(ids), max_tokens=tokens))] = []
        first = 0.0
        while not engine.idle:
            for event in engine.tick():
                if event.token is not None:
                    answers[event.number].append(event.token)
            if not first and all(answers.values()):
                first = time.perf_counter()
        return list(answers.values()), first

    return generate


def transformers(model: str, dtype: str, threads: int) -> Engine:
    """transformers' `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=kind, attn_implementation="sdpa").eval()

    def generate(prompts: list[list[int]], tokens: int) -> Answer:
        ids = torch.tensor(prompts)
        times: list[float] = []

        def note(*_: Any, **__: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        loaded.generation_config.eos_token_id = None
        with torch.inference_mode():
            found = loaded.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=settings, stopping_criteria=[note]
            )
        return found[:, ids.shape[1] :].tolist(), times[0]

    return generate


def litgpt(model: str, dtype: str, threads: int) -> Engine:
    """litgpt's model and its generating functions, with the weights that it converts itself."""
    import torch
    from litgpt.config import Config
    from litgpt.generate.base import batched_generate_fn, generate_fn
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox, copy_weights_hf_llama
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    theirs = json.loads(Path(model, "config.json").read_text())
    weights = {key: value for path in Path(model).glob("*.safetensors") for key, value in load_file(path).items()}
    state: dict[str, torch.Tensor] = {}
    if theirs["model_type"] == "llama":
        config = Config.from_name("SmolLM2-135M-Instruct")
        copy_weights_hf_llama(config, {}, state, weights)
        state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    else:
        config = Config(
            name="S",
            block_size=theirs["max_position_embeddings"],
            vocab_size=theirs["vocab_size"],
            padded_vocab_size=theirs["vocab_size"],
            n_layer=theirs["num_hidden_layers"],
            n_head=theirs["num_attention_heads"],
            n_embd=theirs["hidden_size"],
            rotary_percentage=0.25,
            parallel_residual=True,
            bias=True,
        )
        copy_weights_gpt_neox(config, state, weights)
    with torch.device("meta"):
        loaded = GPT(config)
    loaded.to_empty(device="cpu")
    loaded.load_state_dict(state, strict=True)
    loaded.to(kind).eval()
    held: list[int] = []

    def generate(prompts: list[list[int]], tokens: int) -> Answer:
        whole = len(prompts[0]) + tokens
        ids = torch.tensor(prompts)
        if held != [len(prompts), whole]:
            loaded.clear_kv_cache()
            loaded.max_seq_length = whole
            with torch.device("cpu"):
                loaded.set_kv_cache(len(prompts), dtype=kind)
            held[:] = [len(prompts), whole]
        greedy = {"temperature": 0.0, "top_k": None, "top_p": 0.0}
        rest: dict[str, Any] = {"include_prompt": False, "include_eos": True}
        if len(prompts) == 1:
            stream = ([each] for each in generate_fn(loaded, ids[0], whole, **greedy, **rest))
        else:
            stream = batched_generate_fn(loaded, ids, whole, sample_args=greedy, **rest)
        found, first = [], 0.0
        for each in stream:
            first = first or time.perf_counter()
            found.append(each)
        return [[int(step[row]) for step in found] for row in range(len(prompts))], first

    return generate


def vllm(model: str, dtype: str, threads: int) -> Engine:
    """vLLM's engine, step by step, in this process."""
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    import torch
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    torch.set_num_threads(threads)
    engine = LLM(
        model,
        dtype={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype],
        max_model_len=LONGEST,
        max_num_seqs=MOST,
        skip_tokenizer_init=True,
        enforce_eager="+compiled" not in sys.argv[1],
    ).llm_engine
    numbers = iter(range(1 << 30))

    def generate(prompts: list[list[int]], tokens: int) -> Answer:
        how = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        answers: dict[str, list[int]] = {}
        for ids in prompts:
            name = str(next(numbers))
            answers[name] = []
            engine.add_request(name, {"prompt_token_ids": ids}, how)
        first = 0.0
        while engine.has_unfinished_requests():
            for told in engine.step():
                answers[told.request_id] += told.outputs[0].token_ids
            if not first and all(answers.values()):
                first = time.perf_counter()
        return list(answers.values()), first

    return generate


def openvino(model: str, dtype: str, threads: int) -> Engine:
    """OpenVINO GenAI, which reads GGUF itself; `dtype` is that of the file."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def generate(prompts: list[list[int]], tokens: int) -> Answer:
        ids = openvino.Tensor(numpy.array(prompts, numpy.int64))
        inputs = openvino_genai.TokenizedInputs(ids, openvino.Tensor(numpy.ones_like(ids.data)))
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = tokens, True, False
        settings.apply_chat_template = False
        begun = time.perf_counter()
        found = pipeline.generate(inputs, settings)
        return [list(each) for each in found.tokens], begun + found.perf_metrics.get_ttft().mean / 1e3

    return generate


ENGINES = {each.__name__: each for each in (neoxkit, transformers, litgpt, vllm, openvino)}


def main() -> None:
    """Load, then answer until there are no more questions."""
    name, model, dtype, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print goes elsewhere
    begun = time.perf_counter()
    generate = ENGINES[name.partition("+")[0]](model, dtype, int(threads))
    print(json.dumps({"loaded": time.perf_counter() - begun}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        cpu, begun = time.process_time(), time.perf_counter()
        ids, first = generate(asked["prompts"], asked["tokens"])
        ended = time.perf_counter()
        told = {"ids": ids, "wall": ended - begun, "first": first - begun, "cpu": time.process_time() - cpu}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
