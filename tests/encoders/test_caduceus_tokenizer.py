"""Caduceus' tokenizer against what upstream's returned, and the calls of a Hugging Face one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_sets import parity_cases

from encoders.caduceus.character_tokenizer import CONFIG_FILE, CaduceusTokenizer
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.tokenizer import encode_bases, reverse_complement
from encoders.errors import InputError


def cases_of(kind: str) -> list[Path]:
    files = [path / "case.json" for path in parity_cases("caduceus")]
    return [f.parent for f in files if f.is_file() and json.loads(f.read_text())["kind"] == kind]


CASES = [json.loads((case / "tokenizer_cases.json").read_text()) for case in cases_of("tokenizer")]
assert CASES
FACTS = [case["facts"] for case in CASES]
TOKENIZER = CaduceusTokenizer()


def all_of(name: str) -> list[Any]:
    items = [case[name] for case in CASES]
    return [one for item in items for one in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("facts", FACTS)
def test_facts(facts: dict[str, Any], tmp_path: Path) -> None:
    assert TOKENIZER.get_vocab() == facts["vocab"]
    assert (TOKENIZER.vocab_size, len(TOKENIZER)) == (facts["vocab_size"], facts["len"])
    complement = {str(i): other for i, other in TOKENIZER.complement_map.items()}
    assert complement == facts["complement_map_of_tokenizer"]
    padded = CaduceusConfig.from_mapping({"d_model": 4, "n_layer": 1}).complement_map
    wanted = facts["complement_map_of_model_with_padded_vocab"]
    assert {str(i): other for i, other in enumerate(padded)} == wanted
    assert TOKENIZER.padding_side == facts["padding_side"]
    assert TOKENIZER.truncation_side == facts["truncation_side"]
    assert list(TOKENIZER.model_input_names) == facts["model_input_names"]
    assert TOKENIZER.special_tokens_map == facts["special_tokens_map"]
    for part, wanted_id in facts["special_ids"].items():
        assert getattr(TOKENIZER, f"{part}_token_id") == wanted_id
        token = getattr(TOKENIZER, f"{part}_token")
        assert token == facts["special_tokens_map"][f"{part}_token"]
        assert TOKENIZER.convert_tokens_to_ids(token) == wanted_id
    assert TOKENIZER.all_special_ids == facts["all_special_ids"]
    note = facts["long_input_note"]
    short = CaduceusTokenizer(note["model_max_length"])
    text = "A" * note["text_length"]
    assert len(short.encode(text)) == note["ids_without_truncation"]
    assert len(short.encode(text, truncation=True)) == note["ids_with_truncation"]
    short.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text()) == facts["saved_tokenizer_config"]


@pytest.mark.parametrize("item", all_of("single"), ids=lambda item: repr(item["text"])[:20])
def test_single_texts(item: dict[str, Any]) -> None:
    text, plain = item["text"], item["without_special_tokens"]
    assert TOKENIZER.tokenize(text) == item["tokens"]
    assert dict(TOKENIZER(text)) == item["default"]
    assert dict(TOKENIZER(text, add_special_tokens=False)) == plain
    assert TOKENIZER.encode(text) == item["default"]["input_ids"]
    assert TOKENIZER.decode(plain["input_ids"]) == item["decoded_without_special"]
    assert TOKENIZER.decode(item["default"]["input_ids"]) == item["decoded_default"]
    assert reverse_complement(text) == item["reverse_complement_string"]
    # Written-out special tokens and letters that grow are no DNA: only here are they looked at.
    if "[" not in text and "ß" not in text:
        assert encode_bases(text).tolist() == plain["input_ids"]


@pytest.mark.parametrize("item", all_of("batches"), ids=lambda item: str(item["arguments"]))
def test_batches(item: dict[str, Any]) -> None:
    tokenizer = CaduceusTokenizer(padding_side=item.get("padding_side", "left"))
    assert dict(tokenizer(item["texts"], **item["arguments"])) == item["result"]


@pytest.mark.parametrize("item", all_of("pair"), ids=lambda item: item["text"])
def test_pairs(item: dict[str, Any]) -> None:
    assert dict(TOKENIZER(item["text"], item["text_pair"])) == item["result"]


@pytest.mark.parametrize("item", all_of("reverse_complement"), ids=lambda item: item["text"])
def test_reverse_complements_of_ids(item: dict[str, Any]) -> None:
    complement = TOKENIZER.complement_map
    assert reverse_complement(item["text"]) == item["rc_string"]
    plain = TOKENIZER.encode(item["text"], add_special_tokens=False)
    assert plain == item["ids"]
    mirrored = [complement[i] for i in reversed(plain)]
    assert mirrored == item["token_level_rc"] == item["ids_of_rc_string"]
    assert TOKENIZER.encode(item["rc_string"], add_special_tokens=False) == mirrored
    with_sep = TOKENIZER.encode(item["text"])
    assert with_sep == item["ids_with_sep"]
    mirrored = [complement[i] for i in reversed(with_sep)]
    assert mirrored == item["token_level_rc_with_sep"]
    # With [SEP] the two are no longer the same: it moves to the front.
    assert TOKENIZER.encode(item["rc_string"]) == item["ids_of_rc_string_with_sep"] != mirrored


@pytest.mark.parametrize("case", cases_of("published_layout"), ids=lambda case: case.name)
def test_published_files_load_and_save_back(case: Path, tmp_path: Path) -> None:
    for published in case.glob("tokenizer_config_*.json"):
        folder = tmp_path / published.stem
        folder.mkdir()
        (folder / CONFIG_FILE).write_bytes(published.read_bytes())
        tokenizer = CaduceusTokenizer.from_pretrained(folder)
        values = json.loads(published.read_text())
        assert tokenizer.model_max_length == values["model_max_length"]
        tokenizer.save_pretrained(folder)
        # auto_map names upstream's own Python files, which are not there.
        del values["auto_map"]
        assert json.loads((folder / CONFIG_FILE).read_text()) == values
        saved = json.loads((folder / "special_tokens_map.json").read_text())
        assert saved == json.loads((case / "special_tokens_map.json").read_text())
        assert sorted(p.name for p in folder.iterdir()) == [
            "special_tokens_map.json",
            CONFIG_FILE,
        ]


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    CaduceusTokenizer(64, padding_side="right").save_pretrained(tmp_path / "new" / "folder")
    again = CaduceusTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert (again.model_max_length, again.padding_side) == (64, "right")


def test_another_tokenizers_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        CaduceusTokenizer.from_pretrained(tmp_path)
    values = {"tokenizer_class": "BertTokenizer", "pad_token": "<pad>", "padding_side": "top"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**values, "model_max_length": "long"}))
    with pytest.raises(InputError) as error:
        CaduceusTokenizer.from_pretrained(tmp_path)
    assert [problem.where.split(": ")[-1] for problem in error.value.problems] == [
        "tokenizer_class",
        "pad_token",
        "padding_side",
        "model_max_length",
    ]


def test_tensors_and_attributes() -> None:
    encoded = TOKENIZER(["ACGT", "A"], padding=True, return_tensors="pt").to("cpu")
    assert encoded.input_ids.tolist() == [[7, 8, 9, 10, 1], [4, 4, 4, 7, 1]]
    assert TOKENIZER("AC", return_tensors="pt")["input_ids"].tolist() == [[7, 8, 1]]
    arrays = TOKENIZER(["ACGT"], return_tensors="np").input_ids
    assert isinstance(arrays, np.ndarray)
    with pytest.raises(AttributeError):
        _ = encoded.attention_mask
    with pytest.raises(ValueError, match="padding=True"):
        TOKENIZER(["ACGT", "A"], return_tensors="pt")


def test_pairs_are_cut_where_they_are_longest() -> None:
    encoded = TOKENIZER("ACGTAC", "TTT", truncation=True, max_length=7, return_token_type_ids=True)
    assert TOKENIZER.decode(encoded.input_ids) == "ACG[SEP]TT[SEP]"
    assert encoded.token_type_ids == [0, 0, 0, 1, 1]
    assert TOKENIZER("ACGT", max_length=3).input_ids == [7, 8, 1]
    with pytest.raises(ValueError, match="no room"):
        TOKENIZER("ACGT", "A", max_length=1)
    with pytest.raises(ValueError, match="each text wants one"):
        TOKENIZER(["ACGT", "A"], ["T"])


def test_padding_of_rows_as_collators_ask_for_it() -> None:
    rows = [TOKENIZER(text, return_attention_mask=True) for text in ("ACGT", "A")]
    padded = TOKENIZER.pad(rows, pad_to_multiple_of=4, return_tensors="pt")
    assert padded.input_ids.tolist() == [[4] * 3 + [7, 8, 9, 10, 1], [4] * 6 + [7, 1]]
    assert padded.attention_mask.tolist() == [[0] * 3 + [1] * 5, [0] * 6 + [1] * 2]
    labelled = TOKENIZER.pad({"input_ids": torch.tensor([[7, 1]]), "labels": [3]})
    assert labelled == {"input_ids": [[7, 1]], "labels": [3]}
    with pytest.raises(ValueError, match="'longest' or 'max_length'"):
        TOKENIZER.pad(rows, padding="shortest")


def test_decoding() -> None:
    ids = torch.tensor([[4, 7, 8, 1], [11, 10, 9, 1]])
    assert TOKENIZER.batch_decode(ids) == ["[PAD]AC[SEP]", "NTG[SEP]"]
    assert TOKENIZER.batch_decode(ids, skip_special_tokens=True) == ["AC", "NTG"]
    assert TOKENIZER.decode(7) == "A" == TOKENIZER.convert_ids_to_tokens(7)
    assert TOKENIZER.get_special_tokens_mask([4, 7, 1], already_has_special_tokens=True) == [
        1,
        0,
        1,
    ]
    assert TOKENIZER.convert_tokens_to_ids(["A", "[MASK]", "?"]) == [7, 3, 6]
    with pytest.raises(ValueError, match="id 12 has no token"):
        TOKENIZER.decode([12])


@pytest.mark.parametrize("wrong", [{"model_max_length": 0}, {"padding_side": "top"}])
def test_impossible_tokenizers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        CaduceusTokenizer(**wrong)
