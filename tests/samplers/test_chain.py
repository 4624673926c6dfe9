"""Processors equal Hugging Face's, mix with them, and their order is the documented one."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import (
    DRY,
    AllowedTokens,
    AllowedWords,
    DynamicTemperature,
    Epsilon,
    Eta,
    MinP,
    NegativeBursts,
    PLess,
    RepetitionPenalty,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Vocabulary,
    build_chain,
    decode,
    token_texts,
)

IDS = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 4, 4]])


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(1))


def kept(logits: Tensor) -> Tensor:
    return logits > -math.inf


def run(chain: list[Any], logits: Tensor, ids: Tensor | None = None) -> Tensor:
    for process in chain:
        logits = process(ids, logits)
    return logits


# ---- against Hugging Face


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "value"),
    [
        *(("TopK", "TopKLogitsWarper", k) for k in (1, 7, 500)),
        *(("TopP", "TopPLogitsWarper", p) for p in (0.05, 0.9, 1.0)),
        *(("MinP", "MinPLogitsWarper", p) for p in (0.0, 0.1, 1.0)),
        *(("Typical", "TypicalLogitsWarper", p) for p in (0.05, 0.3, 0.9, 0.999)),
        *(("TopH", "TopHLogitsWarper", h) for h in (0.05, 0.4, 0.9, 1.0)),
        *(("Epsilon", "EpsilonLogitsWarper", e) for e in (1e-3, 0.05, 0.9)),
        *(("Eta", "EtaLogitsWarper", e) for e in (1e-3, 0.05, 0.9)),
        *(("RepetitionPenalty", "RepetitionPenaltyLogitsProcessor", x) for x in (0.7, 1.0, 1.3)),
    ],
)
def test_a_processor_equals_hugging_faces_bit_for_bit(
    logits: Tensor, ours: str, theirs: str, value: float, masked: bool
) -> None:
    from transformers.generation import logits_process as transformers

    from phasegpt import samplers

    if masked:
        logits = logits.masked_fill(torch.arange(50) % 3 == 0, -math.inf)
    ids = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(2))
    mine = getattr(samplers, ours)(value)(ids, logits)
    assert torch.equal(mine, getattr(transformers, theirs)(value)(ids, logits.clone()))


@pytest.fixture(scope="module")
def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=64, initializer_range=0.6,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def test_our_chain_works_inside_hugging_faces_generate(gpt2: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": True,
               "top_k": 0, "eos_token_id": None}  # fmt: skip
    chain = build_chain(
        temperature=NegativeBursts(-0.5, every=3, between=DynamicTemperature(0.5, 2)),
        allowed=AllowedTokens(range(30)),
        repetition_penalty=1.1,
        dry=DRY(1.0),
        top_n_sigma=3.0,
        min_p=0.01,
        typical_p=0.95,
    )
    torch.manual_seed(0)
    out = gpt2.generate(ids, logits_processor=chain, **options)
    torch.manual_seed(0)
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            probs = run(chain, gpt2(expected).logits[:, -1].float(), expected).softmax(-1)
            expected = torch.cat((expected, torch.multinomial(probs, 1)), dim=1)
    assert torch.equal(out, expected)
    assert (out < 30).all()


def test_temperature_minus_zero_inside_hugging_face_is_the_argmin(gpt2: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    out = gpt2.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=True, top_k=0,
        logits_processor=[Temperature(-0.0)],
    )  # fmt: skip
    with torch.no_grad():
        assert out[0, -1] == gpt2(ids).logits[0, -1].argmin()


def test_hugging_faces_processors_work_inside_our_chain(make_model: Any, roughen: Any) -> None:
    from transformers.generation import logits_process as hf

    model = roughen(make_model("softmax"))
    ids = torch.tensor([[5, 6, 5]])
    chain = [hf.NoRepeatNGramLogitsProcessor(1), hf.TopKLogitsWarper(20), Temperature(2.0)]
    out = decode(model, ids, max_new_tokens=30, seeds=[1], chain=chain)
    assert len(set(out[0, 1:].tolist())) == 32


# ---- the order


def test_the_usual_order_is_allowed_penalties_truncation_temperature() -> None:
    allowed, dry = AllowedTokens([1]), DRY()
    chain = build_chain(
        temperature=1.7, allowed=allowed, repetition_penalty=1.2, dry=dry, top_n_sigma=2.0,
        top_k=20, top_p=0.8, min_p=0.2, typical_p=0.9, top_h=0.5, epsilon_cutoff=0.1,
        eta_cutoff=0.1, p_less=True,
    )  # fmt: skip
    kinds = [AllowedTokens, RepetitionPenalty, DRY, TopNSigma, TopH, TopK, TopP, MinP, Typical,
             Epsilon, Eta, PLess]  # fmt: skip
    assert [type(p) for p in chain] == [*kinds, Temperature]
    assert chain[0] is allowed and chain[2] is dry
    assert [type(p) for p in build_chain(top_p=0.5)] == [TopP, Temperature]
    dynamic = DynamicTemperature(0.5, 1.5)
    assert build_chain(temperature=dynamic) == [dynamic]


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0, -5.0, -1.0, -0.2, math.inf])
def test_truncation_acts_on_raw_logits_whatever_the_temperature(
    logits: Tensor, temperature: float
) -> None:
    options = {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9, "top_n_sigma": 2.0}
    support = kept(run(build_chain(**options), logits))
    assert torch.equal(kept(run(build_chain(temperature=temperature, **options), logits)), support)
    assert (support.sum(-1) > 1).any()


def test_negative_temperature_prefers_the_least_likely_token_left(
    logits: Tensor,
) -> None:
    chain = build_chain(temperature=-0.0, top_k=5)
    fifth = logits.sort(dim=-1, descending=True).indices[:, 4]
    assert torch.equal(run(chain, logits).argmax(-1), fifth)
    best_five = kept(TopK(5)(None, logits))
    assert torch.equal(kept(run(build_chain(temperature=-1.0, top_k=5), logits)), best_five)
    # The other way round the two supports would have nothing in common.
    reverse = kept(run(list(reversed(build_chain(temperature=-1.0, top_k=5))), logits))
    assert not (reverse & best_five).any()


def test_processors_leave_their_input_alone(logits: Tensor) -> None:
    before = logits[:2].clone()
    chain = build_chain(
        temperature=-0.5, allowed=AllowedTokens(range(40)), repetition_penalty=2.0, dry=DRY(),
        top_n_sigma=2.0, top_k=30, top_p=0.9, min_p=0.001, typical_p=0.9, top_h=0.9,
        epsilon_cutoff=1e-4, eta_cutoff=1e-4, p_less=True,
    )  # fmt: skip
    after = before.clone()
    run([*chain, NegativeBursts(every=2), DynamicTemperature(1, 2)], after, IDS)
    assert torch.equal(after, before)


# ---- truncation that Hugging Face does not have


def test_p_less_keeps_what_is_as_probable_as_drawing_one_twice(logits: Tensor) -> None:
    p = logits.double().softmax(-1)
    left = kept(PLess()(None, logits))
    assert torch.equal(left, p >= p.square().sum(-1, keepdim=True))
    assert (left.sum(-1) > 1).any() and not left.all(-1).any()
    assert kept(PLess()(None, torch.full((2, 50), 1.7))).all()  # uniform: all
    alone = torch.full((1, 50), -math.inf).index_fill(1, torch.tensor([7]), 0.0)
    assert kept(PLess()(None, alone)).sum() == 1


def test_top_n_sigma_keeps_what_is_within_n_deviations_of_the_largest(logits: Tensor) -> None:
    z = logits.numpy()
    expected = z >= z.max(-1, keepdims=True) - 1.5 * z.std(-1, keepdims=True)
    assert np.array_equal(kept(TopNSigma(1.5)(None, logits)).numpy(), expected)
    wide = torch.cat((logits, torch.full((6, 20), -math.inf)), dim=1)
    assert torch.equal(TopNSigma(1.5)(None, wide)[:, :50], TopNSigma(1.5)(None, logits))
    scaled = kept(TopNSigma(1.5)(None, logits / 3))
    assert torch.equal(scaled, kept(TopNSigma(1.5)(None, logits)))


# ---- penalties


def dry_by_hand(row: list[int], V: int, multiplier: float, base: float, allowed: int,
                breakers: set[int]) -> list[float]:  # fmt: skip
    """The definition, token by token: the longest earlier copy of the end that w followed.

    A breaker is never penalised, as in DRYLogitsProcessor of text-generation-webui.
    """
    penalties = [0.0] * V
    for place in range(1, len(row)):
        n = 0
        while n < place and row[place - 1 - n] == row[-1 - n] and row[-1 - n] not in breakers:
            n += 1
        w = row[place]
        if n >= allowed and w not in breakers:
            penalties[w] = max(penalties[w], multiplier * base ** (n - allowed))
    return penalties


@pytest.mark.parametrize("breakers", [set(), {0}, {0, 2}])
@pytest.mark.parametrize("allowed", [1, 2, 4])
def test_dry_equals_its_definition(breakers: set[int], allowed: int) -> None:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, (20, 30), generator=generator)
    ids[0] = 1
    logits = torch.randn(20, 6, generator=generator)
    dry = DRY(0.8, base=1.3, allowed_length=allowed, breakers=breakers)
    penalty = logits - dry(ids, logits)
    expected = [dry_by_hand(row, 6, 0.8, 1.3, allowed, breakers) for row in ids.tolist()]
    torch.testing.assert_close(penalty, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert (penalty > 0).any()


def test_dry_breaks_a_loop_that_greedy_decoding_falls_into(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("softmax"))
    ids = torch.tensor([[7, 8, 9]])

    def longest_repetition(chain: list[Any]) -> int:
        row = decode(model, ids, max_new_tokens=120, chain=chain, seeds=[0])[0].tolist()
        return max(
            n for n in range(40) for i in range(len(row) - n - 1)
            if n == 0 or row[i : i + n] in [row[j : j + n] for j in range(i + 1, len(row) - n)]
        )  # fmt: skip

    assert longest_repetition([Temperature(0)]) >= 15
    assert longest_repetition([DRY(5.0, base=2.0), Temperature(0)]) <= 7


def test_a_very_long_repetition_has_a_finite_penalty() -> None:
    ids, logits = torch.ones(1, 5000, dtype=torch.int64), torch.zeros(1, 3)
    out = DRY(0.8, base=10.0)(ids, logits)
    assert out.isfinite().all()
    assert out[0, 1] < -1000
    assert (out[0, [0, 2]] == 0).all()


@pytest.mark.parametrize(
    "process",
    [RepetitionPenalty(1.2), DRY(), AllowedWords(["a"], ["a", " "]), NegativeBursts(every=2)],
)
def test_what_needs_the_tokens_says_so_and_the_others_do_not(process: Any, logits: Tensor) -> None:
    with pytest.raises(ConfigError, match="got None"):
        process(None, logits)
    run(build_chain(allowed=AllowedTokens([1, 2]), typical_p=0.5, top_n_sigma=1.0), logits, None)


# ---- allowed tokens

TEXTS = ["a", " b", "\n", "caf\u00e9", "9", "\x07", "'", ""]


def test_allowed_tokens_by_their_text(logits: Tensor) -> None:
    def ids(process: AllowedTokens) -> list[int]:
        return process.allowed.tolist()

    assert ids(AllowedTokens.ascii(TEXTS)) == [0, 1, 2, 4, 6]
    assert ids(AllowedTokens.matching(TEXTS, "[a-z ]*")) == [0, 1, 7]
    out = AllowedTokens([3, 1, 3, 700])(None, logits)
    assert kept(out).nonzero()[:, 1].tolist() == [1, 3] * 6
    assert torch.equal(out[:, [1, 3]], logits[:, [1, 3]])


@pytest.mark.parametrize("spaces", ["metaspace", "bytes"])
def test_the_texts_of_hugging_faces_tokens_keep_their_spaces(spaces: str) -> None:
    # Metaspace (Llama's) drops the space before the first word that it decodes.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    split, join = {
        "metaspace": (pre_tokenizers.Metaspace(), decoders.Metaspace()),
        "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    }[spaces]
    inner.pre_tokenizer, inner.decoder = split, join
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"])
    inner.train_from_iterator(["a king and a king in the sea"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    assert {" king", " a", "k"} <= set(texts)
    ids = tokenizer.encode("a king", add_special_tokens=False)
    assert "".join(texts[i] for i in ids).lstrip() == "a king"


def test_a_vocabulary_with_holes_keeps_its_tokens() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 7, "e": 9}, unk_token="a"))
    texts = token_texts(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert len(texts) == 10
    assert AllowedTokens.matching([t.strip() for t in texts], "[a-e]").allowed.tolist() == [
        0, 1, 2, 7, 9,
    ]  # fmt: skip


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_numpys_numbers_are_numbers(number: Any, logits: Tensor) -> None:
    assert torch.equal(MinP(number(0.25))(None, logits), MinP(0.25)(None, logits))
    assert torch.equal(Temperature(number(2))(None, logits), Temperature(2.0)(None, logits))
    assert torch.equal(TopK(np.int64(3))(None, logits), TopK(3)(None, logits))


def test_a_padded_vocabulary_has_no_other_tokens(logits: Tensor) -> None:
    assert kept(Vocabulary(7)(None, logits)).sum(-1).tolist() == [7] * 6
    assert torch.equal(Vocabulary(60)(None, logits), logits)


def test_allowed_words_leaves_open_what_can_become_a_word() -> None:
    texts = ["a", "b", "c", " ", "'", "bc d", "AB", "."]
    process = AllowedWords(["ab", "abc", "d", "c'a"], texts)

    def next_to(text: str) -> list[str]:
        ids = torch.tensor([[texts.index(c) for c in text]])
        return [texts[i] for i in kept(process(ids, torch.zeros(1, 9)))[0].nonzero()[:, 0].tolist()]

    assert next_to(" ") == ["a", "c", " ", "AB", "."]
    assert next_to(" a") == ["b", "bc d"]  # "a" is no word, "abc" and "d" are
    assert next_to("ab") == ["c", " ", "."]
    assert next_to("c") == ["'"]
    assert next_to("c'") == ["a"]
    assert next_to("bb") == [" ", "."]  # the prompt's own word may only end


LETTERS = [*"abcdefghijklmnopqrstuvwxyz", " "]


@pytest.mark.parametrize("word", ["Bogot\u00e1", "boggy-bog", "b2b", "bo\ufffd"])
def test_words_that_cannot_be_spelled_are_left_out(word: str) -> None:
    with pytest.warns(UserWarning, match=rf"1 of 2 allowed words, such as '{word.lower()}'"):
        process = AllowedWords(["bog", word], LETTERS)
    assert process.words == {"bog"}
    with pytest.raises(ConfigError, match=r"1 of 1 allowed words.*none is left"):
        AllowedWords([word], LETTERS)
    with pytest.raises(ConfigError, match="none is left"):  # nothing could follow the word
        AllowedWords(["bog"], LETTERS[:-1])
    ids = torch.tensor([[LETTERS.index(c) for c in " bog"]])
    left = kept(process(ids, torch.zeros(1, 27)))[0].nonzero()[:, 0].tolist()
    assert [LETTERS[i] for i in left] == [" "]


def test_words_of_several_letters_to_a_token_keep_no_dead_end() -> None:
    texts = ["caf\u00e9", "c", "a", "f", " ", " th", "e", "."]
    with pytest.warns(UserWarning, match=r"1 of 3.*'caf\u00e9s'"):  # no token for the last letter
        process = AllowedWords(["caf\u00e9", "caf\u00e9s", "the"], texts)
    space = process(torch.tensor([[4]]), torch.zeros(1, 8))
    assert [texts[i] for i in kept(space)[0].nonzero()[:, 0].tolist()] == [
        "caf\u00e9", " ", " th", ".",
    ]  # fmt: skip


def test_parts_of_characters_spell_no_words() -> None:
    from phasegpt.data.tokenizers import ByteTokenizer

    with pytest.warns(UserWarning, match=r"1 of 2.*'caf\u00e9'"):
        process = AllowedWords(["cafe", "caf\u00e9"], token_texts(ByteTokenizer()))
    for text, then in (("a ", "c"), ("caf", "e"), ("caf\u00e9", "")):
        mask = kept(process(torch.tensor([list(text.encode())]), torch.zeros(1, 256)))[0]
        assert not mask[128:].any()
        letters = {chr(i) for i in range(128) if mask[i] and chr(i).isalpha()}
        assert letters == set(then + then.upper())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopK(0), "top_k=0"),
        (lambda: TopK(2.5), "top_k=2.5"),
        (lambda: TopK(True), "top_k=True"),
        (lambda: TopP(2), "top_p=2"),
        (lambda: TopP(0.0), "top_p=0.0"),
        (lambda: TopP(math.nan), "top_p=nan"),
        (lambda: MinP(-0.1), "min_p=-0.1"),
        (lambda: MinP("a"), "min_p='a'"),
        (lambda: Typical(0), "typical_p=0"),
        (lambda: Typical(1.5), "typical_p=1.5"),
        (lambda: TopNSigma(0), "top_n_sigma=0"),
        (lambda: TopNSigma(math.inf), "finite"),
        (lambda: RepetitionPenalty(0), "repetition_penalty=0"),
        (lambda: DRY(-1), "dry_multiplier=-1"),
        (lambda: DRY(base=1.0), "dry_base=1.0"),
        (lambda: DRY(allowed_length=0), "dry_allowed_length=0"),
        (lambda: AllowedTokens([]), "no token is allowed"),
        (lambda: AllowedTokens([-1]), "allowed tokens hold -1"),
        (lambda: AllowedTokens.matching(["a"], "("), "no regular expression"),
        (lambda: AllowedTokens.matching(["a"], "b"), "no token matches 'b'"),
        (lambda: AllowedWords([" "], ["a"]), "empty"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
