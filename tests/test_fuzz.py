"""Properties that hold for any input, on examples drawn by hypothesis.

Readers of files come back with what is in the file or with the error that they document, and with
nothing else. The examples are the same in every run; `make test-long` draws more of them.
"""

import contextlib
import csv
import io
import json
import math

import pytest
import torch
from conftest import build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.claims import page, report
from helpers.claims import reference as expected
from helpers.directions import geometry
from helpers.models import require
from helpers.patching import metrics
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, Site
from tools import compare
from tools.audit.sites import parse_site
from tools.audit.vectors import DirectionFileError, read_directions
from tools.pair_files import NEEDED, POSITIONS, PairFileError, read_pairs, read_table
from tools.report import to_markdown

pytestmark = pytest.mark.fuzz  # the profile says on how many examples

# One folder serves all examples of a test, and a busy machine is no failure.
FINE = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
fuzz = settings(derandomize=True, suppress_health_check=FINE)
seeds, sizes = st.integers(0, 10**6), st.integers(1, 7)
scales = st.floats(-12, 12).map(lambda power: 10.0**power)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------ geometry


@fuzz
@given(seed=seeds, n=sizes, d=sizes, scale=scales, sign=st.sampled_from([-1, 1]))
def test_the_length_of_a_direction_does_not_matter(seed, n, d, scale, sign):
    base, source = normal(seed, 2, n, d).float()
    v = normal(seed + 1, d).float()
    assert torch.allclose(geometry.unit(v).norm(), torch.tensor(1.0), atol=1e-6)
    assert torch.allclose(geometry.unit(sign * scale * v), sign * geometry.unit(v), atol=1e-6)
    found = geometry.patch_subspace(base, source, sign * scale * v)
    assert torch.allclose(found, geometry.patch_subspace(base, source, v), atol=1e-5)
    each = geometry.patch_each(base, source, (scale * v).expand(n, d))
    assert torch.allclose(each, found, atol=1e-5)
    assert math.isclose(geometry.cosine(v, sign * scale * v).item(), sign, abs_tol=1e-5)


@fuzz
@given(seed=seeds, n=sizes, d=sizes, data=st.data())
def test_a_patch_is_an_interchange_by_a_projection(seed, n, d, data):
    k = data.draw(st.integers(1, d))
    base, source, basis = normal(seed, n, d), normal(seed + 1, n, d), normal(seed + 2, d, k)
    scaled = basis * 10.0 ** torch.tensor(
        data.draw(st.lists(st.integers(-12, 12), min_size=k, max_size=k))
    )
    q = geometry.orthonormal(scaled)
    assert torch.allclose(q.T @ q, torch.eye(k, dtype=q.dtype), atol=1e-9)
    assert torch.allclose(q @ q.T @ basis, basis, atol=1e-6)
    patch = geometry.patch_subspace(base, source, scaled)
    # patched with itself nothing changes, twice is once, and there and back is nowhere
    assert torch.allclose(geometry.patch_subspace(base, base, basis), base)
    assert torch.allclose(geometry.patch_subspace(patch, source, basis), patch, atol=1e-6)
    assert torch.allclose(geometry.patch_subspace(patch, base, basis), base, atol=1e-6)
    # the patched part is the source's, the rest is the base's
    assert torch.allclose(patch @ q, source @ q, atol=1e-6)
    assert torch.allclose(patch - patch @ q @ q.T, base - base @ q @ q.T, atol=1e-6)
    if k == d:
        assert torch.allclose(patch, source, atol=1e-6)


@fuzz
@given(seed=seeds, n=sizes, d=sizes, width=sizes, rank=st.integers(0, 7), scale=scales)
def test_row_and_null_make_the_whole(seed, n, d, width, rank, scale):
    W = scale * (normal(seed, d, rank) @ normal(seed + 1, rank, width))
    v = normal(seed + 2, n, d)
    row, null = geometry.row_null_split(v, W)
    assert torch.allclose(row + null, v)
    assert (null @ W).abs().max() <= 1e-9 * scale * d
    assert (row * null).sum(-1).abs().max() < 1e-9
    again = geometry.row_null_split(row, W)
    assert torch.allclose(again.row, row, atol=1e-9) and again.null.abs().max() < 1e-9
    assert geometry.row_space(W).shape == (d, min(d, width, rank))
    row_norm, null_norm = geometry.chance_norms(W)
    assert math.isclose(row_norm**2 + null_norm**2, 1)
    base, source = normal(seed + 3, n, d), normal(seed + 4, n, d)
    parts = [geometry.read_write_patch(base, source, part, v) - base for part in (row, null)]
    whole = geometry.read_write_patch(base, source, v, v) - base
    assert torch.allclose(sum(parts), whole, atol=1e-9)


