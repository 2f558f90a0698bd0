"""Source `text`: windows, codes and back, figures by hand, and one whole graph on a toy language."""

import json
from collections import Counter
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifm.cli.main import main as ifm
from ifm.config import ConfigError, parse
from ifm.data.arrays import DataError
from ifm.data.fetching import fetch
from ifm.data.preprocessing import preprocess
from ifm.data.sources import SOURCES, FetchError
from ifm.data.splits import open_split
from ifm.metrics.language import Grams, Language, Texts, copied, gram_numbers, total_variation, word_share
from ifm.modalities import MODALITIES, at_rest, at_work
from ifm.modalities.alphabet import Alphabet, words
from ifm.networks import build_network, load_network
from pipeline.stages import flow
from tests.support.stages import changed, points, run_graph

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tiny-shakespeare"
LETTERS = "".join(sorted(set("\n abcdeé✓😀.")))
ALPHABETS = [
    Alphabet("characters", "bits", LETTERS),
    Alphabet("characters", "one_hot", LETTERS),
    Alphabet("bytes", "bits"),
    Alphabet("bytes", "one_hot"),
    Alphabet("characters", "bits", "x"),
]


def values(path: Path | str, **more: Any) -> dict[str, Any]:
    made = points(
        data__source="text", data__path=str(path), network__kind="sequence", evaluate__extractor="symbols",
        network__sequence={"patch": 2, "width": 16, "depth": 1, "heads": 2}, network__mlp=None,
        data__text={"unit": "characters", "length": 8, "stride": 4, "representation": "bits", "column": "text"}, **more,
    )  # fmt: skip
    return made


def processed(folder: Path, source: Path, **text: Any) -> Any:
    made = values(source)
    made["data"]["text"] |= text
    data = parse(made).data
    fetch(data, folder / "raw")
    return preprocess(data, folder / "raw", folder / "processed")


def test_sigma_data_of_the_data_is_that_of_what_a_model_sees(tmp_path):
    (tmp_path / "a.txt").write_text("abcabcaacc" * 20)
    processed(tmp_path, tmp_path / "a.txt")
    train = open_split(tmp_path / "processed", "train")
    seen = at_work(torch.from_numpy(train[np.arange(len(train))]), "text").double()
    assert train.sigma_data == pytest.approx(float(seen.std(correction=0)), rel=1e-3)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_symbol_comes_back(alphabet):
    ids = np.arange(len(alphabet))[None]
    x = alphabet.encoded(ids)
    assert (x.shape, x.dtype, set(np.unique(x)) <= {0, 255}) == ((1, alphabet.channels, len(alphabet)), np.uint8, True)
    np.testing.assert_array_equal(alphabet.decoded(x), ids)
    assert alphabet.valid(x) == 1
    # Through a model's scale and noise that turns no sign.
    noisy = at_work(torch.from_numpy(x), "text") * (
        0.1 + 0.9 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    )
    if alphabet.representation == "bits":
        np.testing.assert_array_equal(alphabet.decoded(at_rest(noisy, "text")), ids)
    assert Alphabet.read({"text": json.loads(json.dumps(alphabet.described()))}) == alphabet


