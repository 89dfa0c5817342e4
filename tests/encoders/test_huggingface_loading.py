"""What the huggingface encoder loads, and what it refuses: code, gaps, strangers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_models import (
    DNA,
    NETWORKS,
    save_characters,
    save_network,
    save_words,
)
from safetensors.torch import load_file, save_file

from encoders import load_encoder
from encoders.errors import InputError
from encoders.weights import Weights, read_weights, tensors_sha256

WINDOWS = [DNA[:37], DNA[50:90]]


def load(weights: Any = None, config: dict[str, Any] | None = None, **more: Any) -> Any:
    return load_encoder("huggingface", weights, config=config, **more)


def features(encoder: Any) -> torch.Tensor:
    with torch.no_grad():
        return encoder(*encoder.tokenize(WINDOWS))


def refusal(weights: Any = None, config: dict[str, Any] | None = None, **more: Any) -> InputError:
    with pytest.raises(InputError) as error:
        load(weights, config, **more)
    return error.value


def codes(error: InputError) -> list[str]:
    return [problem.code for problem in error.problems]


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    change(values)
    path.write_text(json.dumps(values))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A BERT for masked letters, with its tokenizer."""
    folder = tmp_path / "bert"
    save_network(folder, "bert")
    save_characters(folder)
    return folder


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("head", [True, False])
def test_networks_with_and_without_a_head_and_their_bare_backbones(
    kind: str, head: bool, tmp_path: Path
) -> None:
    save_network(tmp_path, kind, head=head)
    save_characters(tmp_path)
    encoder = load(tmp_path)
    found = features(encoder)
    assert encoder.spec.weights_sha256 == read_weights(tmp_path).sha256
    assert encoder.spec.feature_dim == found.shape[1] == 16
    assert json.loads(json.dumps(encoder.spec.as_dict()))["config"]["model_type"] == kind
    bare = tmp_path / "bare.safetensors"
    save_file({k: v.clone() for k, v in encoder.backbone.state_dict().items()}, bare)
    again = load(bare, encoder.spec.config)
    assert torch.equal(features(again), found)
    assert again.spec.weights_id == "bare.safetensors"


def test_names_and_shapes_of_earlier_versions(tmp_path: Path, bert: Path) -> None:
    wanted = features(load(bert))

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace("weight", "gamma").replace("bias", "beta")
                tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(256)[None]

    change_tensors(bert, rename)
    assert torch.equal(features(load(bert)), wanted)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2}
    mixture = tmp_path / "mixture"
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=64, bos_token_id=None, eos_token_id=None, **NETWORKS["bert"], **experts
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(mixture)
    save_characters(mixture)
    loaded = load(mixture).backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in model.model.state_dict().items())


def test_misfits_are_all_listed_and_nothing_is_filled_with_random_numbers(bert: Path) -> None:
    layer = "bert.encoder.layer.1."

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[layer + "attention.self.query.weight"]
        tensors[layer + "output.dense.bias"] = torch.zeros(3)
        tensors[layer + "output.dense.weight"][0, 0] = float("nan")
        tensors["not.a.parameter"] = torch.zeros(1)

    change_tensors(bert, damage)
    error = refusal(bert)
    assert sorted(codes(error)) == [
        "tensor-missing",
        "tensor-not-finite",
        "tensor-shape",
        "tensor-unexpected",
    ]
    assert layer + "attention.self.query.weight" in str(error)