@fuzz
@given(seed=seeds, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_patches_keep_the_type_of_the_base(seed, dtype):
    base, source = normal(seed, 2, 3, 5).to(dtype)
    v = normal(seed + 1, 5)
    assert geometry.patch_subspace(base, source, v).dtype == dtype
    assert geometry.read_write_patch(base, source, v, v).dtype == dtype


# ------------------------------------------------------------------------------------- metrics

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20).map(torch.tensor)


@fuzz
@given(values=values, seed=seeds)
def test_an_interval_lies_among_the_values(values, seed):
    found = metrics.mean(values, seed=seed)
    assert found.low <= found.high
    slack = 1e-6 * values.abs().max().item()
    assert values.min() - slack <= found.low and found.high <= values.max() + slack
    assert found == metrics.mean(values, seed=seed)
    assert math.isclose(found.value, values.double().mean().item(), rel_tol=1e-9, abs_tol=1e-9)


@fuzz
@given(
    clean=st.lists(st.floats(0.1, 100), min_size=1, max_size=9),
    scale=st.floats(0.01, 100),
    share=st.floats(-2, 2),
)
def test_fldd_is_a_share_whatever_the_unit(clean, scale, share):
    clean = torch.tensor(clean, dtype=torch.float64)
    found = metrics.fractional_logit_difference_decrease(scale * clean, scale * (1 - share) * clean)
    assert all(math.isclose(number, share, abs_tol=1e-6) for number in found)


@fuzz
@given(hits=st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_share_lies_in_its_interval(hits):
    value, low, high = metrics.share(torch.tensor(hits))
    assert 0 <= low <= value <= high <= 1 and math.isclose(value, sum(hits) / len(hits))
    assert low < high  # also where all or none are hits


@fuzz
@given(seed=seeds, n=sizes, columns=st.integers(2, 9))
def test_logit_differences_change_sign_with_the_answers(seed, n, columns):
    logits = normal(seed, n, columns)
    tokens = torch.randint(columns, (2, n), generator=torch.Generator().manual_seed(seed))
    found = metrics.logit_difference(logits, *tokens)
    assert torch.equal(found, -metrics.logit_difference(logits, *tokens.flip(0)))
    assert torch.allclose(found, metrics.logit_difference(logits + 3, *tokens), atol=1e-9)
    assert found.tolist() == [
        (row[a] - row[c]).item() for row, a, c in zip(logits, *tokens, strict=True)
    ]


# --------------------------------------------------------------------------------------- sites


@fuzz
@given(kind=st.sampled_from(list(HOOKS)), layer=st.integers(0, 999), head=st.integers(0, 99))
def test_a_site_survives_its_name_and_its_values(kind, layer, head):
    site = Site(layer, kind, head=head if kind in OF_ONE_HEAD else None)
    assert parse_site(str(site)) == site and Site(**json.loads(json.dumps(site.as_dict()))) == site


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


@fuzz
@given(text=st.text() | st.from_regex(r"[a-z_]{0,12}\.[0-9.-]{0,6}", fullmatch=True))
def test_a_name_is_a_site_or_is_refused(text):
    with contextlib.suppress(ValueError):
        assert str(parse_site(text)).split(".")[0] == text.strip().split(".")[0]


@fuzz
@given(layer=anything, kind=st.sampled_from(list(HOOKS)) | anything, head=anything)
def test_values_make_a_site_or_are_refused(layer, kind, head):
    with contextlib.suppress(ValueError):
        site = Site(layer, kind, head=head)
        assert type(site.layer) is int and site.kind in HOOKS
        assert (site.kind in OF_ONE_HEAD) == (type(site.head) is int)


@fuzz
@given(value=anything, least=st.none() | st.integers())
def test_whole_numbers_and_only_they_pass(value, least):
    good = type(value) is int and (least is None or value >= least)
    if good:
        assert require.whole("n", value, least) == value
    else:
        with pytest.raises(ValueError, match="n must be a whole number"):
            require.whole("n", value, least)


@fuzz
@given(value=anything, zero=st.booleans())
def test_positive_numbers_and_only_they_pass(value, zero):
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and abs(value) < math.inf and (value > 0 or (zero and value == 0)):
        require.positive("x", value, zero=zero)
    else:
        with pytest.raises(ValueError, match="x must be"):
            require.positive("x", value, zero=zero)


# ---------------------------------------------------------------------------------- pair files

TOKENIZER = build_tokenizer()
words = st.sampled_from(["Mary", "John", "Tom", "to", "zebra", "New York", "", " ", "é", "\0"])
cells = st.lists(words, max_size=4).map(" ".join) | st.text(max_size=8)
numbers = st.sampled_from(["-1", "0", "1", "99", "1.0", "", "x", "+1", " 1 ", "1e3"])


@st.composite
def tables(draw):
    """The text of a CSV file that is nearly as it should be: columns in any order, any cells."""
    columns = [*NEEDED, *draw(st.lists(st.sampled_from([*POSITIONS, "note"]), max_size=2))]
    columns = draw(st.permutations(columns))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=draw(st.sampled_from([",", ",", ",", ";", "\t"])))
    writer.writerow(columns)
    for _ in range(draw(st.integers(0, 3))):
        row = [draw(numbers if name in POSITIONS else cells) for name in columns]
        writer.writerow(row[: draw(st.integers(len(row) - 1, len(row)))])
    return file.getvalue()


