"""Networks of the transformers library as DNA encoders: strands, alignment, batches, padding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_models import (
    DNA,
    NETWORKS,
    reverse_complement,
    save_byte_pairs,
    save_characters,
    save_chunks,
    save_network,
    save_words,
)
from torch import Tensor

from encoders import load_encoder
from encoders.base import pool_bases
from encoders.errors import InputError

WINDOWS = [DNA[:37], DNA[50:87], DNA[20:61], DNA[90:160], DNA[3:15], DNA[60:67] + "N" + DNA[68:90]]
PLAIN = WINDOWS[:-1]
TOKENIZERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], int]] = {
    "characters": (save_characters, {}, 64),
    "byte_pairs": (save_byte_pairs, {}, 64),
    "words": (lambda folder: save_words(folder, 3), {"kmer": 3}, 80),
    "chunks": (lambda folder: save_chunks(folder, 3), {}, 80),
}
over_networks = pytest.mark.parametrize("kind", NETWORKS)
over_tokenizers = pytest.mark.parametrize("tokens", TOKENIZERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Models by network and tokenizer, each saved once."""
    made: dict[tuple[str, str], Path] = {}

    def find(kind: str, tokens: str) -> Path:
        if (kind, tokens) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}_{tokens}")
            save, _, vocabulary = TOKENIZERS[tokens]
            save_network(folder, kind, vocab_size=vocabulary)
            save(folder)
            made[kind, tokens] = folder
        return made[kind, tokens]

    return find


def load(folder: Path, tokens: str = "characters", dtype: str = "float32", **config: Any) -> Any:
    return load_encoder(
        "huggingface", folder, config={**TOKENIZERS[tokens][1], **config}, dtype=dtype
    )


def worst(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@over_networks
@torch.no_grad()
def test_the_mean_of_both_strands_is_that_of_the_reverse_complement(
    kind: str, folders: Callable[[str, str], Path]
) -> None:
    for tokens in ("characters", "byte_pairs"):
        encoder = load(folders(kind, tokens), tokens)
        forward = encoder(*encoder.tokenize(WINDOWS))
        mirrored = encoder(*encoder.tokenize([reverse_complement(w) for w in WINDOWS]))
        assert worst(mirrored.flip(-1), forward) <= 1e-5
        assert worst(mirrored.mean(-1), forward.mean(-1)) <= 1e-5


@over_networks
@pytest.mark.parametrize("padding", [False, True])
@torch.no_grad()
def test_windows_do_not_depend_on_batch_or_padding(
    kind: str, padding: bool, folders: Callable[[str, str], Path]
) -> None:
    for tokens in ("characters", "byte_pairs"):
        encoder = load(folders(kind, tokens), tokens, padding=padding)
        batch = encoder.tokenize(WINDOWS)
        hidden, pooled = encoder.hidden(*batch), encoder(*batch)
        assert not hidden[~batch.mask].any()
        assert worst(pooled, pool_bases(hidden, batch.mask)) <= 1e-5
        for row, window in enumerate(WINDOWS):
            alone = encoder.tokenize([window])
            assert worst(pooled[row], encoder(*alone)[0]) <= 1e-5
            assert worst(hidden[row, : len(window)], encoder.hidden(*alone)[0]) <= 1e-5


@over_networks
@torch.no_grad()
def test_the_last_hidden_state_is_the_librarys(
    kind: str, folders: Callable[[str, str], Path]
) -> None:
    """On both strands, base by base, against the model as its user would run it."""
    from transformers import AutoModel

    folder = folders(kind, "characters")
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    encoder = load(folder, dtype="float64")
    ids = {letter: 4 + i for i, letter in enumerate("ACGTN")}
    window = WINDOWS[-1]
    hidden = encoder.hidden(*encoder.tokenize([window]))[0]
    for strand, sequence in enumerate((window, reverse_complement(window))):
        inputs = torch.tensor([[1, *(ids[letter] for letter in sequence), 2]])
        wanted = model(inputs, use_cache=False).last_hidden_state[0, 1:-1]
        wanted = wanted.flip(0) if strand else wanted
        torch.testing.assert_close(hidden[..., strand], wanted, rtol=0, atol=1e-12)
        assert torch.equal(encoder.backbone(inputs)[0, 1:-1], wanted.flip(0) if strand else wanted)


def over_bases(tokens: str, made: Any, sequence: str) -> list[list[int]]:
    """Token ids over each base, found out without the encoder."""
    if tokens == "characters":
        return [[made[letter]] for letter in sequence]
    if tokens == "byte_pairs":
        found = made.encode(sequence, add_special_tokens=False)
        return [
            [i for i, (a, b) in zip(found.ids, found.offsets, strict=True) if a <= base < b]
            for base in range(len(sequence))
        ]
    size = len(sequence)
    if tokens == "words":
        starts = range(size - 2)
        return [
            [made.get(sequence[s : s + 3], 3) for s in starts if s <= base < s + 3]
            for base in range(size)
        ]
    whole = size - size % 3
    chunks = [made[sequence[s : s + 3]] for s in range(0, whole, 3) for _ in range(3)]
    return [[token] for token in [*chunks, *(made[letter] for letter in sequence[whole:])]]


@over_tokenizers
@torch.no_grad()
def test_a_tokens_vector_lies_over_its_bases_on_both_strands(tokens: str, tmp_path: Path) -> None:
    """Layer 0 of this network is the embedding table alone, so each vector names its token."""
    save, _, vocabulary = TOKENIZERS[tokens]
    save_network(tmp_path, "llama", vocab_size=vocabulary)
    made = save(tmp_path)
    encoder = load(tmp_path, tokens, hidden_layer=0)
    assert encoder.options.pooling == "bases"
    table = encoder.backbone.get_input_embeddings().weight
    windows = PLAIN if tokens == "chunks" else WINDOWS
    batch = encoder.tokenize(windows)
    hidden = encoder.hidden(*batch)
    for row, window in enumerate(windows):
        for strand, sequence in enumerate((window, reverse_complement(window))):
            over = over_bases(tokens, made, sequence)
            vectors = torch.stack([table[ids].mean(0) for ids in over])
            if strand:
                vectors = vectors.flip(0)
            found = hidden[row, : len(window), :, strand]
            if all(len(ids) == 1 for ids in over):
                assert torch.equal(found, vectors)
            torch.testing.assert_close(found, vectors, rtol=0, atol=1e-6)


@over_tokenizers
@torch.no_grad()
def test_weights_of_bases_reach_both_strands(
    tokens: str, folders: Callable[[str, str], Path]
) -> None:
    encoder = load(folders("esm", tokens), tokens, dtype="float64")
    batch = encoder.tokenize(PLAIN)
    weights = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0))
    hidden = encoder.hidden(*batch)
    wanted = pool_bases(hidden, batch.mask, weights)
    assert worst(encoder(*batch, weights), wanted) <= 1e-12
    one = torch.zeros(batch.mask.shape)
    one[:, 5] = 3.0
    assert worst(encoder(*batch, one), hidden[:, 5]) <= 1e-12
    with pytest.raises(ValueError, match="sum to zero"):
        encoder(*batch, torch.zeros(batch.mask.shape))


