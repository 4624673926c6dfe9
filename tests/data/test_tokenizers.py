"""Tokenizers: ids and text, files found offline, text that streams."""

import hashlib
import http.server
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from phasegpt.core.errors import DataError
from phasegpt.data import downloads, tokenizers
from phasegpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, StreamDecoder

DATA_DIR = os.environ.get("PHASEGPT_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="PHASEGPT_DATA_DIR is not set")
TEXT = "To be, or not: caf\u00e9 \u65e5\u672c \U0001f600\r\n <|endoftext|>\t  end"


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """No data folder, no tiktoken cache, no network."""
    monkeypatch.delenv("PHASEGPT_DATA_DIR", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizers._gpt2_encoding.cache_clear()
    yield tmp_path
    tokenizers._gpt2_encoding.cache_clear()


def every_tokenizer():
    yield CharTokenizer("".join(sorted(set(TEXT))))
    yield ByteTokenizer()
    if DATA_DIR:
        yield GPT2Tokenizer()


def test_decode_inverts_encode_and_state_survives_json():
    for tokenizer in every_tokenizer():
        ids = tokenizer.encode(TEXT)
        assert ids.dtype == np.uint16 and ids.max() < tokenizer.vocab_size
        again = tokenizers.from_state(json.loads(json.dumps(tokenizer.state())))
        assert again.decode(ids) == TEXT
        assert again.fingerprint == tokenizer.fingerprint
        assert len(tokenizer.encode("")) == 0 and tokenizer.decode([]) == ""


def test_fingerprints_differ():
    prints = {t.fingerprint for t in every_tokenizer()} | {CharTokenizer("ab").fingerprint}
    assert len(prints) == (4 if DATA_DIR else 3)


def test_ids_are_places_in_the_alphabet():
    assert CharTokenizer("xyz").encode("zxy").tolist() == [2, 0, 1]
    assert ByteTokenizer().encode("a\u00e9").tolist() == [97, 195, 169]


def test_large_alphabets_get_wider_ids():
    alphabet = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
    tokenizer = CharTokenizer(alphabet)
    assert tokenizer.dtype == np.uint32
    assert tokenizer.decode(tokenizer.encode(alphabet[-3:])) == alphabet[-3:]


@pytest.mark.parametrize("text", ["abcz", "abc\u65e5", "\U0001f600"])
def test_an_unknown_character_is_named(text):
    with pytest.raises(DataError, match="not among the 3 characters") as error:
        CharTokenizer("abc").encode(text)
    assert repr(text[-1]) in str(error.value)


def test_wrong_ids_and_states_are_errors():
    for tokenizer in every_tokenizer():
        for bad in (-1, tokenizer.vocab_size):
            with pytest.raises(DataError, match="outside the"):
                tokenizer.decode([bad])
    for state in (None, {}, {"name": "char"}, {"name": "bpe"}, {"name": "char", "alphabet": "aa"}):
        with pytest.raises(DataError):
            tokenizers.from_state(state)
    with pytest.raises(DataError, match="no UTF-8 form"):
        ByteTokenizer().encode("\udcff")


def test_streamed_text_is_the_decoded_text_in_whole_characters():
    for tokenizer in every_tokenizer():
        ids = tokenizer.encode(TEXT)
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(int(i)) for i in ids]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) + decoder.flush() == TEXT


def test_a_character_cut_off_by_the_end_is_flushed_as_a_replacement():
    ids = [*ByteTokenizer().encode("a\u65e5")[:3], 255]
    decoder = StreamDecoder(ByteTokenizer())
    pieces = [decoder.push(int(i)) for i in ids]
    assert pieces[:3] == ["a", "", ""]
    assert "".join(pieces) + decoder.flush() == ByteTokenizer().decode(ids)
    assert decoder.push(97) == "a"


@needs_data
def test_gpt2_ids_are_the_published_ones():
    ids = GPT2Tokenizer().encode("Hello, world! <|endoftext|>").tolist()
    assert ids[:4] == [15496, 11, 995, 0]
    assert 50256 not in ids
    assert GPT2Tokenizer().vocab_size == 50257
    assert GPT2Tokenizer().decode([50256]) == "<|endoftext|>"


@needs_data
def test_gpt2_has_the_published_number_of_tokens_of_shakespeare():
    text = Path(DATA_DIR, "shakespeare/input.txt").read_text()
    assert len(GPT2Tokenizer().encode(text)) == 338_025


@needs_data
def test_gpt2_is_read_from_tiktokens_cache_too(nothing_here, monkeypatch):
    cache = nothing_here / "tiktoken"
    cache.mkdir()
    name = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    shutil.copyfile(Path(DATA_DIR, "gpt2-bpe/encoder.json"), cache / name)
    assert GPT2Tokenizer().encode("Hello").tolist() == [15496]


def test_gpt2_missing_offline_names_the_file_at_once(nothing_here, monkeypatch):
    monkeypatch.setattr(time, "sleep", None)  # nothing is tried again later
    with pytest.raises(DataError, match="PHASEGPT_DATA_DIR") as error:
        GPT2Tokenizer()
    assert "gpt2-bpe/encoder.json  (sha256 196139668be6" in str(error.value)


def test_a_wrong_vocabulary_file_is_an_error_and_stays_where_it_is(nothing_here, monkeypatch):
    for file in ("data/gpt2-bpe/encoder.json", "tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):
        (nothing_here / file).parent.mkdir(parents=True)
        (nothing_here / file).write_text("{}")
    with pytest.raises(DataError, match="not here"):
        GPT2Tokenizer()
    monkeypatch.setenv("PHASEGPT_DATA_DIR", str(nothing_here / "data"))
    with pytest.raises(DataError, match=hashlib.sha256(b"{}").hexdigest()):
        GPT2Tokenizer()
    assert len(list(nothing_here.rglob("*6c7ea*"))) == 1
    assert (nothing_here / "data/gpt2-bpe/encoder.json").read_text() == "{}"


@pytest.fixture
def no_settings(monkeypatch):
    for name in (*downloads._OFFLINE_VARIABLES, "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)


def test_a_host_that_answers_is_online_unless_a_variable_says_offline(no_settings, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        assert downloads.online(url)
        # A proxy is what must answer, where there is one.
        monkeypatch.setenv("https_proxy", url)
        assert downloads.online("https://host.invalid/file")
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        assert not downloads.online(url)


def test_a_download_that_ends_early_is_an_error_of_data(no_settings):
    class Short(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"the first half")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(DataError, match=r"cannot download .*IncompleteRead"):
            downloads.download(f"http://127.0.0.1:{server.server_port}/file", "0" * 64)
        server.shutdown()


def test_a_name_server_that_hangs_is_recognised_as_offline(no_settings, monkeypatch):
    over, answered = threading.Event(), threading.Event()

    def hang(*_):
        over.wait(60)
        answered.set()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert not downloads.online("https://huggingface.co", timeout=0.2)
    assert not answered.is_set()
    over.set()