def test_bits_are_the_number_in_binary():
    alphabet = Alphabet("bytes", "bits")
    x = alphabet.encoded(alphabet.numbers(b"A")[None])  # 65 = 0100 0001
    assert (x[0, :, 0] // 255).tolist() == [0, 1, 0, 0, 0, 0, 0, 1]


def test_a_code_of_no_symbol_goes_to_the_nearest():
    """Of five symbols in three bits, 111 is none; the least certain bit gives way: 011 is symbol 3."""
    alphabet = Alphabet("characters", "bits", "abcde")
    x = np.array([[[140], [255], [255]]], np.uint8)
    assert (alphabet.decoded(x).item(), alphabet.valid(x)) == (3, 0)
    x = np.array([[[255], [130], [129]]], np.uint8)  # 100, by turning both uncertain bits
    assert alphabet.decoded(x).item() == 4
    brute = np.random.default_rng(0).integers(0, 256, (50, 3, 4), np.uint8)
    distances = ((brute[:, None] / 127.5 - 1 - alphabet.codes[None, :, :, None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(alphabet.decoded(brute), distances.argmin(axis=1))


def test_one_hot_is_the_largest():
    alphabet = Alphabet("characters", "one_hot", "abc")
    x = np.array([[[10, 0], [30, 200], [20, 201]]], np.uint8)
    assert alphabet.decoded(x).tolist() == [[1, 2]]
    assert alphabet.strings(alphabet.decoded(x)) == ["bc"]


def test_strings_of_characters_and_bytes():
    text = "née ✓😀"
    alphabet = Alphabet("characters", "bits", "".join(sorted(set(text))))
    assert alphabet.strings(alphabet.numbers(text)[None]) == [text]
    raw = Alphabet("bytes", "bits")
    assert raw.strings(raw.numbers(text.encode())[None]) == [text]
    assert raw.strings(np.array([[0xC3, ord("a")]])) == ["\ufffda"]


def brute_tv(a: list[str], b: list[str], n: int) -> float:
    counts = [Counter(t[i : i + n] for t in texts for i in range(len(t) - n + 1)) for texts in (a, b)]
    totals = [sum(c.values()) for c in counts]
    return sum(abs(counts[0][g] / totals[0] - counts[1][g] / totals[1]) for g in counts[0] | counts[1]) / 2


def test_total_variation_by_hand_and_by_brute_force():
    """Of "aab" and "abb": aa 1/2, ab 1/2 against ab 1/2, bb 1/2 is 1/2; single letters 2/3, 1/3 against 1/3, 2/3."""
    a, b = np.array([[0, 0, 1]]), np.array([[0, 1, 1]])
    for n, expected in ((1, 1 / 3), (2, 1 / 2), (3, 1)):
        found = total_variation(Grams.of(a, n, symbols=2), Grams.of(b, n, symbols=2))
        assert found == pytest.approx(expected)
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 3, (20, 9)), draw.integers(0, 4, (30, 9))
    texts = [["".join("abcd"[i] for i in row) for row in ids] for ids in (a, b)]
    for n in (1, 2, 4):
        for symbols in (4, 2**40):  # numbers; mixed ones
            found = total_variation(Grams.of(a, n, symbols=symbols), Grams.of(b, n, symbols=symbols))
            assert found == pytest.approx(brute_tv(*texts, n))


def test_words_and_their_share_by_hand():
    assert words("the cat's  Hat, o'er 3 dogs") == ["cat's", "hat", "o'er"]
    corpus = frozenset({"cat", "sat"})
    assert word_share([" cat sot ", "xcat sat x"], corpus) == pytest.approx(2 / 3)
    assert word_share(["abc", "..."], corpus) == 0


def test_copies_by_hand():
    alphabet = Alphabet("characters", "bits", "abcd")
    train = alphabet.numbers("abcdabca").reshape(2, 4)  # abcd, abca
    language = Language(alphabet, train, train)
    ids = np.array([[2, 3, 1, 1], [3, 3, 2, 2], [2, 0, 2, 0]])  # cd.. is there; dd, dc, cc are not; ca is
    assert Texts(ids, language).half_copies == pytest.approx(2 / 3)
    known = np.unique(gram_numbers(train, 4, symbols=4))
    assert copied(train, known, 4, symbols=4) == 1
    assert Texts(train, language).total_variation(4) == 0


def test_windows_of_a_split_do_not_reach_into_the_other(tmp_path):
    text = "".join(chr(ord("a") + i % 26) for i in range(95)) + "éé"
    (tmp_path / "t.txt").write_text(text + "\n", encoding="utf-8")
    made = processed(tmp_path, tmp_path / "t.txt", length=8, stride=3)
    whole, cut = text + "\n", round(98 * 0.8)
    for split, content, stride in (("train", whole[:cut], 3), ("test", whole[cut:], 8)):
        data = open_split(tmp_path / "processed", split)
        found = data.modality.own(data[np.arange(len(data))], data.recorded)
        assert found.tolist() == [content[i : i + 8] for i in range(0, len(content) - 7, stride)]
    assert (made.shape, made.text["symbols"]) == ([5, 8], "\nabcdefghijklmnopqrstuvwxyzé")
    sha256 = made.splits["train"].sha256
    assert processed(tmp_path, tmp_path / "t.txt", length=8, stride=3).splits["train"].sha256 == sha256


def test_what_is_read(tmp_path):
    (tmp_path / "train-a.txt").write_bytes(b"one\r\ntwo")
    pq.write_table(pa.table({"text": ["three", None, "four\n"]}), tmp_path / "train-b.parquet")
    (tmp_path / "test.txt").write_bytes(b"\xff\x00")
    (tmp_path / "README.md").write_text("no text of the set")
    made = values(tmp_path)
    made["data"] |= {"test_split": "test", "text": made["data"]["text"] | {"unit": "bytes"}}
    found = SOURCES["text"].read(parse(made).data)
    assert found.splits == {"train": [b"one\r\ntwo", b"three", b"four\n"], "test": [b"\xff\x00"]}
    fetch(parse(made).data, tmp_path / "raw")
    assert (tmp_path / "raw" / "train.txt").read_bytes() == b"one\r\ntwo\nthree\nfour\n"


def test_marks_and_line_ends_of_other_systems_are_no_symbols(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert SOURCES["text"].read(parse(values(tmp_path)).data).splits == {"train": [b"one\ntwo\nthree\n"]}


@pytest.mark.parametrize("column", [[], [None, None], [""]])
def test_a_table_without_text_is_told(tmp_path, column):
    pq.write_table(pa.table({"text": pa.array(column, pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(FetchError, match="the train split has no text; give some"):
        fetch(parse(values(tmp_path)).data, tmp_path / "raw")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_a_cell_that_is_no_utf_8_is_told(tmp_path, kind):
    cells = pa.array([b"good", b"\xff\xfe"], pa.large_binary() if kind == pa.large_string() else pa.binary())
    cells = cells if kind == pa.binary() else pa.Array.from_buffers(kind, 2, cells.buffers())
    pq.write_table(pa.table({"text": cells}), tmp_path / "t.parquet")
    with pytest.raises(FetchError, match=r"row 1: is not UTF-8 \(byte 0\)"):
        SOURCES["text"].read(parse(values(tmp_path)).data)


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        (b"\xff" * 99, {}, r"t.txt: is not UTF-8 \(byte 0\); save it so, or set data.text.unit: bytes"),
        (b"short", {}, "the train split has 5 characters, data.text.length = 8 needs as many"),
        (b"a" * 99, {}, "the training text is one symbol, again and again"),
        (b"ab\x00" * 40, {}, "has NUL characters, so it is hardly text; remove them, or set data.text.unit: bytes"),
        ("".join(map(chr, range(300, 1500))).encode(), {"representation": "one_hot"}, "has 1,20. different characters"),
    ],
)
def test_a_fault_is_one_line(tmp_path, content, text, said):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises((FetchError, DataError), match=said) as raised:
        processed(tmp_path, tmp_path / "t.txt", **text)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_there_is_named(tmp_path):
    pq.write_table(pa.table({"line": ["a"], "n": [1]}), tmp_path / "t.parquet")
    for column, said in (("text", "no such column; .*'line'"), ("n", "holds int64, not text")):
        with pytest.raises(FetchError, match=said):
            processed(tmp_path, tmp_path / "t.parquet", column=column)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network.sequence.patch": 3}, "network.sequence.patch = 3 does not divide data.text.length = 8"),
        (
            {"network.kind": "mlp", "network.mlp": {"width": 8, "layers": 1}},
            "network.kind: mlp does not fit data.source: text; use sequence",
        ),
        ({"evaluate.extractor": "pixels"}, "use symbols"),
        ({"condition.kind": "class"}, "condition.kind: class needs labels"),
    ],
)
def test_params_that_do_not_fit_text(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse(changed(values("x.txt"), changes))


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("two_times", [False, True])
def test_the_network_loads_as_it_was_saved_and_knows_places(tmp_path, patch, two_times):
    options = {"sequence": {"patch": patch, "width": 16, "depth": 2, "heads": 2}}
    torch.manual_seed(0)
    network = build_network(
        kind="sequence", modality="text", shape=(3, 8), takes_anchor=False, two_times=two_times, **options
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, c = torch.randn(5, 3, 8), torch.randn(5)
    given = (x, c, c) if two_times else (x, c)
    found = network(*given)
    assert found.shape == x.shape
    network.save(tmp_path)
    loaded = load_network(tmp_path).eval()
    assert loaded.data_shape == (3, 8)
    torch.testing.assert_close(loaded(*given), found, rtol=0, atol=0)
    rolled = network(x.roll(patch, dims=2), *given[1:]).roll(-patch, dims=2)
    assert not torch.allclose(rolled, found, atol=1e-3)


@pytest.mark.parametrize("patch", [1, 2])
def test_forward_mode_derivative_is_that_of_differences(patch):
    options = {"sequence": {"patch": patch, "width": 16, "depth": 2, "heads": 2}}
    torch.manual_seed(0)
    network = build_network(
        kind="sequence", modality="text", shape=(3, 8), takes_anchor=False, two_times=True, **options
    ).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, dx, c, dc, end = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 3, 8), (4, 3, 8), (4,), (4,), (4,)))
    with sdpa_kernel(SDPBackend.MATH):  # as objective interval has it
        _, slope = torch.func.jvp(lambda x, c: network(x, c, end), (x, c), (dx, dc))
    h = 1e-5
    difference = (network(x + h * dx, c + h * dc, end) - network(x - h * dx, c - h * dc, end)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


def test_a_flow_starts_from_a_teacher_of_fewer_inputs():
    options = {"sequence": {"patch": 2, "width": 16, "depth": 1, "heads": 2}}
    teacher, student = (
        build_network(kind="sequence", modality="text", shape=(3, 8), takes_anchor=takes, **options).eval()
        for takes in (False, True)
    )
    student.start_from(teacher)
    x, c = torch.randn(2, 3, 8), torch.randn(2)
    torch.testing.assert_close(student(torch.cat([x, torch.zeros_like(x)], 1), c), teacher(x, c))


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """All stages on a language of three words, by the exact teacher's paths."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    (folder / "toy.txt").write_text(" ".join(draw.choice(["ab", "cde", "f"], 1500)))
    with chdir(folder):
        made = values(
            folder / "toy.txt", dynamics=["rf"], teacher__kind="exact", flow__init="scratch", ode__sigma_data=1.0,
            flow__steps=30, evaluate__reference_split="test",
        )  # fmt: skip
        run_graph(made)
    return folder


def test_interval_trains_on_text(tmp_path, monkeypatch):
    """Its forward-mode derivative goes through the whole stage, without a teacher."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text("ab cde f " * 200)
    made = values(
        tmp_path / "toy.txt", dynamics=["rf"], teacher__kind="none", flow__init="scratch", flow__objective="interval",
        flow__velocity="pair", anchor__policy="none",
    )  # fmt: skip
    run_graph(made, up_to=flow)
    described = json.loads((tmp_path / "models/trained/rf/ifm.json").read_text())
    assert (described["two_times"], described["modality"]) == (True, "text")
    assert described["text"]["symbols"] == "\n abcdef"


def test_the_exact_teacher_writes_the_toy_language(graph):
    figures = json.loads((graph / "reports/metrics/rf.json").read_text())
    teacher, one_step, real = (figures[k] for k in ("teacher-heun-nfe005", "flow-one_step-nfe001", "real text"))
    assert teacher["word_share"] > 0.95
    assert teacher["half_copies"] > 0.95  # it knows the training windows alone
    assert 0 < real["fourgram_tv"] < teacher["fourgram_tv"] + 0.2 < one_step["fourgram_tv"] + 0.3
    assert (real["word_share"], real["model"]) == (1, "data")
    assert 0 <= one_step["valid_codes"] <= 1
    assert one_step["ratio"] > 1


def test_the_report_shows_texts(graph):
    page = (graph / "reports/index.html").read_text()
    assert page.count("<pre>\n") >= 30  # HTML drops that line break, not the text's own
    assert "Real texts, test split" in page
    assert "a text in a single step" in page


def test_samples_become_text_files(graph):
    model = str(graph / "models/flow/rf")
    for suffix in (".txt", ".jsonl", ".npy"):
        ifm(["sample", "--model", model, "--n", "5", "--device", "cpu", "--out", str(graph / f"out{suffix}")])
    texts = np.load(graph / "out.npy")
    assert (texts.shape, texts.dtype) == ((5,), np.dtype("<U8"))
    assert [json.loads(line)["text"] for line in (graph / "out.jsonl").read_text().splitlines()] == texts.tolist()
    between = "\n" + "-" * 20 + "\n"
    assert (graph / "out.txt").read_text() == between.join(texts) + "\n"
    assert all(set(text) <= set(" abcdef\n") for text in texts.tolist())


def test_the_table_has_text():
    assert MODALITIES["text"].owns((7, 64))
    assert not MODALITIES["text"].owns((1, 8, 8))


@pytest.mark.skipif(not SHAKESPEARE.is_dir(), reason="shared/data/tiny-shakespeare is not beside this checkout")
def test_tiny_shakespeare_round_trip(tmp_path):
    made = values(SHAKESPEARE)
    made["data"] |= {"test_split": "test", "text": made["data"]["text"] | {"length": 64, "stride": None}}
    data = parse(made).data
    fetch(data, tmp_path / "raw")
    preprocess(data, tmp_path / "raw", tmp_path / "processed")
    found = open_split(tmp_path / "processed", "test")
    assert (found.shape, len(found.recorded["text"]["symbols"])) == ((7, 64), 65)
    text = "".join(found.modality.own(found[np.arange(len(found))], found.recorded))
    assert (SHAKESPEARE / "test.txt").read_text().startswith(text)
