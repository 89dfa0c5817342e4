"""Small random DNA models of the transformers library, saved as their authors would."""

import json
from pathlib import Path
from typing import Any

import torch

DNA = (
    "ACGTTGCATGACCTGATTACAGGCTTAAACCCGGGTTTACGATCGATTGCCAATATGCGCTAGCTAGGATCCAAGCTTCATGTACCGGTATCGATAGT"
    "CCCCTTTTGGGGAAAACTCTGAGAGTGTCACACGTGACTGACGGTCATTTCGAGCATTAGGCAACTTGTAAGCGCCTATAGACGATCCGTATTGACC"
)
PAIRS = str.maketrans("ACGTN", "TGCAN")
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "esm": {**SIZES, "position_embedding_type": "rotary", "max_position_embeddings": 256},
    "bert": {**SIZES, "max_position_embeddings": 256},
    "modernbert": {**SIZES, "max_position_embeddings": 256, "local_attention": 8},
    "llama": {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "gpt_neox": {**SIZES, "max_position_embeddings": 256},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}
HEADS = {
    "esm": "EsmForMaskedLM",
    "bert": "BertForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "llama": "LlamaForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "mamba": "MambaForCausalLM",
}
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def reverse_complement(sequence: str) -> str:
    return sequence.translate(PAIRS)[::-1]


def save_network(folder: Path, kind: str, *, head: bool = True, **more: Any) -> Any:
    """Save a network with random weights, wide enough to tell tokens apart; and return it."""
    import transformers

    values = {"vocab_size": 64, "pad_token_id": 0, "initializer_range": 0.3, **NETWORKS[kind]}
    values |= {f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")}
    config = transformers.AutoConfig.for_model(kind, **{**values, **more})
    torch.manual_seed(0)
    make = getattr(transformers, HEADS[kind]) if head else transformers.AutoModel.from_config
    network = make(config).eval()
    network.save_pretrained(folder)
    return network


def save_characters(folder: Path) -> dict[str, int]:
    """Save a tokenizer of single letters between [CLS] and [SEP]; return its vocabulary."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *"ACGTN"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    _save(tokenizer, folder)
    return vocabulary


def save_byte_pairs(folder: Path) -> Any:
    """Save a byte-pair tokenizer learned from DNA; return it as the tokenizers library has it."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=40, special_tokens=SPECIAL, initial_alphabet=list("ACGT"), show_progress=False
    )
    tokenizer.train_from_iterator([DNA, DNA[5:], reverse_complement(DNA)], trainer)
    _save(tokenizer, folder)
    return tokenizer


def save_words(folder: Path, k: int) -> dict[str, int]:
    """Save a tokenizer of words of k bases with spaces between, as DNABERT has it."""
    from itertools import product

    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["".join(word) for word in product("ACGT", repeat=k)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _save(tokenizer, folder)
    return vocabulary


def save_chunks(folder: Path, k: int) -> dict[str, int]:
    """Save a slow tokenizer of chunks of k bases, as Nucleotide Transformer has it."""
    from itertools import product

    words = ["".join(word) for word in product("ACGT", repeat=k)]
    tokens = ["<pad>", "<cls>", "<mask>", "<unk>", *words, *"ACGTN"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    settings = {"tokenizer_class": "EsmTokenizer", "eos_token": None, "model_max_length": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {token: i for i, token in enumerate(tokens)}


def _save(tokenizer: Any, folder: Path) -> None:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
