"""Write a Llama's Hugging Face folder as a GGUF file of float16 weights, without a tokenizer.

python make_gguf.py FOLDER OUT.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import torch
from safetensors import safe_open


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows [n, k] of queries or keys: llama.cpp turns neighbours, Hugging Face halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def main() -> None:
    folder, out = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    turned = {"q_proj": heads, "k_proj": kv_heads}
    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                weight = tensors.get_tensor(name)
                kind = name.split(".")[-2]
                if kind in turned:
                    weight = interleaved(weight, turned[kind])
                # Norms are a vector each, and stay float32 as in llama.cpp's own converter.
                weight = weight.float() if weight.ndim == 1 else weight.half()
                given = names.get_name(name, try_suffixes=(".weight",))
                writer.add_tensor(given, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