@fuzz
@given(content=st.binary(max_size=200) | tables().map(lambda t: t.encode("utf-8", "replace")))
def test_a_pair_file_gives_pairs_or_its_own_error(tmp_path, content):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    try:
        pairs = read_pairs(TOKENIZER, path)
    except PairFileError as error:
        assert str(path) in str(error)
    else:
        assert len(pairs) == len(read_table(path)) == len(pairs.table)
        assert set(NEEDED) <= set(pairs.table)


good = st.text(alphabet="MaryJohnTom ,;\"'\n", min_size=1, max_size=20).filter(str.strip)
open_end = good.filter(lambda text: not text.endswith(" "))  # which belongs to the answer


@fuzz
@given(
    rows=st.lists(
        st.tuples(open_end, good, st.permutations(["Mary", "John"])), min_size=1, max_size=4
    )
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_csv_writes_comes_back(tmp_path, encoding, end, rows):
    lines = [(base, source, *answers) for base, source, answers in rows]
    with open(tmp_path / "pairs.csv", "w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end).writerows([NEEDED, *lines])
    found = read_pairs(TOKENIZER, tmp_path / "pairs.csv").table
    assert list(found[list(NEEDED)].itertuples(index=False, name=None)) == lines


# ------------------------------------------------------------------------------ direction files


@fuzz
@given(
    content=st.binary(max_size=100),
    cut=st.none() | st.integers(0, 300),
    suffix=st.sampled_from([".npy", ".npz", ".pt", ".bin", ".safetensors"]),
)
def test_a_direction_file_gives_a_vector_or_its_own_error(tmp_path, content, cut, suffix):
    path = tmp_path / f"v{suffix}"
    pack = b"PK\x03\x04"
    magic = {".npy": b"\x93NUMPY\x01\x00v\x00", ".safetensors": b"\x40"}
    magic |= dict.fromkeys((".npz", ".pt", ".bin"), pack)
    start = magic[suffix] if cut is not None else b""
    path.write_bytes((start + content)[:cut])
    with contextlib.suppress(DirectionFileError):
        assert all(torch.isfinite(v).all() for v in read_directions(path).values())


# --------------------------------------------------------------------------------- JSON results

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=5)
)
nested = st.recursive(
    leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "verdict": st.sampled_from(report.VERDICTS) | nested,
        "value": st.floats() | nested,
        "interval": st.lists(st.floats(), min_size=2, max_size=2) | nested,
        "detail": st.dictionaries(st.text(max_size=3), st.floats(), max_size=2) | nested,
        "lesson": st.sampled_from(["03", "04"]) | nested,
        "note": st.text(max_size=5) | nested,
        "tolerance": st.floats(0, 10) | nested,
    },
)
claim_files = st.dictionaries(st.sampled_from(["C3", "C9", "C99"]), entries | nested, max_size=3)
contents = st.one_of(
    st.binary(max_size=50),
    nested.map(lambda value: json.dumps(value).encode()),
    claim_files.map(lambda value: json.dumps(value).encode()),
    claim_files.map(lambda value: json.dumps(value).encode()[:-3]),
)


@settings(fuzz, max_examples=fuzz.max_examples * 5 // 2)
@given(content=contents, reference=contents)
def test_results_are_read_or_called_damaged(tmp_path, monkeypatch, content, reference):
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    monkeypatch.setattr(expected, "ROOT", tmp_path)
    ours, theirs = report.results_folder() / "claims.json", expected.expected_path()
    for path, data in ((ours, content), (theirs, reference)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    readers = [
        report.recorded, report.summary_table, expected.expected, expected.drifts,
        lambda: compare.compare(["smollm2-135m"]), page.measurements,
        to_markdown,
    ]  # fmt: skip
    for reader in readers:
        try:
            reader()
        except FileNotFoundError as error:  # only when both files say nothing of any claim
            assert "No results for smollm2-135m" in str(error)
            assert not report.recorded() and not expected.expected()
        except ValueError as error:
            assert any(f"{path} is damaged" in str(error) for path in (ours, theirs))


@fuzz
@given(value=st.floats(-1e9, 1e9), width=st.floats(0, 10), number=st.integers(0, 10**6))
def test_what_is_recorded_comes_back(tmp_path, monkeypatch, capsys, value, width, number):
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path))
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    ends = (value - width, value + width)
    found = report.record("C3", value, ends, detail={"n": torch.tensor([number])}, note="é \u2028")
    entry = report.recorded()["C3"]
    assert (entry["value"], tuple(entry["interval"])) == (value, ends)
    assert entry["detail"] == {"n": [number]} and entry["verdict"] == found.verdict
