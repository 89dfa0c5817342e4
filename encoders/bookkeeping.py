"""Keys of ``config.json`` that say nothing about a network."""

# What the transformers library writes for every kind of model.
_TRANSFORMERS = frozenset(
    (
        *("architectures", "auto_map", "dtype", "model_type", "torch_dtype"),
        *("transformers_version", "tokenizer_class", "torchscript", "use_bfloat16"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
        *("mask_token_id", "unk_token_id", "decoder_start_token_id"),
        *("is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"),
        *("cross_attention_hidden_size", "chunk_size_feed_forward", "use_cache"),
        *("output_attentions", "output_hidden_states", "return_dict"),
        *("finetuning_task", "id2label", "label2id", "num_labels", "problem_type"),
        *("prefix", "task_specific_params", "tf_legacy_loss", "pruned_heads"),
        # How text would be generated, which none of these networks does.
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
        *("exponential_decay_length_penalty", "begin_suppress_tokens"),
        # Memory against time in training; no number changes.
        *("gradient_checkpointing", "gradient_checkpointing_stride"),
    )
)


def is_bookkeeping(name: str) -> bool:
    """Tell whether a key is the transformers library's own, changing no feature.

    Keys that begin with an underscore (``_name_or_path``, ``_attn_implementation_autoset``) are
    private to the library that wrote the file.
    """
    return name.startswith("_") or name in _TRANSFORMERS