@over_tokenizers
@torch.no_grad()
def test_means_over_tokens(tokens: str, folders: Callable[[str, str], Path]) -> None:
    encoder = load(folders("bert", tokens), tokens, pooling="tokens")
    batch = encoder.tokenize(PLAIN)
    pooled = encoder(*batch)
    for row, window in enumerate(PLAIN):
        for strand, sequence in enumerate((window, reverse_complement(window))):
            found = encoder.tokenizer.encode(sequence)
            states = encoder.backbone(torch.from_numpy(found.ids)[None])[0]
            assert not found.real[0], "[CLS] is no part of the mean"
            wanted = states[torch.from_numpy(found.real)].mean(0)
            assert worst(pooled[row, :, strand], wanted) <= 1e-5
    with pytest.raises(InputError, match="means over tokens"):
        encoder(*batch, torch.ones(batch.mask.shape))
    with pytest.raises(InputError, match="means over tokens"):
        encoder.hidden(*batch)


@torch.no_grad()
def test_letters_without_a_token(tmp_path: Path) -> None:
    """Byte pairs without an unknown token leave N out: no base may vanish unnoticed."""
    save_network(tmp_path, "bert")
    tokenizer = save_byte_pairs(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["unk_token"] = None
    path.write_text(json.dumps(content))
    encoder = load(tmp_path, "byte_pairs")
    assert encoder.options.pooling == "tokens"
    with_n, without = encoder(*encoder.tokenize([DNA[:20] + "N", DNA[:20]]))
    assert worst(with_n[:, 0], without[:, 0]) <= 1e-5
    with pytest.raises(InputError, match="no token of it"):
        encoder(*encoder.tokenize(["NNNN"]))
    with pytest.raises(InputError) as error:
        load(tmp_path, "byte_pairs", pooling="bases")
    assert error.value.problems[0].code == "tokens-not-aligned"
    assert tokenizer.get_vocab_size() > len("ACGT")


@torch.no_grad()
def test_unknown_and_small_letters(folders: Callable[[str, str], Path]) -> None:
    encoder = load(folders("esm", "characters"))
    first, other = encoder(*encoder.tokenize(["ACGTRYKMacgt.é", "ACGTNNNNACGTNN"]))
    assert torch.equal(first, other)


@pytest.mark.parametrize(("kind", "tokens"), [("esm", "characters"), ("llama", "byte_pairs")])
@torch.no_grad()
def test_layers(kind: str, tokens: str, folders: Callable[[str, str], Path]) -> None:
    folder = folders(kind, tokens)
    last, named, first, middle = (
        load(folder, tokens, hidden_layer=layer) for layer in (None, -1, 0, 1)
    )
    features = [e(*e.tokenize(PLAIN)) for e in (last, named, first, middle)]
    assert torch.equal(features[0], features[1])
    assert worst(features[0], features[2]) > 0.01
    assert worst(features[0], features[3]) > 0.01
    for layer in (3, -4):
        with pytest.raises(InputError, match="hidden_layer"):
            load(folder, tokens, hidden_layer=layer)


@pytest.mark.parametrize(
    ("kind", "tokens", "longest"),
    [
        # Two special tokens around; 256 positions.
        ("bert", "characters", 254),
        ("esm", "characters", 253),  # its positions begin behind the padding's
        ("bert", "words", 256),
        # 99 tokens beside the special one, two of them perhaps letters left over.
        ("bert", "chunks", 293),
        ("bert", "byte_pairs", None),
        ("mamba", "characters", None),
    ],
)
@torch.no_grad()
def test_the_longest_window(kind: str, tokens: str, longest: int | None, tmp_path: Path) -> None:
    save, _, vocabulary = TOKENIZERS[tokens]
    more = {"position_embedding_type": "absolute"} if kind == "esm" else {}
    save_network(tmp_path, kind, vocab_size=vocabulary, **more)
    save(tmp_path)
    encoder = load(tmp_path, tokens)
    found = encoder.spec.input.max_length_bp
    assert found == longest
    if longest is not None:
        window = (DNA * 2)[:longest]
        encoder(*encoder.tokenize([window, window[:-1], window[:-2]]))
        with pytest.raises(InputError, match="at most"):
            encoder.tokenize([window + "A"])
    if tokens == "byte_pairs":
        with pytest.raises(InputError, match="tokens; at most 256 tokens"):
            encoder.tokenize([DNA * 20])
    shorter = load(tmp_path, tokens, max_length_bp=20)
    with pytest.raises(InputError, match="at most 20"):
        shorter.tokenize(["A" * 21])


def test_empty_windows_and_foreign_numbers(folders: Callable[[str, str], Path]) -> None:
    encoder = load(folders("bert", "characters"))
    with pytest.raises(InputError) as error:
        encoder.tokenize(["", "ACGT", ""])
    assert len(error.value.problems) == 2
    batch = encoder.tokenize(["ACGT"])
    for ids, mask in (
        (batch.input_ids + 4, batch.mask),
        (batch.input_ids, batch.mask.flip(1) & torch.tensor([False, True, True, True])),
        (batch.input_ids, batch.mask.float()),
        (batch.input_ids[0], batch.mask[0]),
    ):
        with pytest.raises(ValueError, match="want"):
            encoder(ids, mask)
    words = load(folders("bert", "words"), "words")
    with pytest.raises(InputError, match="shorter than a word"):
        words(*words.tokenize(["AC"]))


@torch.no_grad()
def test_half_precision_gives_float32_features(folders: Callable[[str, str], Path]) -> None:
    folder = folders("modernbert", "characters")
    exact, narrow = load(folder, dtype="float64"), load(folder, dtype="bfloat16")
    features = narrow(*narrow.tokenize(WINDOWS))
    assert features.dtype == torch.float32
    wanted = exact(*exact.tokenize(WINDOWS))
    assert worst(features.double(), wanted) < 0.1


@torch.no_grad()
def test_bounded_runs_change_nothing(
    folders: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(folders("esm", "characters"), dtype="float64")
    batch = encoder.tokenize(WINDOWS)
    whole = encoder(*batch)
    monkeypatch.setattr("encoders.huggingface.encoder._TOKENS_AT_ONCE", 40)
    assert worst(encoder(*batch), whole) <= 1e-12