@pytest.mark.parametrize("kind", ["esm", "bert", "mamba", "gpt_neox"])
def test_each_missing_tensor_is_refused(kind: str, tmp_path: Path) -> None:
    save_network(tmp_path, kind)
    checkpoint = read_weights(tmp_path)
    described = {"tokenizer": {"letters": {c: 4 + i for i, c in enumerate("ACGTN")}}}
    head = ("cls.", "lm_head.", "embed_out.", "esm.contact_head.")
    needed = [name for name in checkpoint.tensors if not name.startswith(head)]
    assert len(needed) > 10
    for name in needed[:: len(needed) // 10]:
        tensors = {k: v for k, v in checkpoint.tensors.items() if k != name}
        cut = Weights(tensors, checkpoint.config, "cut", tensors_sha256(tensors))
        assert codes(refusal(cut, described)) == ["tensor-missing"], name


def test_what_the_last_hidden_state_does_not_need_may_be_missing(bert: Path) -> None:
    """Language models lack the pooler that the plain class of a network has."""
    wanted = features(load(bert))
    change_json(bert / "config.json", lambda values: values.pop("architectures"))
    error = refusal(bert)
    assert set(codes(error)) == {"tensor-unexpected"}, "the head, which nothing names now"
    change_tensors(
        bert, lambda tensors: [tensors.pop(k) for k in list(tensors) if k.startswith("cls.")]
    )
    encoder = load(bert)
    assert torch.equal(features(encoder), wanted)
    assert not [name for name, _ in encoder.backbone.named_parameters() if "pooler" in name]


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_refused_and_never_run(bert: Path, tmp_path: Path, where: str) -> None:
    ran = tmp_path / "ran"
    (bert / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    kinds = {
        "config.json": {"AutoConfig": "own.Config", "AutoModelForMaskedLM": "own.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.Tokenizer", None]},
    }
    change_json(bert / where, lambda values: values.update(auto_map=kinds[where]))
    # The weights are not even looked at.
    (bert / "model.safetensors").unlink()
    error = refusal(bert)
    assert codes(error) == ["remote-code"]
    assert "never run" in str(error)
    assert where in str(error)
    assert not ran.exists()


def test_a_network_of_the_librarys_own_may_be_taken_instead(bert: Path) -> None:
    wanted = features(load(bert))
    change_json(bert / "config.json", lambda v: v.update(auto_map={"AutoModel": "own.Model"}))
    assert codes(refusal(bert)) == ["remote-code"]
    assert torch.equal(features(load(bert, {"auto_map": None})), wanted)


def test_kernels_of_the_hub_are_never_fetched(bert: Path) -> None:
    """Attention named by a hub id would be compiled code from elsewhere."""
    from transformers.integrations import hub_kernels

    change_json(
        bert / "config.json",
        lambda v: v.update(_attn_implementation="o/kernel", attn_implementation="o/kernel"),
    )
    encoder = load(bert)
    assert encoder.backbone.config._attn_implementation in ("eager", "sdpa")
    assert not getattr(hub_kernels, "_kernels_enabled", False)
    assert codes(refusal(bert, {"attn_implementation": "o/kernel"})) == ["config-value"]
    eager = load(bert, {"attn_implementation": "eager"})
    torch.testing.assert_close(features(eager), features(encoder))


def test_a_pickle_that_runs_code_is_refused(bert: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(ran), "w"))

    (bert / "model.safetensors").unlink()
    torch.save({"weight": Malice()}, bert / "pytorch_model.bin")
    assert codes(refusal(bert)) == ["weights-unsafe"]
    assert not ran.exists()


def test_a_model_without_a_tokenizer_wants_one_described(bert: Path) -> None:
    wanted = features(load(bert))
    for path in bert.glob("tokenizer*"):
        path.unlink()
    assert codes(refusal(bert)) == ["tokenizer-missing"]
    letters = {letter: 4 + i for i, letter in enumerate("ACGTN")}
    described = {"letters": letters, "before": [1], "after": [2]}
    assert torch.equal(features(load(bert, {"tokenizer": described})), wanted)
    far = {**letters, "T": 64}
    assert codes(refusal(bert, {"tokenizer": {"letters": far}})) == ["token-unknown-to-network"]


def test_a_tokenizer_that_passes_over_a_letter_is_refused(bert: Path) -> None:
    def forget(values: dict[str, Any]) -> None:
        vocabulary = {t: i for t, i in values["model"]["vocab"].items() if t != "T"}
        values["model"] = {"type": "BPE", "vocab": vocabulary, "merges": []}

    change_json(bert / "tokenizer.json", forget)
    error = refusal(bert)
    assert codes(error) == ["window-without-tokens"]
    assert "TTTTTTTT" in str(error)


def test_tokenizers_that_do_not_know_dna_are_refused(tmp_path: Path) -> None:
    save_network(tmp_path, "bert", vocab_size=80)
    save_words(tmp_path, 3)
    error = refusal(tmp_path)
    assert codes(error) == ["tokenizer-not-dna"]
    assert "set kmer (its words: [3])" in str(error)
    assert codes(refusal(tmp_path, {"kmer": 4})) == ["tokenizer-not-dna"]
    strided = load(tmp_path, {"kmer": 3, "kmer_stride": 2})
    assert features(strided).shape == (2, 16, 2)
    spec = strided.spec.config
    assert load(tmp_path, spec).spec.config == spec
    assert codes(refusal(tmp_path, {**spec, "tokenizer_sha256": "0" * 64})) == ["tokenizer-differs"]
    (tmp_path / "tokenizer.json").write_text("{")
    assert codes(refusal(tmp_path, {"kmer": 3})) == ["tokenizer-damaged"]


