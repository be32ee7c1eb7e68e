"""Chat templates of the shapes that real models have, and a tokenizer for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tokenizers
from tokenizers import normalizers, processors

from neoxkit.data.tokenizer.train import train_bpe

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
        "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
        "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
        "alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama3.1": (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
        '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n"
        '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n{%- if tools is not none %}\n'
        '    {{- "Environment: ipython\\n" }}\n    {%- for t in tools %}\n        {{- t | tojson(indent=4) }}\n'
        '        {{- "\\n\\n" }}\n    {%- endfor %}\n{%- endif %}\n{{- "Today Date: " + date_string + "\\n\\n" }}\n'
        '{{- system_message }}\n{{- "<|eot_id|>" }}\n{%- for message in messages %}\n'
        "    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n"
        "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
        "'<|eot_id|>' }}\n    {%- elif 'tool_calls' in message %}\n"
        "        {{- message.tool_calls[0].function.arguments | tojson }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
        "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "everything": (
        "{%- set ns = namespace(count=0, self='me') -%}\n    {# a comment #}\n{% for message in messages %}\n"
        "    {% if message.role == 'skip' %}\n        {% continue %}\n    {% endif %}\n"
        "    {% if ns.count > 2 %}{% break %}{% endif %}\n    {% set ns.count = ns.count + 1 %}\n"
        "    {% generation %}{% set inner = 'set inside' %}{{ message | tojson }}{% endgeneration %}\n"
        "{{ inner }}{{ message.reasoning_content }}{{ message.thinking }}{{ message.name }}\n{% endfor %}\n"
        "{{ dict(a=1) }}{{ dict.fromkeys(['b'], 2) }}{{ dict.items is defined }}"
        "{{ pad_token }}{{ unk_token }}{{ nothing }}{{ ns.self }}\n"
        "{{ tools }} {{ documents }} {{ extra | default('none') }} {{ strftime_now('%Y') }}\n"
        "{{ {'z': 'é <&>', 'a': 1} | tojson(indent=2, sort_keys=true) }}{% macro said(x) %}[{{ x }}]{% endmacro %}"
        "{{ said(1) }}  \n\n"
    ),
}  # fmt: skip

MARKED = {
    "chatml": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim + '<|eot_id|>' }}"
        "{% endgeneration %}{% else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if message.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "mistral, system in the last question": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        "{% set last = turns | selectattr('role', 'equalto', 'user') | list | length %}{% set ns = namespace(seen=0) %}"
        "{% for message in turns %}{% if message.role == 'user' %}{% set ns.seen = ns.seen + 1 %}"
        "{% if ns.seen == last and system is defined %}{{ '[INST]' + system + '\n\n' + message.content + '[/INST]' }}"
        "{% else %}{{ '[INST]' + message.content + '[/INST]' }}{% endif %}"
        "{% else %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% else %}"
        "{{ message.content + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
        "{{ '<start_of_turn>model\n' }}{% generation %}{{ message.content | trim + '<end_of_turn>' }}"
        "{% endgeneration %}"
        "{% else %}{{ '<start_of_turn>' + message.role + '\n' + message.content | trim + '<end_of_turn>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "phi3": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|end|>' }}{% endgeneration %}{% else %}"
        "{{ message.content + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "deepseek r1": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|assistant|>' }}"
        "{% set content = message.content %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{% generation %}{{ content + eos_token }}{% endgeneration %}"
        "{% else %}{{ '<|' + message.role + '|>' + message.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
    ),
    "qwen3": (
        "{%- if tools %}\n{{- '<|im_start|>system\n' }}\n{%- if messages[0].role == 'system' %}\n"
        "{{- messages[0].content + '\n\n' }}\n{%- endif %}\n{{- '# Tools\n<tools>' }}\n{%- for tool in tools %}\n"
        "{{- '\n' }}\n{{- tool | tojson }}\n{%- endfor %}\n{{- '\n</tools><|im_end|>\n' }}\n{%- else %}\n"
        "{%- if messages[0].role == 'system' %}\n"
        "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}\n{%- endif %}\n{%- endif %}\n"
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n{%- set index = (messages|length - 1) - loop.index0 %}\n"
        "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and "
        "not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
        "{%- set ns.multi_step_tool = false %}\n{%- set ns.last_query_index = index %}\n{%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n{%- if message.content is string %}\n{%- set content = message.content %}\n"
        "{%- else %}\n{%- set content = '' %}\n{%- endif %}\n"
        "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}\n"
        "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}\n"
        "{%- elif message.role == 'assistant' %}\n{%- set reasoning_content = '' %}\n"
        "{%- if message.reasoning_content is string %}\n"
        "{%- set reasoning_content = message.reasoning_content %}\n{%- else %}\n"
        "{%- if '</think>' in content %}\n{%- set reasoning_content = "
        "content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}\n"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}\n{%- endif %}\n{%- endif %}\n"
        "{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}\n"
        "{%- set content = content.lstrip('\n') %}\n"
        "{%- set content = '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content %}\n{%- endif %}\n"
        "{{- '<|im_start|>' + message.role + '\n' }}{% generation %}{{- content }}\n"
        "{%- if message.tool_calls %}\n{%- for tool_call in message.tool_calls %}\n"
        "{%- if (loop.first and content) or (not loop.first) %}\n{{- '\n' }}\n{%- endif %}\n"
        "{%- if tool_call.function %}\n{%- set tool_call = tool_call.function %}\n{%- endif %}\n"
        "{{- '<tool_call>\n{\"name\": \"' }}\n{{- tool_call.name }}\n{{- '\", \"arguments\": ' }}\n"
        "{{- tool_call.arguments | tojson }}\n{{- '}\n</tool_call>' }}\n{%- endfor %}\n{%- endif %}\n"
        "{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}\n{%- elif message.role == 'tool' %}\n"
        "{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}\n{{- '<|im_start|>user' }}\n{%- endif %}\n"
        "{{- '\n<tool_response>\n' }}\n{{- content }}\n{{- '\n</tool_response>' }}\n"
        "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}\n{{- '<|im_end|>\n' }}\n{%- endif %}\n"
        "{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n{%- endif %}\n"
    ),
    "no special tokens": (
        "{% for message in messages %}{{ message.role + ': ' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '\n\n' }}{% endgeneration %}{% else %}{{ message.content + '\n\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
}  # fmt: skip
"""Templates of the shapes that models have, with {% generation %} around what is to be learned."""

PLAIN = {name: re.sub(r"{% (end)?generation %}", "", text) for name, text in MARKED.items()}
"""The same as the models have them, where nothing says what is to be learned."""

SPECIAL = (
    *TOKENS.values(), "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
    "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip


def write_tokenizer(folder: Path, template: str | None = None) -> Path:
    """A folder with a small byte-level tokenizer that has the special tokens of all these models."""
    train_bpe(
        ["What is the answer? It is that the answer is there.\n\n" * 3, "assistant user system: <think>"], 300, folder
    )
    (folder / "special_tokens_map.json").unlink()  # of the tokenizer as it was trained
    file = str(folder / "tokenizer.json")
    inner = tokenizers.Tokenizer.from_file(file)
    inner.add_special_tokens(list(SPECIAL))
    inner.add_tokens(["  ", "    "])  # these three as in GPT-NeoX's own
    inner.normalizer = normalizers.NFC()
    inner.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    inner.save(file)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