@pytest.mark.parametrize(
    ("config", "code", "where"),
    [
        ({}, "config-missing", "model_type"),
        ({"model_type": "hyena"}, "model-type", "model_type"),
        ({"model_type": "t5"}, "model-type", "model_type"),
        ({"model_type": "vit", "num_hidden_layers": 1}, "network-fails", "ViTModel"),
        ({"model_type": "bert", "no_such_argument": 1}, "config-unknown", "no_such_argument"),
        ({"model_type": "bert", "hidden_size": 17}, "model-refused", "config"),
        ({"model_type": "bert", "vocab_size": 6}, "token-unknown-to-network", "tokenizer"),
        ({"model_type": "big_bird"}, "attention-type", "attention_type"),
        ({"model_type": "bert", "pooling": "cls"}, "config-value", "pooling"),
        ({"model_type": "bert", "padding": 1}, "config-value", "padding"),
        ({"model_type": "bert", "kmer": 0}, "config-value", "kmer"),
        ({"model_type": "bert", "kmer_stride": 2}, "config-value", "kmer_stride"),
        ({"model_type": "bert", "hidden_layer": 1.5}, "config-value", "hidden_layer"),
        ({"model_type": "bert", "tokenizer": {"letters": {}}}, "config-value", "tokenizer"),
        ({"model_type": "bert", "tokenizer": {"alphabet": 1}}, "config-unknown", "tokenizer"),
    ],
)
def test_configuration_errors_name_the_key(config: dict[str, Any], code: str, where: str) -> None:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    error = refusal(None, {**small, **config} if config.get("model_type") == "bert" else config)
    assert code in codes(error)
    assert where in next(p.where for p in error.problems if p.code == code)


def test_random_weights_follow_the_seed_in_every_type() -> None:
    config = {"model_type": "llama", **NETWORKS["llama"]}
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    one, other, wide = load(None, config), load(None, config, seed=1), None
    assert torch.equal(torch.rand(4), wanted)
    wide = load(None, config, dtype="float64")
    assert one.spec.weights_id == "random(seed=0)"
    assert one.spec.weights_sha256 == wide.spec.weights_sha256 != other.spec.weights_sha256
    torch.testing.assert_close(features(wide).float(), features(one))
    assert (one.spec.weight_license, one.spec.pretraining_cohorts) == ("none", ())


def test_hub_ids_are_pinned_to_their_commit(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / commit
    snapshot.parent.mkdir()
    bert.rename(snapshot)
    (snapshot / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\ntags: [dna]\n---\n# DNA\n")
    asked = []

    def fake(repository: str, *, revision: str | None, allow_patterns: Any) -> str:
        asked.append((repository, revision))
        assert not [p for p in allow_patterns if p.endswith((".py", "*"))], "code is not fetched"
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    spec = load("owner/name", revision="v1").spec
    assert spec.weights_id == f"owner/name@{commit}"
    assert spec.weight_license.lower() == "cc-by-nc-sa-4.0"
    assert asked[0] == ("owner/name", "v1")
    assert set(asked[1:]) == {("owner/name", commit)}, "tokenizer and weights of one commit"
    (snapshot / "README.md").unlink()
    assert load("owner/name").spec.weight_license == "unknown"

    def fail(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert codes(refusal("owner/name")) == ["weights-hub"]
    assert codes(refusal(str(tmp_path / "no" / "such"))) == ["weights-missing"]
    assert codes(refusal(snapshot, revision="v1")) == ["revision-of-a-path"]


def test_a_missing_or_old_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "bert"}
    for library, found in ((None, "cannot be imported"), (ModuleType("transformers"), "4.57.1")):
        if library is not None:
            library.__version__ = "4.57.1"
        monkeypatch.setitem(sys.modules, "transformers", library)
        error = refusal(None, config)
        assert codes(error) == ["extra-missing"]
        assert found in str(error)
        assert 'pip install "genebold[huggingface]"' in str(error)


def test_help_and_the_list_of_encoders_do_not_import_the_library() -> None:
    program = (
        "import sys\n"
        "import encoders.catalogue\n"
        "from encoders import list_encoders\n"
        "assert 'huggingface' in list_encoders()\n"
        "sys.argv = ['genebold', '--help']\n"
        "from multimodal.cli import entry\n"
        "try:\n    entry()\nexcept SystemExit:\n    pass\n"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
